"""Two processes export the parts that one would; whatever happens to either, both end and nothing half is left."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise

import psutil
import pytest
from sana_reference.checkpoint import load_checkpoint
from sana_runtime.errors import BackendError, CheckpointError, MemoryLimitError, UsageError
from sana_runtime.prompt import PromptRules
from sana_runtime.tokenizer import Tokenizer

from sana_export import build as building
from sana_export import side_by_side
from sana_export.precision import Precision
from sana_export.side_by_side import export_side_by_side

PARTS = ("text_encoder", "caption")
HALF_WAY = """
import json, pathlib, sys, time
from sana_export.child import say, stop_with_input
job = json.loads(sys.stdin.readline())
stop_with_input()
folder = pathlib.Path(job["folder"])
(folder / ".text_encoder.onnx.partial").mkdir()
(folder / "text_encoder.data").write_bytes(b"half")
say(event="progress", fraction=0.9, message="writing")
"""
FAILING = """
from sana_export import side_by_side
def fail(job):
    raise {error}
side_by_side._export = fail
side_by_side.main()
"""


@pytest.fixture
def instead(monkeypatch):
    """Let the other process run another program."""
    return lambda program: monkeypatch.setattr(side_by_side, "COMMAND", (sys.executable, "-c", program))


@pytest.fixture
def exported(built, tmp_path):
    """Export `parts` of a small model side by side into an empty folder."""
    checkpoint = load_checkpoint(built("sana").folder)

    def export(*parts, on_progress=lambda progress: None, source=checkpoint):
        export_side_by_side(source, tmp_path, Precision.FP32, parts=parts, prefix=(2, 5, 6), on_progress=on_progress)

    export.checkpoint = checkpoint
    return export


def digests(folder, parts):
    files = (folder / f"{part}.{kind}" for part in parts for kind in ("onnx", "data"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_two_processes_write_the_files_of_one_and_keep_what_is_there(built, tmp_path, monkeypatch):
    sana, work, steps = built("sana"), tmp_path / "work", []
    work.mkdir()
    for part in ("transformer", "decoder", "encoder"):
        (work / f"{part}.onnx").write_bytes(b"kept")
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user, not of ours')")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(building, "goes_side_by_side", lambda *about: asked.append(about[2]) or True)
    monkeypatch.setattr(building, "export_parts", None)  # which this process must not use by itself
    checkpoint = load_checkpoint(sana.folder)
    rules = PromptRules.derive(Tokenizer(checkpoint.tokenizer))
    building._exported(checkpoint, Precision.FP32, rules, work, building._scaled(steps.append))
    assert asked == [list(PARTS)]
    assert digests(work, PARTS) == digests(sana.path, PARTS)
    assert (work / "decoder.onnx").read_bytes() == b"kept"
    assert sorted(path.name for path in work.iterdir() if path.name.startswith(".")) == []
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(0.8 * len(PARTS) / 5)
    assert {step.stage for step in steps} == set(PARTS)
    told = [step.message for step in steps if step.stage == "caption" or "writing" not in step.message]
    assert all(one != other for one, other in pairwise(told) if "writing" not in one)


def test_what_the_other_process_refuses_is_refused_here_in_its_words(exported, tmp_path):
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"half a file")
    text = replace(exported.checkpoint.text_part, files=(damaged,))
    source = replace(exported.checkpoint, text_part=text)
    with pytest.raises(CheckpointError) as here:
        source.text_encoder()
    with pytest.raises(CheckpointError) as there:
        exported("text_encoder", source=source)
    assert str(there.value) == str(here.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        ("OSError(28, 'No space left on device', 'x.data')", OSError, "x.data"),
        ("MemoryError", MemoryError, "^$"),
        ("ZeroDivisionError", RuntimeError, "(?s)Traceback.*ZeroDivisionError"),
    ],
)
def test_an_error_of_the_other_process_is_raised_here(error, raised, told, instead, exported):
    instead(FAILING.format(error=error))
    with pytest.raises(raised, match=told) as caught:
        exported("text_encoder")
    assert type(caught.value) is raised
    assert getattr(caught.value, "errno", errno.ENOSPC) == errno.ENOSPC


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX systems have them")
@pytest.mark.parametrize(
    ("end", "raised", "told"),
    [
        ("os.kill(os.getpid(), 9)", MemoryLimitError, "memory is full; close other programs .* --resume$"),
        ("os._exit(3)", BackendError, r"ended \(exit code 3\)"),
    ],
)
def test_another_process_that_ends_without_a_word_is_one_line_and_leaves_nothing(
    end, raised, told, instead, exported, tmp_path
):
    instead(f"{HALF_WAY}\nimport os; {end}")
    with pytest.raises(raised, match=told) as caught:
        exported("text_encoder")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_what_progress_raises_stops_both_sides_and_leaves_nothing(stop, instead, exported, tmp_path):
    def raise_when_writing(progress):
        if progress.message == "writing":
            raise stop

    instead(f"{HALF_WAY}\ntime.sleep(600)")
    before = set(psutil.Process().children())
    with pytest.raises(stop):
        exported("text_encoder", on_progress=raise_when_writing)
    assert set(psutil.Process().children()) == before
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_this_side_ends_the_other(instead, exported, tmp_path):
    instead(f"{HALF_WAY}\ntime.sleep(600)")
    before = set(psutil.Process().children())
    with pytest.raises(UsageError, match="not a part"):
        exported("text_encoder", "unet")
    assert set(psutil.Process().children()) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX systems do")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_the_other_process_ends_when_this_one_is_killed(sent):
    child = "import os, sys, time; from sana_export.child import say, stop_with_input; sys.stdin.readline()"
    child += "; stop_with_input(); say(pid=os.getpid()); time.sleep(600)"
    parent = f"""
import sys
from sana_export.child import working
with working((sys.executable, "-c", {child!r}), "{{}}") as worker:
    for event in worker.events(60):
        if "pid" in event:
            print(event["pid"], flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        other = psutil.Process(int(killed.stdout.readline()))
        killed.send_signal(sent)
    deadline = time.monotonic() + 20
    while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:  # a container may have nobody to reap it
        assert time.monotonic() < deadline
        time.sleep(0.02)
