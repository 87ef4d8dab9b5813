"""Build an engine in a process of its own, with progress, and stop it at once when asked."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sana_runtime.errors import BackendError

from sana_export.engines.complaints import complaint, death, disk_trouble
from sana_export.engines.job import BuildProgress, BuiltEngine, EngineJob
from sana_export.engines.phases import Phases

__all__ = ["OnBuildProgress", "build_engine"]

OnBuildProgress = Callable[[BuildProgress], None]
START = "sana_export.engines.start" if sys.platform == "linux" else "sana_export.engines.worker"
COMMAND = (sys.executable, "-m", START)
OUTCOME = ("bytes", "seconds", "cpu_seconds", "peak_memory")
BEAT = 0.5  # seconds between two reports
PATIENCE = 0.6  # seconds in which a cancelled build ends, or is ended


def build_engine(job: EngineJob, on_progress: OnBuildProgress = lambda progress: None) -> BuiltEngine:
    """Build `job.output`. What `on_progress` raises, and Ctrl-C, stop the build and leave no file."""
    done = False
    try:
        with _worker(job) as process:
            outcome = _outcome(job, process, on_progress)
        done = True
    finally:
        if not done:
            job.output.unlink(missing_ok=True)
    return BuiltEngine(job.output, **{field: outcome[field] for field in OUTCOME})


def _outcome(job: EngineJob, process: "subprocess.Popen[str]", on_progress: OnBuildProgress) -> dict[str, Any]:
    """What the worker says it built; raises what it failed of."""
    phases = Phases()
    for event in _events(process):
        kind = event.get("event")
        if kind == "phase":
            phases.begin(event["name"])
        elif kind == "step":
            phases.step()
        elif kind == "beat":
            on_progress(BuildProgress(job.part, *phases.now()))
        elif kind == "failed":
            raise complaint(job, event["errors"])
        elif kind == "refused":
            raise BackendError(event["message"])
        elif kind == "unwritten":
            raise disk_trouble(job, event["number"], event["message"])
        elif kind == "crashed":
            raise RuntimeError(event["traceback"])
        elif kind == "built":
            return event
    raise death(job, process.wait())


def _events(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    """What the worker says until it ends, and every so often that time has passed."""
    assert process.stdout
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_hand_over, args=(process.stdout, lines), daemon=True).start()
    due = time.monotonic()
    while True:
        try:
            line = lines.get(timeout=max(0.0, due - time.monotonic()))
        except queue.Empty:
            due = time.monotonic() + BEAT
            yield {"event": "beat"}
            continue
        if line is None:
            return
        yield _event(line)


def _hand_over(stream: Iterable[str], lines: "queue.Queue[str | None]") -> None:
    """Put every line, and None for the end."""
    with contextlib.suppress(ValueError):  # closed while we read: the build was stopped
        for line in stream:
            lines.put(line)
    lines.put(None)


@contextlib.contextmanager
def _worker(job: EngineJob) -> Iterator["subprocess.Popen[str]"]:
    """A process that builds; it does not outlive the block, nor its parent."""
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what matters of it comes through the log
        text=True,
        start_new_session=True,  # Ctrl-C reaches us, and we end the worker
    )
    try:
        with contextlib.suppress(BrokenPipeError):  # it is dead already: its output tells
            assert process.stdin
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
        yield process
    finally:
        _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """Close its input, which stops it; after a moment, stop it for good."""
    assert process.stdin and process.stdout
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _event(line: str) -> dict[str, Any]:
    """A line of ours, or nothing: libraries print, too."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
