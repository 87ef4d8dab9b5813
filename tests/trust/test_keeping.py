"""What is kept between runs, an hour of calibration or an engine, is the old or the new, whatever happens."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sana_calibration.recording_state import load_state, save_state
from sana_calibration.remembering import recall, remember
from sana_calibration.statistics import EDGES, TokenStatistics
from sana_runtime.bundle import open_bundle
from sana_runtime.engine_cache import EngineCache, EngineKey
from sana_runtime.errors import BackendError, SanaError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills, forks and limits as POSIX systems do")
KEY = EngineKey("decoder", "0" * 64, "tensorrt", "1.7", (89,), "fp16", "1" * 64, False)
CHANNELS, PRODUCTS, RESULTS = 64, 8, 2000


class Recording:
    """The statistics of a recording after `number` prompts, each of them that number."""

    def write(self, folder, number):
        shapes = {"largest": (CHANNELS,), "kept": (4, CHANNELS)}
        arrays = {kind: np.full(shape, number, np.float32) for kind, shape in shapes.items()}
        counts = np.full((CHANNELS, len(EDGES)), number, np.uint32)
        tokens = TokenStatistics(counts=counts, seen=number, **arrays)
        save_state(folder / "recording.npz", "key", number, {str(i): tokens for i in range(PRODUCTS)})

    def read(self, folder):
        """The number, which every array has to agree on; None when there is nothing to go on from."""
        found = load_state(folder / "recording.npz", "key")
        if found is None:
            return None
        number, tokens = found
        assert len(tokens) == PRODUCTS
        for each in tokens.values():
            assert all((array == number).all() for array in each.arrays().values())
        return number


class Finding:
    """What a stage of calibration found out."""

    def write(self, folder, number):
        remember(folder / "effects.json", "key", {str(i): number for i in range(RESULTS)})

    def read(self, folder):
        found = recall(folder / "effects.json", "key")
        if found is None:
            return None
        (number,) = set(found.values())
        assert len(found) == RESULTS
        return number


class Engine:
    """A built engine."""

    def write(self, folder, number):
        EngineCache(folder / "engines", folder / "key").store(KEY, number.to_bytes(4, "little") * 50_000)

    def read(self, folder):
        found = EngineCache(folder / "engines", folder / "key").load(KEY)
        if found is None:
            return None
        assert len(found) == 200_000 and found == found[:4] * 50_000
        return int.from_bytes(found[:4], "little")


KEPT = [Recording(), Finding(), Engine()]
every_kind = pytest.mark.parametrize("kept", KEPT, ids=lambda kept: type(kept).__name__.lower())


@every_kind
def test_killed_while_keeping_what_was_found_the_last_or_the_next_is_there(
    kept, tmp_path, killed_while, paced, times, figure
):
    kills, generator, number, lost = times(15, 200, 500), random.Random(54), 1, 0
    kept.write(tmp_path, number)
    longest = 6 * paced(lambda: kept.write(tmp_path, 1))

    def write_on(first):
        for next_number in range(first, first + 1000):
            kept.write(tmp_path, next_number)

    for _ in range(kills):
        killed_while(lambda first=number + 1: write_on(first), generator, longest)
        found = kept.read(tmp_path)
        lost += found is None or found < number
        number = max(number, found or 0)
    figure(8, f"{kills} kills while keeping a {type(kept).__name__.lower()}: {lost} lost or mixed")
    assert not lost and number > 1


@every_kind
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=["input and output", "disk full"])
def test_whichever_call_fails_while_keeping_the_old_or_the_new_is_there(
    kept, code, tmp_path, monkeypatch, failing_calls, figure
):
    fail_at = 0
    while True:
        fail_at += 1
        kept.write(tmp_path, 1)
        with monkeypatch.context() as patch:
            failing = failing_calls(patch, fail_at, code)
            try:
                kept.write(tmp_path, 2)
            except (SanaError, OSError) as error:
                assert "\n" not in str(error)
        if failing.calls < fail_at:
            break
        assert kept.read(tmp_path) in (1, 2)
    kind = type(kept).__name__.lower()
    figure(9, f"each of {failing.calls} system calls of keeping a {kind} failed ({errno.errorcode[code]}): old or new")
    assert failing.calls >= 3


@every_kind
def test_a_disk_that_fills_up_while_keeping_leaves_the_old(kept, tmp_path, times, figure):
    """Files may have so many bytes and no more; a child bears the limit."""
    import resource

    kept.write(tmp_path, 1)
    largest = max(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    sizes, full = times(5, 60, 60), 0
    for limit in np.linspace(16, largest + 2000, sizes).astype(int):
        kept.write(tmp_path, 1)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
            try:
                kept.write(tmp_path, 2)
            except (SanaError, OSError):
                os._exit(4)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert kept.read(tmp_path) == {4: 1, 0: 2}[status]
        full += status == 4
    figure(10, f"disk full at {sizes} sizes while keeping a {type(kept).__name__.lower()}: {full} left the old")
    assert 0 < full < sizes


@every_kind
def test_a_flipped_bit_or_a_cut_in_what_was_kept_is_noticed(kept, tmp_path, times, figure):
    """Nothing is found, and made again: never a traceback, and never other numbers."""
    kept.write(tmp_path, 1)
    file = max((file for file in tmp_path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    whole, generator, tried, missed = file.read_bytes(), random.Random(57), times(150, 5000, 50_000), 0
    edges = [*range(8 * 400), *range(8 * (len(whole) - 400), 8 * len(whole))]  # where names and lengths stand
    for i in range(tried):
        bit = generator.choice(edges) if i % 2 else generator.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged if i % 10 else whole[: bit // 8])
        file.chmod(0o600)
        missed += kept.read(tmp_path) not in (None, 1)
    figure(4, f"{tried} flipped bits and cuts in a kept {type(kept).__name__.lower()}: {missed} missed")
    assert not missed


def test_a_process_that_may_open_no_more_files_does_not_throw_its_engines_away(tmp_path, monkeypatch):
    Engine().write(tmp_path, 1)

    def refuse(*arguments, **named):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(BackendError, match="try again"):
            Engine().read(tmp_path)
    assert Engine().read(tmp_path) == 1


CALIBRATOR = """
import os, sys
from pathlib import Path
from sana_export.quantising import Int8Settings, calibrate
source, target = Path(sys.argv[1]), Path(sys.argv[2])
settings = Int8Settings(Path(sys.argv[3]), samples=2, force=True)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()  # the libraries are loaded once, before any of them started a thread
    if child == 0:
        calibrate(source, target, settings)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(os.environ.get("SANA_TRUST") is None, reason="takes many minutes; `make trust` does it")
