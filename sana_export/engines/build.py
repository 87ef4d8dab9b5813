"""Build an engine in a process of its own, with progress, and stop it at once when asked."""

import sys
from collections.abc import Callable
from typing import Any

from sana_runtime.errors import BackendError

from sana_export.child import Worker, command_for, working
from sana_export.engines.complaints import complaint, death, disk_trouble
from sana_export.engines.job import BuildProgress, BuiltEngine, EngineJob
from sana_export.engines.phases import Phases

__all__ = ["OnBuildProgress", "build_engine"]

OnBuildProgress = Callable[[BuildProgress], None]
START = "sana_export.engines.start" if sys.platform == "linux" else "sana_export.engines.worker"
OUTCOME = ("bytes", "seconds", "cpu_seconds", "peak_memory")
BEAT = 0.5  # seconds between two reports


def build_engine(job: EngineJob, on_progress: OnBuildProgress = lambda progress: None) -> BuiltEngine:
    """Build `job.output`. What `on_progress` raises, and Ctrl-C, stop the build and leave no file."""
    done = False
    try:
        with working(command_for(START), job.to_json()) as worker:
            outcome = _outcome(job, worker, on_progress)
        done = True
    finally:
        if not done:
            job.output.unlink(missing_ok=True)
    return BuiltEngine(job.output, **{field: outcome[field] for field in OUTCOME})


def _outcome(job: EngineJob, worker: Worker, on_progress: OnBuildProgress) -> dict[str, Any]:
    """What the worker says it built; raises what it failed of."""
    phases = Phases()
    for event in worker.events(BEAT):
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
    raise death(job, worker.wait())
