"""Build an engine in a process of its own, with progress, and stop it at once when asked."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from sana_runtime.errors import BackendError

from sana_export.engines.complaints import complaint, death
from sana_export.engines.job import BuildProgress, BuiltEngine, EngineJob

__all__ = ["OnBuildProgress", "build_engine"]

OnBuildProgress = Callable[[BuildProgress], None]
START = "sana_export.engines.start" if sys.platform == "linux" else "sana_export.engines.worker"
COMMAND = (sys.executable, "-m", START)
OUTCOME = ("bytes", "seconds", "cpu_seconds", "peak_memory")
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
    assert process.stdout
    for event in map(_event, process.stdout):
        kind = event.get("event")
        if kind == "progress":
            on_progress(BuildProgress(job.part, event["fraction"], event["seconds_left"], event["message"]))
        elif kind == "failed":
            raise complaint(job, event["errors"])
        elif kind == "refused":
            raise BackendError(event["message"])
        elif kind == "crashed":
            raise RuntimeError(event["traceback"])
        elif kind == "built":
            return event
    raise death(job, process.wait())


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
