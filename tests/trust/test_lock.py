"""The lock of the test environment names every archive that is needed, by its digest."""

import functools
import hashlib
import importlib.util
import re
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

requirements = pytest.importorskip("packaging.requirements", reason="pytest brings it")
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "requirements-dev.lock").read_text()
LINE = re.compile(r"([a-z0-9-]+)==([A-Za-z0-9.+!]+)((?: --hash=sha256:[0-9a-f]{64})+)")


def lock_script():
    spec = importlib.util.spec_from_file_location("trust_lock", ROOT / "bench/trust_lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LOCK = lock_script()


@functools.cache
def locked():
    """Version by name, of lines that are all as they must be."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    found = [LINE.fullmatch(line) for line in lines]
    assert lines and all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    assert len({match[1] for match in found}) == len(lines)
    return {match[1]: match[2] for match in found}


def asked_by(one, project):
    """What a requirement asks for in turn, by the package that is installed if that has the version of the lock."""
    name, extras = LOCK.plain(one.name), ("", *sorted(one.extras))
    if name == LOCK.PROJECT:
        texts = [text for extra in one.extras for text in project["optional-dependencies"][extra]]
    else:
        texts = distribution(name).requires or () if is_as_locked(name) else ()
    for text in texts:
        each = requirements.Requirement(text)
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
            yield each


def is_as_locked(name):
    try:
        return distribution(name).version == locked()[name]
    except PackageNotFoundError:
        return False


def test_every_line_of_the_lock_is_a_version_and_digests_and_names_no_index():
    assert len(locked()) > 80
    assert "://" not in TEXT and "index-url" not in TEXT
    assert (ROOT / "Makefile").read_text().count("--require-hashes") == 2


def test_the_lock_has_the_versions_that_everybody_else_gets():
    versions, lines = locked(), (ROOT / "constraints.txt").read_text().splitlines()
    constraints = [requirements.Requirement(line) for line in lines if not line.startswith("#")]
    assert len(constraints) > 10
    for one in constraints:
        assert one.specifier.contains(versions[LOCK.plain(one.name)]), one


def test_whatever_the_tests_need_is_in_the_lock(figure):
    """From the `dev` extra downwards, by what each installed package asks for; elsewhere other things are asked for."""
    if f"# For {LOCK.place()};" not in TEXT:
        pytest.skip(f"the lock is for another Python or system than {LOCK.place()}")
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [requirements.Requirement(text) for text in (*project["dependencies"], f"{LOCK.PROJECT}[dev]")]
    versions, seen = locked(), {}
    while wanted:
        one = wanted.pop()
        if str(one) in seen:
            continue
        seen[str(one)] = name = LOCK.plain(one.name)
        if name != LOCK.PROJECT:
            assert name in versions, f"{one} is not in the lock; run `make lock`"
            assert one.specifier.contains(versions[name], prereleases=True), f"{one}: {versions[name]} is locked"
        wanted += asked_by(one, project)
    needed = set(seen.values()) - {LOCK.PROJECT}
    here = sum(is_as_locked(name) for name in needed)
    figure(24, f"lock of the test environment: {len(versions)} packages with digests; {len(needed)} are needed, all in "
               f"it; {here} are installed here in that version")  # fmt: skip
    assert here > len(versions) / 2


def small_wheel(folder):
    """A package of nothing, as pip takes it; its digest."""
    file = folder / "nothing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("nothing.py", "")
        archive.writestr("nothing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: nothing\nVersion: 1.0\n")
        archive.writestr("nothing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        archive.writestr("nothing-1.0.dist-info/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["right", "wrong", "none"])
def test_pip_takes_an_archive_with_the_digest_of_its_line_and_no_other(kind, tmp_path):
    digest = small_wheel(tmp_path)
    entry = {"metadata": {"name": "Nothing", "version": "1.0"}}
    entry["download_info"] = {"archive_info": {"hashes": {"sha256": digest if kind == "right" else "0" * 64}}}
    line = LOCK.line(entry).split(" --hash")[0] if kind == "none" else LOCK.line(entry)
    (tmp_path / "one.lock").write_text(line + "\n")
    pip = [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--no-deps", "--quiet"]
    command = [*pip, "--find-links", tmp_path, "--target", tmp_path / "there", "--require-hashes", "-r"]
    done = subprocess.run([*command, tmp_path / "one.lock"], capture_output=True, text=True)
    assert (done.returncode == 0) == (kind == "right") == (tmp_path / "there/nothing.py").exists(), done.stderr
