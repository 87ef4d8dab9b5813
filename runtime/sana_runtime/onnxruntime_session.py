"""Graphs through onnxruntime: portable, and the way to its GPU providers."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from sana_runtime.bfloat16 import widened
from sana_runtime.errors import BackendError, MemoryLimitError
from sana_runtime.in_place import in_place
from sana_runtime.rules import printable
from sana_runtime.session import Arrays, Device, Interrupted, SessionOptions, contiguous
from sana_runtime.unreported import declining

with declining("ORT_DISABLE_TELEMETRY"):  # or since 1.29 it sends names and digests of graphs, and marks the machine
    import onnxruntime as ort

ort.disable_telemetry_events()  # what Windows builds leave to the system

__all__ = ["OnnxruntimeSession"]

PROVIDERS = {
    Device.ONNXRUNTIME: "CPUExecutionProvider",
    Device.CUDA: "CUDAExecutionProvider",
    Device.DIRECTML: "DmlExecutionProvider",
    Device.WEBGPU: "WebGpuExecutionProvider",
}
PACKAGES = {
    Device.CUDA: "onnxruntime-gpu",
    Device.DIRECTML: "onnxruntime-directml",
    Device.WEBGPU: "onnxruntime-webgpu",
}

# It joins MatMul and Add before it looks for quantised products, so every INT8 layer with a bias would run in float.
HARMFUL_OPTIMIZERS = ["MatMulAddFusion"]

# For parts that read each weight once: nothing is packed, and planning which tensors share memory takes longer than it
# saves. Threads that wait do not take turns at the cores, since other parts are being loaded beside.
IN_PLACE = {"session.disable_prepacking": "1", "session.intra_op.allow_spinning": "0"}
BESIDE = "session.model_external_initializers_file_folder_path"


def _session_options(options: SessionOptions) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # errors are raised; the log would print a stranger's names as they are
    settings.intra_op_num_threads = options.threads
    settings.enable_mem_pattern = False  # shapes change from call to call
    if options.in_place:
        settings.enable_mem_reuse = False
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        for name, value in IN_PLACE.items():
            settings.add_session_config_entry(name, value)
    return settings


def _content(
    graph: Path, settings: ort.SessionOptions, options: SessionOptions
) -> tuple[Path | bytes, list[ort.OrtValue]]:
    """What to load on the CPU: a graph of bfloat16 in fp32, with its weights, which must outlive the session."""
    if options.in_place:
        settings.add_session_config_entry(BESIDE, str(graph.parent))
        return in_place(graph) or graph, []
    wide = widened(graph)
    if wide is None:
        return graph, []
    content, weights = wide
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    settings.add_external_initializers(list(weights), values)
    return content, values


class OnnxruntimeSession:
    """One graph on one provider, never silently on another."""

    def __init__(self, graph: Path, device: Device, options: SessionOptions) -> None:
        provider = PROVIDERS[device]
        if provider not in ort.get_available_providers():
            raise BackendError(
                f"{device.value}: this onnxruntime has no {provider}; "
                f"install {PACKAGES[device]} in an environment of its own, or choose --device cpu"
            )
        try:
            settings = _session_options(options)
            content, self._weights = _content(graph, settings, options) if device is Device.ONNXRUNTIME else (graph, [])
            self._session = ort.InferenceSession(
                content,
                settings,
                providers=[provider],
                disabled_optimizers=HARMFUL_OPTIMIZERS,
                enable_fallback=0,
            )
        except Exception as error:  # onnxruntime has no public base class for its errors
            raise _translated(error, f"{graph.name}: onnxruntime does not load it") from error
        if self._session.get_providers()[0] != provider:
            raise BackendError(f"{device.value}: {provider} does not start here; choose --device cpu")
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._run_options: ort.RunOptions | None = None
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Every output by name; raises `Interrupted` when `interrupt` was called meanwhile."""
        options = ort.RunOptions()
        with self._lock:
            self._run_options = options
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, contiguous(feeds), options), strict=True))
        except Exception as error:  # onnxruntime has no public base class for its errors
            if options.terminate:
                raise Interrupted("the run was cancelled") from None
            raise _translated(error, "onnxruntime stopped") from error
        finally:
            with self._lock:
                self._run_options = None

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Nothing: it was done when the session was opened."""

    def interrupt(self) -> None:
        """Stop the run that is under way, from any thread; does nothing when none is."""
        with self._lock:
            if self._run_options is not None:
                self._run_options.terminate = True


def _translated(error: Exception, what: str) -> BackendError | MemoryLimitError:
    """One line out of onnxruntime's message."""
    why = printable(str(error))
    if "alloc" in why.lower() or isinstance(error, MemoryError):
        return MemoryLimitError(f"{what}: not enough memory ({why}); try a smaller size or fewer pictures")
    return BackendError(f"{what}: {why}")
