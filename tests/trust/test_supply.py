"""What is shipped is what was written, from known makers, and speaks to nobody."""

import io
import json
import os
import re
import socket
import subprocess
import sys
import zipfile
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("runtime", "reference", "plugins", "calibration", "sana_export")
# The first version of each library without holes that are known to reach us, and one of those holes.
SAFE = {
    "onnx": ((1, 21), "CVE-2026-34446 and -34447: external data through links"),
    "onnxruntime": ((1, 27), "checks of external data and of engine contexts"),
    "torch": ((2, 10), "CVE-2025-32434 and CVE-2026-24747: weights_only ran code"),
    "Pillow": ((12, 1, 1), "CVE-2026-25990: a crafted picture wrote beyond its buffer"),
}


def test_a_test_that_asks_for_the_network_fails():
    for ask in (
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.getaddrinfo("example.invalid", 80),
        lambda: socket.gethostbyname("example.invalid"),
    ):
        with pytest.raises(RuntimeError, match="do without the network"):
            ask()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


def test_the_oldest_versions_that_may_be_installed_are_safe_ones(figure):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    for name, (least, reason) in SAFE.items():
        bounds = [line.split(">=")[1].split(";")[0] for line in wanted if line.lower().startswith(f"{name.lower()}>=")]
        assert bounds, f"{name} has no lower bound"
        for bound in bounds:
            assert tuple(int(part) for part in bound.split(".")) >= least, f"{name} {bound}: {reason}"
    figure(24, "lower bounds of onnx, onnxruntime, torch and Pillow: at or above the safe versions")


QUIET = """
import sys
from sana_runtime.pipeline import Pipeline
asked = []
def hear(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        asked.append((event, str(arguments)))
sys.addaudithook(hear)
for device in ("cpu", "onnxruntime"):
    with Pipeline.open(sys.argv[1], device=device) as pipeline:
        pipeline.generate("a star", steps=2)
print(asked)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes the network away as Linux does")
def test_painting_works_without_any_network_and_asks_for_none(built, tmp_path, figure):
    alone = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this system lets no user take the network away")
    command = [*alone, sys.executable, "-c", QUIET, str(built("sana").path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    files = [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()]
    written = sorted(str(file) for file in files if "sana-export" not in file.parts)
    figure(
        23, f"painting on cpu and onnxruntime without a network: works, 0 calls, {len(written)} files of others at home"
    )
    assert done.stdout.split("\n")[0] == "[]" and not written


def wheel(folder, archive):
    """Build a wheel of the archived tree in a folder of its own; returns the wheel's digest."""
    source, target = folder / "source", folder / "wheel"
    for made in (source, target):
        made.mkdir(parents=True)
    zipfile.ZipFile(io.BytesIO(archive)).extractall(source)
    program = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, "-c", program, str(target)]
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    (file,) = target.glob("*.whl")
    return sha256(file.read_bytes()).hexdigest()


def test_two_builds_of_the_wheel_have_the_same_bytes(tmp_path, figure):
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    parts = ("pyproject.toml", "setup.py", "README.md", "LICENSE", *PACKAGES)
    command = ["git", "archive", "--format=zip", "HEAD", *parts]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    digests = {wheel(tmp_path / name, archive) for name in ("one", "another place")}
    figure(24, f"2 builds of the wheel in two folders: {len(digests)} digest(s), {min(digests)[:12]}...")
    assert len(digests) == 1


def test_the_list_of_dependencies_names_each_with_version_and_licence(tmp_path, figure):
    program = [sys.executable, str(ROOT / "bench/trust_sbom.py")]
    listed = json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.5")
    components = {component["name"].lower(): component for component in listed["components"]}
    assert {"numpy", "onnxruntime", "openvino", "tokenizers", "pillow", "click", "torch"} <= set(components)
    assert all(component["version"] and component["purl"].startswith("pkg:pypi/") for component in components.values())
    silent = [name for name, component in components.items() if not component["licenses"]]
    figure(24, f"bill of materials: {len(components)} packages, licence unknown for {len(silent)}")
    assert not silent


def test_the_list_of_dependencies_follows_the_extras_that_others_ask_for(figure):
    """What pip resolved for the lock was found by other code; whatever of it is here has to be in the list."""
    listed = subprocess.run([sys.executable, ROOT / "bench/trust_sbom.py"], capture_output=True, text=True, check=True)
    names = {component["name"] for component in json.loads(listed.stdout)["components"]}
    lines = (ROOT / "requirements-dev.lock").read_text().splitlines()
    locked = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    here = {re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower() for each in distributions()}
    figure(24, f"bill of materials: {len(locked & names)} of the {len(locked & here)} locked packages that are here")
    assert locked & here <= names, sorted(locked & here - names)
