"""Killed, out of disk, or in a crowd: the old thing is there or the new one, whole."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from sana_runtime.bundle import open_bundle, seal
from sana_runtime.engine_cache import EngineCache, EngineKey
from sana_runtime.errors import MemoryLimitError, SanaError
from sana_runtime.manifest import parse
from sana_runtime.picture import Picture
from sana_runtime.publish import publishing, resident

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills, forks and limits as POSIX systems do")
KEY = EngineKey("decoder", "0" * 64, "tensorrt", "1.7", (89,), "fp16", "1" * 64, False)


def copied(source, target, model):
    """Publish the bundle `source` at `target` under another name, through the same steps as a build."""
    manifest = parse((source / "manifest.json").read_bytes())
    with publishing(target, wait=60) as stage:
        (stage / "LICENSES").mkdir()
        for name in manifest.files:
            shutil.copyfile(source / name, stage / name)
        from dataclasses import replace

        seal(stage, replace(manifest, model=model))


def save_engine(folder, content):
    EngineCache(folder / "engines", folder / "key").store(KEY, content)


def kept_engine(folder):
    """What the cache hands out; never something that was not stored."""
    return EngineCache(folder / "engines", folder / "key").load(KEY)


def picture_of(level):
    return Picture(np.full((32, 32, 3), level, np.uint8))


def test_killed_while_publishing_a_bundle_the_old_or_the_new_is_there(
    sealed_bundle, tmp_path, killed_while, paced, times, figure
):
    kills, target, generator = times(15, 200, 500), tmp_path / "bundle", random.Random(51)
    longest = 1.2 * paced(lambda: copied(sealed_bundle, target, "first"))
    seen = {"old": 0, "new": 0}
    for i in range(kills):
        before = open_bundle(target).manifest.model
        killed_while(lambda i=i: copied(sealed_bundle, target, f"number {i}"), generator, longest)
        bundle = open_bundle(target)
        bundle.verify()
        assert bundle.manifest.model in (before, f"number {i}")
        seen["old" if bundle.manifest.model == before else "new"] += 1
    copied(sealed_bundle, target, "last")
    left = {path.name for path in tmp_path.iterdir()} - {"bundle", ".bundle.lock"}
    figure(8, f"{kills} kills while publishing: {seen['old']} old, {seen['new']} new, 0 other; {len(left)} left over")
    assert not left


def test_killed_while_keeping_an_engine_or_a_picture_the_old_or_the_new_is_there(
    tmp_path, killed_while, paced, times, figure
):
    kills, generator = times(20, 200, 500), random.Random(52)
    contents = {bytes([i]) * 200_000 for i in range(256)}

    def write(i):
        save_engine(tmp_path, bytes([i % 256]) * 200_000)
        picture_of(i % 256).save(tmp_path / "out.png")

    longest = 1.2 * paced(lambda: write(0))
    for i in range(1, kills + 1):
        killed_while(lambda i=i: write(i), generator, longest)
        assert kept_engine(tmp_path) in contents
        from sana_runtime.picture import read_picture

        assert np.ptp(read_picture(tmp_path / "out.png")) == 0
    figure(8, f"{kills} kills while keeping engines and pictures: always one whole of each")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["input and output", "disk full"])
def test_whichever_call_of_the_system_fails_the_old_or_the_new_is_there(
    code, sealed_bundle, tmp_path, monkeypatch, failing_calls, times, figure
):
    target, fail_at, stride, tried = tmp_path / "bundle", 0, times(11, 1, 1), 0
    copied(sealed_bundle, target, "old")
    while True:
        fail_at, tried = fail_at + stride, tried + 1
        with monkeypatch.context() as patch:
            failing = failing_calls(patch, fail_at, code)
            try:
                copied(sealed_bundle, target, "new")
            except (SanaError, OSError) as error:
                assert "\n" not in str(error)
        bundle = open_bundle(target)
        assert bundle.manifest.model in ("old", "new")
        if failing.calls < fail_at:
            break
        if bundle.manifest.model == "new":
            copied(sealed_bundle, target, "old")
    copied(sealed_bundle, target, "last")
    left = {path.name for path in tmp_path.iterdir()} - {"bundle", ".bundle.lock"}
    figure(
        9,
        f"{tried - 1} of {failing.calls} system calls failed in turn ({errno.errorcode[code]}): old or new, "
        f"{len(left)} left over",
    )
    assert fail_at > 60 and not left


def test_a_disk_that_fills_up_at_any_write_leaves_the_old(sealed_bundle, tmp_path, times, figure):
    """Files may have so many bytes and no more; a child bears the limit."""
    import resource

    target, sizes = tmp_path / "bundle", times(6, 60, 60)
    copied(sealed_bundle, target, "old")
    largest = max(file.stat().st_size for file in sealed_bundle.rglob("*") if file.is_file())
    outcomes = {"full": 0, "written": 0}
    for limit in np.linspace(16, largest + 200, sizes).astype(int):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
            try:
                copied(sealed_bundle, target, "new")
            except MemoryLimitError:
                os._exit(4)
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 4)
        outcomes["written" if status == 0 else "full"] += 1
        open_bundle(target).verify()
        assert open_bundle(target).manifest.model == ("new" if status == 0 else "old")
        copied(sealed_bundle, target, "old")
    figure(10, f"disk full at {sizes} sizes: {outcomes['full']} refused with the old bundle whole, "
               f"{outcomes['written']} fitted")  # fmt: skip
    assert outcomes["full"] and outcomes["written"]


WRITER = """
import sys, time
from pathlib import Path
from sana_runtime.errors import SanaError
from sana_runtime.publish import publishing
try:
    with publishing(Path(sys.argv[1]), wait=float(sys.argv[2])) as stage:
        (stage / "manifest.json").write_text(sys.argv[3])
        (stage / "x.data").write_text(sys.argv[3])
        time.sleep(float(sys.argv[4]))
