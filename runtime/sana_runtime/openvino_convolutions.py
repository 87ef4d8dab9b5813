"""Convolutions of float graphs as OpenVINO computes them in INT8, with a step that is found for each picture."""

import numpy as np
from numpy.typing import NDArray

from sana_runtime.openvino_graph import op, ov

__all__ = ["round_convolutions"]

LEVELS = 127
SMALLEST = np.float32(1e-12)  # step of a picture that is black, and of kernels that are nothing
STORED = (ov.Type.f32, ov.Type.f16)


def round_convolutions(model: ov.Model) -> int:
    """Bring the 3×3 convolutions that keep the number of channels into INT8; returns how many there are.

    Those are the residual blocks' of an autoencoder, nearly all that its upper stages compute. Kernels have a step for
    each output channel, pictures one for themselves, found while the graph runs: nothing has to be calibrated, and the
    graph in its file, which other engines read, stays as it is.
    """
    chosen = [node for node in model.get_ops() if _keeps_channels(node)]
    for node in chosen:
        _round(node)
    model.validate_nodes_and_infer_types()
    return len(chosen)


def _keeps_channels(node: ov.Node) -> bool:
    if node.get_type_name() != "Convolution" or _stored(node) is None:
        return False
    outputs, inputs, *sides = node.input_value(1).get_shape()
    return bool(outputs == inputs and sides == [3, 3])


def _stored(node: ov.Node) -> ov.Node | None:
    """The constant that holds the kernels; None where they are none, or of a kind that is not read here."""
    source = node.input_value(1).get_node()
    if source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    known = source.get_type_name() == "Constant" and source.get_element_type() in STORED
    return source if known else None


def _round(node: ov.Node) -> None:
    """Let a convolution read codes, and multiply its result by their step."""
    x, result = node.input_value(0), node.output(0)
    readers = result.get_target_inputs()
    picture = op.constant(np.array([1, 2, 3], np.int64))
    step = op.multiply(op.reduce_max(op.abs(x), picture, True), op.constant(np.float32(1 / LEVELS)))
    step = op.maximum(step, op.constant(SMALLEST))
    lowest, highest = op.constant(np.float32(-LEVELS - 1)), op.constant(np.float32(LEVELS))
    codes = op.fake_quantize(op.divide(x, step), lowest, highest, lowest, highest, 256)
    node.input(0).replace_source_output(codes.output(0))
    node.input(1).replace_source_output(_rounded_kernel(node))
    scaled = op.multiply(result, step).output(0)
    for reader in readers:
        reader.replace_source_output(scaled)


def _rounded_kernel(node: ov.Node) -> ov.Output:
    stored = _stored(node)
    assert stored is not None
    kernel: NDArray[np.float32] = stored.get_data().astype(np.float32)
    steps = np.maximum(np.abs(kernel).max(axis=(1, 2, 3), keepdims=True) / LEVELS, SMALLEST)
    codes = op.constant(np.rint(kernel / steps).astype(np.int8))
    return op.multiply(op.convert(codes, "f32"), op.constant(steps)).output(0)
