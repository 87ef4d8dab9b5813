"""Graphs on the CPU through OpenVINO, the fastest engine there."""

import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset14 as op
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension

from sana_runtime.errors import BackendError, MemoryLimitError
from sana_runtime.session import Arrays, Interrupted, SessionOptions, contiguous

__all__ = ["OpenVinoSession"]


def _swap_tokens_and_heads(tensor: ov.Output) -> ov.Output:
    return op.transpose(tensor, op.constant(np.array([0, 2, 1, 3], np.int64))).output(0)


def _relu_linear_attention(node: NodeContext) -> list[ov.Output]:
    """`sana::ReluLinearAttention` in OpenVINO's own operations; q, k and v are (B, N, H, D).

    OpenVINO does not read functions that an ONNX file brings along, so this repeats the file's own body.
    """
    query, key, value = (_swap_tokens_and_heads(op.convert(node.get_input(i), "f32").output(0)) for i in range(3))
    query, key = op.relu(query), op.relu(key)
    key_value = op.matmul(key, value, True, False)
    key_sum = op.reduce_sum(key, op.constant(np.array([2], np.int64)), True)
    weight = op.add(op.matmul(query, key_sum, False, True), op.constant(np.float32(1e-15)))
    mixed = op.divide(op.matmul(query, key_value, False, False), weight)
    return [op.convert_like(_swap_tokens_and_heads(mixed.output(0)), node.get_input(0)).output(0)]


@cache
def _core() -> ov.Core:
    core = ov.Core()
    core.add_extension(ConversionExtension("ReluLinearAttention", "sana", _relu_linear_attention))
    return core


def _properties(options: SessionOptions) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if options.half_products else "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # only what the graph says is quantised
    }
    if options.threads:
        properties["INFERENCE_NUM_THREADS"] = options.threads
    return properties


def _keep_whole_numbers(model: ov.Model) -> ov.Model:
    """Take inputs that the graph makes whole at once as whole numbers: bfloat16 would first round 999 to 1000."""
    for parameter in model.get_parameters():
        readers = [target.get_node() for target in parameter.output(0).get_target_inputs()]
        kinds = {
            node.output(0).get_element_type() if node.get_type_name() == "Convert" else None
            for node in readers
            if node.get_type_name() != "ShapeOf"
        }
        if kinds == {ov.Type.i64}:
            parameter.set_element_type(ov.Type.i64)
    model.validate_nodes_and_infer_types()
    return model


class OpenVinoSession:
    """One graph compiled for this CPU."""

    def __init__(self, graph: Path, options: SessionOptions) -> None:
        try:
            model = _keep_whole_numbers(_core().read_model(graph))
            compiled = _core().compile_model(model, "CPU", _properties(options))
        except RuntimeError as error:
            raise _translated(error, f"{graph.name}: OpenVINO does not load it") from error
        self._whole = {each.get_any_name() for each in compiled.inputs if each.get_element_type() == ov.Type.i64}
        self._outputs = [output.get_any_name() for output in compiled.outputs]
        self._request = compiled.create_infer_request()
        self._running = threading.Event()
        self._interrupted = threading.Event()

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Every output by name; raises `Interrupted` when `interrupt` was called meanwhile."""
        self._interrupted.clear()
        self._running.set()
        try:
            whole = {name: feeds[name].astype(np.int64) for name in self._whole & feeds.keys()}
            self._request.start_async(contiguous({**feeds, **whole}), share_inputs=True)
            self._request.wait()
        except RuntimeError as error:
            if self._interrupted.is_set():
                raise Interrupted("the run was cancelled") from None
            raise _translated(error, "OpenVINO stopped") from error
        finally:
            self._running.clear()
        return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}

    def interrupt(self) -> None:
        """Stop the run that is under way, from any thread; does nothing when none is."""
        if self._running.is_set():
            self._interrupted.set()
            self._request.cancel()


def _translated(error: RuntimeError, what: str) -> BackendError | MemoryLimitError:
    """OpenVINO reports everything as RuntimeError, with pages of text; keep the one line that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = next((line for line in reversed(lines) if not line.startswith("Exception from")), "no reason given")
    if "alloc" in why.lower() or "memory" in why.lower():
        return MemoryLimitError(f"{what}: not enough memory ({why}); try a smaller size or fewer pictures")
    return BackendError(f"{what}: {why}")