except SanaError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def crowd(target, count, wait, held):
    command = [sys.executable, "-c", WRITER, str(target), str(wait)]
    children = [
        subprocess.Popen([*command, str(i), str(held)], stderr=subprocess.PIPE, text=True) for i in range(count)
    ]
    return [(child.communicate()[1], child.returncode) for child in children]


def test_of_sixteen_builders_of_one_target_some_build_and_the_others_are_told_who(tmp_path, times, figure):
    target, rounds, built, told = tmp_path / "bundle", times(1, 10, 50), 0, 0
    for _ in range(rounds):
        answers = crowd(target, 16, wait=0, held=0.5)
        assert {code for _, code in answers} <= {0, 75}
        busy = [text for text, code in answers if code == 75]
        assert busy and all("is being written by" in text and "\n" not in text.strip() for text in busy)
        built, told = built + 16 - len(busy), told + len(busy)
        assert (target / "manifest.json").read_text() == (target / "x.data").read_text()
    waiting = crowd(target, 6, wait=60, held=0)
    assert [code for _, code in waiting] == [0] * 6
    figure(12, f"16 builders of one target, {rounds} round(s): {built} built in turn, {told} left with 75; "
               "6 that wait all built")  # fmt: skip


def test_the_lock_of_a_dead_builder_is_free_at_once(tmp_path, figure):
    target = tmp_path / "bundle"
    command = [sys.executable, "-c", WRITER, str(target), "0", "x", "600"]
    with subprocess.Popen(command) as child:
        while not list(tmp_path.glob(".bundle.stage-*")):
            time.sleep(0.01)
        child.kill()
    start = time.perf_counter()
    with publishing(target) as stage:
        (stage / "manifest.json").write_text("y")
    seconds = time.perf_counter() - start
    figure(12, f"the lock of a builder killed with -9 is taken over, and its stage removed, in {seconds:.2f} s")
    assert resident(target) == target and not list(tmp_path.glob(".bundle.stage-*"))


