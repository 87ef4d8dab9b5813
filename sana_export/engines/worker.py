"""Build one engine in a process of its own.

The library's parser ends its process at a plugin that it cannot load, its first logger is a process's logger for good,
and a build does not listen while it compiles. So a build has a process, which reads a job from the first line of its
standard input, stops when that input ends, and reports in JSON lines on standard output. It says what the library
does when the library does it, never by the clock: the same work in the same order asks for the same memory, and by the
addresses of that memory TensorRT-RTX 1.7 orders what it writes.
"""

import os
import sys
import threading
import time
import traceback
from typing import Any

from sana_runtime.engine_library import error_log
from sana_runtime.errors import SanaError

from sana_export.child import INTERRUPTED, say, stop_with_input
from sana_export.engines.adapt import adapted
from sana_export.engines.job import EngineJob
from sana_export.engines.library import Library, load_library

__all__ = ["main"]

GRACE = 0.3  # seconds that a cancelled build has to end by itself


def main() -> None:
    """Serve the job on standard input."""
    job, cancelled = EngineJob.from_json(sys.stdin.readline()), threading.Event()

    def cancel() -> None:
        cancelled.set()
        time.sleep(GRACE)

    stop_with_input(cancel)
    try:
        _serve(job, cancelled)
    except (SanaError, RuntimeError) as error:  # RuntimeError: the plugin's own errors are of that kind
        say(event="refused", message=" ".join(str(error).split()))
    except OSError as error:
        say(event="unwritten", number=error.errno, message=f"{error.filename or job.output}: {error.strerror or error}")
    except Exception:  # our own bug: whoever asked shall see it
        say(event="crashed", traceback=traceback.format_exc())


def _serve(job: EngineJob, cancelled: threading.Event) -> None:
    began = time.monotonic()
    trt = load_library(job.library)
    log = error_log(trt)
    engine = _built(trt, log, job, cancelled)
    if cancelled.is_set():
        os._exit(INTERRUPTED)
    if engine is None:
        say(event="failed", errors=log.lines)
        return
    with job.output.open("xb") as file:
        file.write(engine)
    times = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time()}
    say(event="built", **times, bytes=engine.nbytes, peak_memory=_peak_memory())


def _built(trt: Any, log: Any, job: EngineJob, cancelled: threading.Event) -> Any:
    """The engine, or None when the library refused; why is in the log."""
    if job.plugin:
        from sana_plugins.tensorrt.plugin import register

        register(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, job.library))
    parser = trt.OnnxParser(network, log)
    model = adapted(job)
    read = parser.parse_from_file(str(job.graph)) if model is None else parser.parse(model, str(job.graph))
    if not read:
        log.lines.extend(parser.get_error(i).desc() for i in range(parser.num_errors))
        return None
    settings = _settings(trt, builder, job)
    settings.progress_monitor = monitor = _monitor(trt, cancelled)
    try:
        return builder.build_serialized_network(network, settings)
    finally:
        del settings, monitor


def _network_flags(trt: Any, library: Library) -> int:
    """Types are taken from the graph: TensorRT-RTX knows nothing else, TensorRT is told."""
    strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if library is Library.RTX or strongly is None else 1 << int(strongly)


def _settings(trt: Any, builder: Any, job: EngineJob) -> Any:
    settings = builder.create_builder_config()
    settings.clear_flag(trt.BuilderFlag.TF32)  # fp32 products stand where 10 bits are too few
    if job.library is Library.RTX:
        settings.num_compute_capabilities = len(job.capabilities)
        for i, capability in enumerate(job.capabilities):
            settings.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), i)
    if job.streams:
        settings.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    profile = builder.create_optimization_profile()
    for name, shapes in job.profiles.items():
        profile.set_shape(name, *shapes)
    settings.add_optimization_profile(profile)
    return settings


def _monitor(trt: Any, cancelled: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Hands the library's phases on."""

        def phase_start(self, name: str, _parent: str | None, _steps: int) -> None:
            say(event="phase", name=name)

        def step_complete(self, _name: str, _step: int) -> bool:
            say(event="step")
            return not cancelled.is_set()

        def phase_finish(self, _name: str) -> None:
            """The next phase says it."""

    return Monitor()


def _peak_memory() -> int:
    """Bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
