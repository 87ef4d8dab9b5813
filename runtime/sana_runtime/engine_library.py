"""TensorRT-RTX and TensorRT at run time: load a trusted engine and make it ready. Their interfaces agree.

The only door to both. What they log is kept, because it is the only reason they give when they refuse.
"""

import importlib
import importlib.metadata
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from sana_runtime.errors import BackendError, MemoryLimitError, SanaError
from sana_runtime.session import Device

__all__ = ["PLUGINS", "EngineLibrary", "LoadedEngine", "error_log", "library_for"]

PLUGINS = "sana_runtime.engine_plugins"  # entry points: functions that register a plugin with the module they are given
HEADER = 64
TITLES = {Device.RTX: "TensorRT-RTX", Device.TENSORRT: "TensorRT"}
MODULES = {Device.RTX: "tensorrt_rtx", Device.TENSORRT: "tensorrt"}
REBUILD = "build it again with `sana-export engine`"
OTHERWISE = "or choose --device cpu"

# Why an engine is refused before it is read, most telling first.
DIAGNOSES = (
    ("VERSION_MISMATCH", f"the engine is of another version of {{library}}; {REBUILD}"),
    ("UNSUPPORTED_CC", f"the engine is for other cards than this one; {REBUILD}"),
    ("OLD_CUDA_DRIVER", f"the NVIDIA driver is too old for {{library}}; update it, {OTHERWISE}"),
    ("OLD_CUDA_RUNTIME", f"the CUDA runtime is too old for {{library}}; update the driver, {OTHERWISE}"),
    ("INSUFFICIENT_GPU_MEMORY", f"the card has too little memory for the engine; use a smaller model, {OTHERWISE}"),
    ("MALFORMED_ENGINE", f"the engine is damaged; {REBUILD}"),
    ("CUDA_ERROR", f"{{library}} cannot reach the card; update the driver, {OTHERWISE}"),
)


@dataclass(frozen=True)
class LoadedEngine:
    """An engine on the card, and how to run it."""

    engine: Any
    context: Any
    jit_cache: Any | None  # kernels compiled for this card, where the library keeps them apart
    captures_graphs: bool  # whether the library makes CUDA graphs by itself
    streams: bool = False  # whether weights come to the card while it runs


class EngineLibrary:
    """One of the two libraries."""

    def __init__(self, module: Any, title: str) -> None:
        self.module = module
        self.title = title
        self._log = error_log(module)
        self._runtime: Any | None = None

    def load(self, plan: bytes, jit_cache: bytes | None = None) -> LoadedEngine:
        """Put a trusted engine on the current card; `jit_cache` is what an earlier run compiled for it."""
        self._log.lines.clear()
        runtime = self._started()
        self._check(runtime, plan)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._refusal("does not load the engine")
        streams = self._stream(engine)
        settings = engine.create_runtime_config()
        compiled = self._compiled(settings, jit_cache)
        captures = self._prefer_graphs(settings, not streams)
        context = engine.create_execution_context(settings)
        if context is None:
            raise self._refusal("does not make the engine ready")
        return LoadedEngine(engine, context, compiled, captures, streams)

    def failure(self, what: str) -> SanaError:
        """The error for a call of the library that failed, with the reason that it logged."""
        return self._refusal(what)

    def register_plugins(self) -> None:
        """Make the plugins that are installed known; an engine without any needs none."""
        for entry in entry_points(group=PLUGINS):
            try:
                entry.load()(self.module, parsing=False)
            except (RuntimeError, ImportError) as error:
                raise BackendError(f"{self.title}: the plugin {entry.name} does not register ({error})") from error

    def _started(self) -> Any:
        if self._runtime is None:
            self.register_plugins()
            runtime = self.module.Runtime(self._log)
            runtime.engine_host_code_allowed = False  # an engine runs on the card, nothing of it on this side
            self._runtime = runtime
        return self._runtime

    def _check(self, runtime: Any, plan: bytes) -> None:
        """Refuse by the header what the library would refuse later, or worse, take."""
        if not hasattr(runtime, "get_engine_validity"):
            return
        validity, reasons = runtime.get_engine_validity(plan[:HEADER])
        if validity != self.module.EngineValidity.INVALID:
            return
        for name, sentence in DIAGNOSES:
            if int(reasons) & int(getattr(self.module.EngineInvalidityDiagnostics, name)):
                text = sentence.format(library=self.title)
                raise MemoryLimitError(text) if name == "INSUFFICIENT_GPU_MEMORY" else BackendError(text)
        raise self._refusal("refuses the engine")

    def _compiled(self, settings: Any, kept: bytes | None) -> Any | None:
        """The library's cache of compiled kernels, filled with what was kept; one that no longer fits is left out."""
        if not hasattr(settings, "create_runtime_cache"):
            return None
        compiled = settings.create_runtime_cache()
        if kept is not None:
            compiled.deserialize(kept)
        settings.set_runtime_cache(compiled)
        return compiled

    def _stream(self, engine: Any) -> bool:
        """Keep those weights off the card that it has no room for, of an engine that was built so; whether any are."""
        weights = getattr(engine, "streamable_weights_size", 0)  # 0 unless it was built so
        if not weights:
            return False
        room = engine.get_weight_streaming_automatic_budget()
        engine.weight_streaming_budget_v2 = min(room, weights)
        if room < weights:
            warnings.warn(
                f"{(weights - room) / 1e9:.2f} of {weights / 1e9:.2f} GB of weights stay off the card and come to it "
                "in every run, which is slower; close other programs that use the card",
                RuntimeWarning,
                stacklevel=2,
            )
        return bool(room < weights)

    def _prefer_graphs(self, settings: Any, graphs: bool) -> bool:
        """Ask for CUDA graphs, and for kernels that do not change between runs: the same pixels every time."""
        if not hasattr(settings, "cuda_graph_strategy"):
            return False
        strategies = self.module.CudaGraphStrategy
        settings.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED
        eager = self.module.DynamicShapesKernelSpecializationStrategy.EAGER
        settings.dynamic_shapes_kernel_specialization_strategy = eager
        return True

    def _refusal(self, what: str) -> SanaError:
        reason = next(reversed(self._log.lines), "it gives no reason")
        text = " ".join(reason.split())[:300]
        if "memory" in text.lower():
            return MemoryLimitError(f"{self.title} {what}: the card's memory is full ({text}); try a smaller size")
        return BackendError(f"{self.title} {what} ({text}); {REBUILD}, {OTHERWISE}")


@cache
def library_for(device: Device) -> EngineLibrary:
    """The library of this device; one object for each, because its first logger is its logger for good."""
    try:
        module = importlib.import_module(MODULES[device])
    except ImportError as error:
        raise BackendError(
            f'{device.value}: {TITLES[device]} is not installed; pip install "sana-export[{device.value}]", {OTHERWISE}'
        ) from error
    return EngineLibrary(module, TITLES[device])


def error_log(module: Any) -> Any:
    """A logger of the library `module` that keeps the errors, in `lines`; the first of a process is its only one."""

    class Log(module.ILogger):  # type: ignore[misc]
        """Keeps what went wrong."""

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.ERROR:
                self.lines.append(message)

    return Log()