def test_a_calibration_that_is_killed_anywhere_goes_on_and_ends_with_a_whole_bundle(
    built, tmp_path, killed_again_and_again, times, figure
):
    target, generator, kills = tmp_path / "bundle", random.Random(55), times(2, 50, 200)
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    command = [sys.executable, "-c", CALIBRATOR, str(built("sana").path), str(target), str(tmp_path / "prompts.txt")]
    home = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    digests, finished = set(), 0
    for code in killed_again_and_again(command, kills, generator, 20.0, home):
        assert target.exists() == (code == 0)
        if code == 0:
            finished += 1
            open_bundle(target).verify()
            digests.add(transformer_of(target))
            shutil.rmtree(target)
            shutil.rmtree(tmp_path / "cache")  # the next one begins anew
    left = [path.name for path in tmp_path.glob(".bundle.*") if not path.name.endswith(".lock")]
    figure(8, f"{kills} kills during calibration: {kills + 1 - finished} died, {finished} ended with "
              f"{len(digests)} INT8 transformer(s), {len(left)} things left over")  # fmt: skip
    assert len(digests) == 1 and not left


def test_what_the_process_of_a_killed_builder_still_writes_is_in_nobodys_way(tmp_path):
    """It lives a moment longer than who asked it; the next builder may be there by then."""
    from sana_export.engines.bundle import _workplace

    cache = EngineCache(tmp_path / "engines", tmp_path / "key")
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with _workplace(cache, KEY) as folder:
            os.write(tell, os.fsencode(folder))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    old = Path(os.fsdecode(os.read(told, 4096)))
    with _workplace(cache, KEY) as folder:
        with pytest.raises(FileNotFoundError):
            (old / KEY.file).open("xb")
        assert [path.name for path in cache.folder.glob("*building*")] == [folder.name]
    assert not list(cache.folder.glob("*building*"))


ENGINEER = """
import sys
from pathlib import Path
from sana_export.engines.bundle import EngineRequest, build_engines
from sana_runtime.bundle import open_bundle
from sana_runtime.engine_cache import EngineCache
folder = Path(sys.argv[2])
cache = EngineCache(folder / "engines", folder / "key", note=print)
(made,) = build_engines(open_bundle(sys.argv[1]), EngineRequest((89,), parts=("caption",)), cache)
print(made.path.name)
"""


@pytest.mark.skipif(os.environ.get("SANA_TRUST") is None, reason="takes many minutes; `make trust` does it")
def test_the_builder_of_an_engine_that_is_killed_leaves_nothing_or_the_whole(built, tmp_path, times, figure):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    kills, generator, whole, start = times(2, 50, 200), random.Random(56), 0, time.perf_counter()
    command = [sys.executable, "-c", ENGINEER, str(built("sana").path), str(tmp_path)]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    longest, entry = time.perf_counter() - start, tmp_path / "engines" / name
    cache = EngineCache(entry.parent, tmp_path / "key")
    (kept,) = cache.entries()
    seen = {cache.load(kept.key)}
    for _ in range(kills):
        entry.unlink(missing_ok=True)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
            start = time.perf_counter()
            try:
                child.wait(generator.uniform(0.3, 1.1) * longest)
                longest = time.perf_counter() - start  # it was done before: the next ones may live no longer
            except subprocess.TimeoutExpired:
                child.kill()
        if entry.exists():  # signed when it was whole; beside other work its maker writes it in one of several orders
            whole += 1
            seen.add(cache.load(kept.key))
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    left = [
        path.name for path in entry.parent.iterdir() if path != entry and not path.name.endswith((".lock", ".part"))
    ]
    figure(8, f"{kills} kills while building an engine: {whole} whole, {kills - whole} none, then built again; "
              f"{len(left)} things left over")  # fmt: skip
    assert None not in seen and len({len(each) for each in seen}) == 1
    assert last.split() == [name] and not left


def transformer_of(bundle):
    """Digests of the INT8 graph and its weights; the report holds times, which are never the same."""
    files = open_bundle(bundle).manifest.files
    return files["transformer.onnx"].sha256, files["transformer.data"].sha256
