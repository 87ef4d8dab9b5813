"""Publishing is atomic: killed at any moment, the old folder or the new one is there, whole."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from sana_runtime import publish
from sana_runtime.errors import BusyError, MemoryLimitError, UsageError
from sana_runtime.publish import publishing, resident

KILLS = int(os.environ.get("SANA_TEST_KILLS", "40"))
FILES = 6

# Publishes generation after generation, each with every file saying which; the kill comes from outside.
WRITER = f"""
import sys
from pathlib import Path
from sana_runtime import publish

target, start, exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
if not exchange:
    publish._exchange = lambda one, other: False
print("ready", flush=True)
for generation in range(start, start + 100_000):
    with publish.publishing(target, wait=5) as stage:
        for i in range({FILES}):
            (stage / f"{{i}}.data").write_bytes(b"%d " % generation * 2000)
        (stage / "manifest.json").write_text(str(generation))
    print(generation, flush=True)
"""


def write(stage: Path, text: str) -> None:
    for i in range(FILES):
        (stage / f"{i}.data").write_text(text)
    (stage / "manifest.json").write_text(text)


def generation(folder: Path) -> int:
    """Which one lies there; fails if it is not one whole generation."""
    number = int((folder / "manifest.json").read_text())
    assert sorted(path.name for path in folder.iterdir()) == [*(f"{i}.data" for i in range(FILES)), "manifest.json"]
    for i in range(FILES):
        assert (folder / f"{i}.data").read_bytes() == b"%d " % number * 2000
    return number


def beside(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} - {target.name, f".{target.name}.lock"}


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_killed_at_any_moment_one_whole_generation_is_there(tmp_path, exchange):
    target, published = tmp_path / "bundle", -1
    generator = random.Random(7)
    for _ in range(KILLS // 2):
        command = [sys.executable, "-c", WRITER, str(target), str(published + 1), str(exchange)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(generator.uniform(0.0, 0.06))
            process.send_signal(signal.SIGKILL)
            reported = process.stdout.read().split()
        told = int(reported[-1]) if reported else published
        found = resident(target)
        if found.exists():
            published = generation(found)
        assert told <= published <= told + 1, "what was reported is there, or the one after it"
    with publishing(target) as stage:
        write(stage, "0")
    assert beside(target) == set(), "what the dead left is gone"


def test_an_exception_leaves_the_old_and_no_rubbish(tmp_path):
    target = tmp_path / "bundle"
    with publishing(target) as stage:
        write(stage, "1")
    with suppress(KeyError), publishing(target) as stage:
        write(stage, "2")
        raise KeyError("something else broke")
    assert (target / "manifest.json").read_text() == "1"
    assert beside(target) == set()


def test_an_exception_at_the_first_publishing_leaves_nothing(tmp_path):
    with suppress(KeyError), publishing(tmp_path / "bundle") as stage:
        write(stage, "1")
        raise KeyError("something broke")
    assert not (tmp_path / "bundle").exists()
    assert beside(tmp_path / "bundle") == set()


def test_files_that_the_new_one_lacks_do_not_stay(tmp_path):
    target = tmp_path / "bundle"
    for name in ("old.data", "new.data"):
        with publishing(target) as stage:
            (stage / "manifest.json").touch()
            (stage / name).touch()
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "new.data"]


def test_a_reader_of_the_old_folder_reads_on(tmp_path):
    target = tmp_path / "bundle"
    with publishing(target) as stage:
        write(stage, "old")
    with (target / "0.data").open() as reader:
        with publishing(target) as stage:
            write(stage, "new")
        assert reader.read() == "old"
    assert (target / "0.data").read_text() == "new"


def test_every_failing_system_call_leaves_the_old_whole(tmp_path, monkeypatch):
    """Let the first call fail, then the second, and so on until none is left to fail."""
    target = tmp_path / "bundle"
    with publishing(target) as stage:
        write(stage, "0")
    for fail_at in range(1, 100):
        calls = fail_from(monkeypatch, fail_at)
        try:
            with publishing(target) as stage:
                write(stage, "1")
        except (UsageError, MemoryLimitError) as error:
            assert "\n" not in str(error)
        monkeypatch.undo()
        content = (resident(target) / "manifest.json").read_text()
        assert content == (resident(target) / "5.data").read_text()
        if len(calls) < fail_at:
            break
    assert content == "1" and 10 < fail_at < 99
    assert beside(target) == set()


def fail_from(monkeypatch: pytest.MonkeyPatch, fail_at: int) -> list[str]:
    """Make the `fail_at`th of the calls that publishing makes fail as a full or broken disk does."""
    calls: list[str] = []

    def failing(name, original):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == fail_at:
                raise OSError(random.Random(fail_at).choice((errno.EIO, errno.ENOSPC, errno.EACCES)), "injected", name)
            return original(*arguments, **options)

        return call

    for owner, name in ((os, "fsync"), (os, "open"), (os, "mkdir"), (os, "rename"), (os, "scandir"), (os, "listdir")):
        monkeypatch.setattr(owner, name, failing(name, getattr(owner, name)))
    monkeypatch.setattr(Path, "rename", failing("rename", Path.rename))
    monkeypatch.setattr(Path, "mkdir", failing("mkdir", Path.mkdir))
    monkeypatch.setattr(publish, "_exchange", failing("exchange", publish._exchange))
    return calls


def test_a_full_disk_is_called_a_full_disk_and_other_errors_of_the_caller_pass(tmp_path):
    with pytest.raises(MemoryLimitError, match="disk is full"), publishing(tmp_path / "bundle"):
        raise OSError(errno.ENOSPC, "no space left on device")
    with pytest.raises(FileNotFoundError), publishing(tmp_path / "bundle"):
        (tmp_path / "absent").read_text()
    assert beside(tmp_path / "bundle") == set()


@pytest.mark.skipif(os.name != "posix", reason="limits file sizes as POSIX systems do")
def test_a_disk_that_fills_up_while_writing_leaves_the_old(tmp_path):
    target = tmp_path / "bundle"
    with publishing(target) as stage:
        write(stage, "old")
    program = (
        "import resource, signal, sys; from pathlib import Path; from sana_runtime.publish import publishing\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "with publishing(Path(sys.argv[1])) as stage:\n    (stage / 'x.data').write_bytes(bytes(100_000))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, target], capture_output=True, text=True)
    assert "MemoryLimitError" in done.stderr and "disk is full" in done.stderr
    assert (target / "manifest.json").read_text() == "old" and beside(target) == set()


def test_a_second_publisher_is_told_who_is_first(tmp_path):
    target = tmp_path / "bundle"
    program = (
        "import sys, time; from pathlib import Path; from sana_runtime.publish import publishing\n"
        "with publishing(Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, target], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout.readline() == "in\n"
            with pytest.raises(BusyError, match=f"process {first.pid};"), publishing(target):
                pass
        finally:
            first.kill()
    with publishing(target, wait=5) as stage:  # the dead one's lock is free at once
        write(stage, "1")
    assert beside(target) == set()


def test_many_publishers_take_turns(tmp_path):
    target = tmp_path / "bundle"
    program = (
        "import sys; from pathlib import Path; from sana_runtime.publish import publishing\n"
        "with publishing(Path(sys.argv[1]), wait=60) as stage:\n"
        "    [(stage / name).write_text(sys.argv[2]) for name in ('manifest.json', 'a.data')]\n"
    )
    crowd = [subprocess.Popen([sys.executable, "-c", program, target, str(i)]) for i in range(6)]
    assert [process.wait() for process in crowd] == [0] * 6
    assert (target / "manifest.json").read_text() == (target / "a.data").read_text()
    assert beside(target) == set()


def test_what_is_not_a_bundle_is_never_replaced(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="other things than a bundle"), publishing(home):
        pass
    with pytest.raises(UsageError, match="is a file"), publishing(home / "thesis.txt"):
        pass
    with pytest.raises(UsageError, match="no such folder"), publishing(home / "absent" / "bundle"):
        pass
    assert (home / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]


OTHERS = {
    "a picture that was painted into a bundle": ("holiday.png", None),
    "notes in a folder of one's own": ("notes/thesis.txt", None),
    "a link": ("latest", None),
    "the program beside a manifest of the web's": ("app.js", '{"name": "app", "start_url": "/"}'),
    "the texts beside one": ("words.json", '{"name": "app", "start_url": "/"}'),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_folder_with_a_manifest_and_other_things_is_not_replaced(what, tmp_path):
    name, manifest = OTHERS[what]
    target = tmp_path / "bundle"
    with publishing(target) as stage:
        write(stage, "1")
    if manifest is not None:
        (target / "manifest.json").write_text(manifest)
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).symlink_to("elsewhere") if what == "a link" else (target / name).write_text("years of work")
    with pytest.raises(UsageError, match="other things than a bundle"), publishing(target) as stage:
        write(stage, "2")
    assert os.path.lexists(target / name) and (target / "0.data").read_text() == "1"


def terabyte(path):
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX systems have them")
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, terabyte])
def test_a_folder_whose_manifest_is_a_pipe_a_folder_or_a_terabyte_is_not_replaced(make, tmp_path):
    target = tmp_path / "bundle"
    target.mkdir()
    make(target / "manifest.json")
    with pytest.raises(UsageError, match="other things than a bundle"), publishing(target) as stage:
        write(stage, "2")
    assert os.path.lexists(target / "manifest.json")


@pytest.mark.parametrize("damage", ["", "{", "[1, 2]"])
def test_a_damaged_bundle_may_be_replaced(damage, sealed_bundle, tmp_path):
    shutil.copytree(sealed_bundle, tmp_path / "bundle")
    (tmp_path / "bundle/manifest.json").write_text(damage)
    with publishing(tmp_path / "bundle") as stage:
        write(stage, "2")
    assert (tmp_path / "bundle/manifest.json").read_text() == "2"


def test_an_empty_folder_may_be_published_into(tmp_path):
    (tmp_path / "bundle").mkdir()
    with publishing(tmp_path / "bundle") as stage:
        write(stage, "1")
    assert (tmp_path / "bundle/manifest.json").read_text() == "1"


def test_publishing_through_a_link_replaces_what_it_points_at(tmp_path):
    with publishing(tmp_path / "real") as stage:
        write(stage, "1")
    (tmp_path / "latest").symlink_to(tmp_path / "real", target_is_directory=True)
    with publishing(tmp_path / "latest") as stage:
        write(stage, "2")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "real/manifest.json").read_text() == "2"


def test_a_neighbour_with_a_similar_name_is_left_alone(tmp_path):
    neighbours = [".bundle.stage-mine", ".bundle2.stage-1", ".bundle.stage-1x", "bundle.stage-2"]
    for name in neighbours:
        (tmp_path / name).mkdir()
    (tmp_path / ".bundle.stage-999999").mkdir()
    with publishing(tmp_path / "bundle") as stage:
        write(stage, "1")
    assert beside(tmp_path / "bundle") == set(neighbours)


def test_a_bundle_between_the_two_renames_still_opens_and_is_put_back(sealed_bundle, tmp_path):
    from sana_runtime.bundle import open_bundle

    target = tmp_path / "bundle"
    shutil.copytree(sealed_bundle, tmp_path / ".bundle.previous")
    open_bundle(target).verify()
    with suppress(KeyError), publishing(target):
        raise KeyError
    assert resident(target) == target
    open_bundle(target).verify()


def test_names_with_spaces_and_other_letters_work(tmp_path):
    target = tmp_path / "mein Bündel 束"
    for text in ("1", "2"):
        with publishing(target) as stage:
            write(stage, text)
    assert (target / "manifest.json").read_text() == "2"