BUILDER = """
import os, sys
from pathlib import Path
from sana_export.build import build
from sana_export.precision import Precision
folder, target = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()  # the libraries are loaded once, before any of them started a thread
    if child == 0:
        build(folder, target, Precision.FP32, resume=True)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


whole_builds = pytest.mark.skipif(
    os.environ.get("SANA_TRUST") is None, reason="whole builds take minutes; `make trust` does them"
)


@whole_builds
def test_a_build_that_is_killed_and_resumed_ends_with_the_same_digest(
    built, tmp_path, killed_again_and_again, times, figure
):
    """The target is absent or whole after every kill; what a resumed build makes has the digest of an unbroken one."""
    sana, target, generator, kills = built("sana"), tmp_path / "bundle", random.Random(53), times(2, 20, 200)
    digest, finished = open_bundle(sana.path).digest, 0
    command = [sys.executable, "-c", BUILDER, str(sana.folder), str(target)]
    for code in killed_again_and_again(command, kills, generator, 6.0):
        assert target.exists() == (code == 0)
        if code == 0:
            finished += 1
            assert open_bundle(target).digest == digest
            shutil.rmtree(target)
    left = [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")]
    figure(8, f"{kills} kills during builds: {kills + 1 - finished} died, {finished} ended with the same digest")
    figure(11, f"resumed after {kills} kills at random: the digest of an unbroken build; {len(left)} things left over")
    assert finished and left == []


CROWD = """
import os, sys
from pathlib import Path
from sana_export.build import build
from sana_export.precision import Precision
from sana_runtime.errors import SanaError
children = []
for _ in range(16):
    child = os.fork()
    if child == 0:
        try:
            build(Path(sys.argv[1]), Path(sys.argv[2]), Precision.FP32)
        except SanaError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(error.exit_code)
        os._exit(0)
    children.append(child)
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@whole_builds
def test_of_sixteen_whole_builds_of_one_target_one_builds_and_the_others_are_told_who(built, tmp_path, figure):
    sana, target = built("sana"), tmp_path / "bundle"
    command = [sys.executable, "-c", CROWD, str(sana.folder), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    codes = [int(code) for code in done.stdout.split()]
    assert len(codes) == 16 and set(codes) == {0, 75}
    assert done.stderr.count("is being written by process") == codes.count(75)
    assert open_bundle(target).digest == open_bundle(sana.path).digest
    left = [path.name for path in tmp_path.iterdir() if path != target and not path.name.endswith(".lock")]
    figure(12, f"16 whole builds of one target at once: {codes.count(0)} built, {codes.count(75)} left with 75, "
               f"{len(left)} things left over")  # fmt: skip
    assert codes.count(0) == 1 and not left


ONCE = """
import os, sys
from pathlib import Path
from sana_export.build import build
from sana_export.precision import Precision
os.umask(int(sys.argv[3], 8))
print(build(Path(sys.argv[1]), Path(sys.argv[2]), Precision.FP32).digest)
"""
PLACES = {
    "022": {"OMP_NUM_THREADS": "1", "TZ": "UTC", "LC_ALL": "C", "PYTHONHASHSEED": "0"},
    "077": {"OMP_NUM_THREADS": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "4242"},
}


@whole_builds
def test_builds_in_other_surroundings_have_the_same_digest(built, tmp_path, figure):
    """As near to two machines as one comes: other threads, time zone, locale, order of hashes, rights and folder."""
    digests = {open_bundle(built("sana").path).digest}
    for umask, surroundings in PLACES.items():
        command = [sys.executable, "-c", ONCE, str(built("sana").folder), str(tmp_path / umask / "bundle"), umask]
        environment = {**os.environ, **surroundings}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        digests.add(done.stdout.split()[-1])
    figure(18, f"{1 + len(PLACES)} builds with other threads, time zones, locales, hash seeds, rights and folders: "
               f"{len(digests)} digest(s)")  # fmt: skip
    assert len(digests) == 1


@whole_builds
def test_a_name_with_pattern_letters_does_not_remove_a_neighbours_parts(built, tmp_path):
    from sana_export.build import build
    from sana_export.precision import Precision

    neighbour = tmp_path / ".another.parts-0123456789ab"
    neighbour.mkdir()
    build(built("sana").folder, tmp_path / "a*", Precision.FP32)
    assert neighbour.is_dir()
