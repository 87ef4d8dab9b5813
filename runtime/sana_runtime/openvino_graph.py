"""ONNX graphs as OpenVINO reads them, and what is changed in them before it compiles them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sana_runtime.unreported import without

# The first tells each import to an analytics service, and counts it in the home folder. The second converts models of
# other frameworks, and is half of what an import takes.
with without("openvino_telemetry"), without("openvino.tools.ovc"):
    import openvino as ov
    from openvino import opset14 as op
    from openvino.frontend import FrontEnd, FrontEndManager, NodeContext

__all__ = ["op", "ov", "read"]

NARROW = (ov.Type.bf16, ov.Type.f16)
READ_NARROW = {"MatMul", "Gather"}  # operations whose kernels take weights of 16 bits
PASSED = {"Transpose", "Reshape"}  # move numbers as they are
LEAST = np.finfo(np.float32).min


def read(graph: Path, *, half_convolutions: bool) -> ov.Model:
    """The graph in this file; in an INT8 graph convolutions may read and write bfloat16."""
    model = _keep_narrow(_keep_whole_numbers(_reader().convert(_reader().load(graph))))
    if not model.outputs:
        raise RuntimeError("there is no graph in it")
    _measure_unwritten(model)
    _rectify_whole(model)
    if half_convolutions and any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()):
        _narrow_convolutions(model)
    return model


def _convert_model(*arguments: Any, **named: Any) -> ov.Model:
    """What OpenVINO has under this name, imported when somebody else in this process asks for it."""
    from openvino.tools.ovc import convert_model

    return convert_model(*arguments, **named)


if not hasattr(ov, "convert_model"):
    ov.convert_model = _convert_model


def _swap_tokens_and_heads(tensor: ov.Output) -> ov.Output:
    return op.transpose(tensor, op.constant(np.array([0, 2, 1, 3], np.int64))).output(0)


def _as_float(tensor: ov.Output) -> ov.Output:
    return tensor if tensor.get_element_type() == ov.Type.f32 else op.convert(tensor, "f32").output(0)


def _relu_linear_attention(node: NodeContext) -> list[ov.Output]:
    """`sana::ReluLinearAttention` in OpenVINO's own operations; q, k and v are (B, N, H, D).

    OpenVINO does not read functions that an ONNX file brings along, so this repeats the file's own body.
    """
    query, key, value = (_swap_tokens_and_heads(_as_float(node.get_input(i))) for i in range(3))
    query, key = op.relu(query), op.relu(key)
    key_value = op.matmul(key, value, True, False)
    key_sum = op.reduce_sum(key, op.constant(np.array([2], np.int64)), True)
    weight = op.add(op.matmul(query, key_sum, False, True), op.constant(np.float32(1e-15)))
    mixed = op.divide(op.matmul(query, key_value, False, False), weight)
    answer, like = _swap_tokens_and_heads(mixed.output(0)), node.get_input(0)
    return [answer if like.get_element_type() == ov.Type.f32 else op.convert_like(answer, like).output(0)]


@cache
def _reader() -> FrontEnd:
    """The reader of ONNX files, and no other.

    `Core.read_model` guesses the format from the content: a file that was checked as ONNX, with an XML graph in a field
    that nobody reads, it takes for that XML graph.
    """
    from openvino.frontend.onnx import ConversionExtension

    reader = FrontEndManager().load_by_framework("onnx")
    reader.add_extension(ConversionExtension("ReluLinearAttention", "sana", _relu_linear_attention))
    return reader


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


def _keep_narrow(model: ov.Model) -> ov.Model:
    """Leave 16-bit weights in 16 bits until they are used; a table is then widened only in the rows that are read.

    OpenVINO would widen each when it compiles: three times the memory, and ten times as long.
    """
    for node in model.get_ops():
        if node.get_type_name() == "Convert" and node.input_value(0).get_node().get_type_name() == "Constant":
            readers = {target.get_node().get_type_name() for target in node.output(0).get_target_inputs()}
            if node.input_value(0).get_element_type() in NARROW and readers <= READ_NARROW:
                node.get_rt_info()["decompression_0"] = ""  # what OpenVINO's own compression writes there
    return model


def _measure_unwritten(model: ov.Model) -> None:
    """The largest size of each token's numbers from their maximum and minimum, so that nobody writes all the sizes."""
    for node in model.get_ops():
        sizes = node.input_value(0).get_node() if node.get_type_name() == "ReduceMax" else None
        if sizes and sizes.get_type_name() == "Abs":
            numbers, axes, keep = sizes.input_value(0), node.input_value(1), node.get_attributes()["keep_dims"]
            least = op.negative(op.reduce_min(numbers, axes, keep))
            node.output(0).replace(op.maximum(op.reduce_max(numbers, axes, keep), least).output(0))


def _rectify_whole(model: ov.Model) -> None:
    """ReLU of queries and keys before they are split from values, in the pass that scales them all: two passes less."""
    for split in [node for node in model.get_ops() if node.get_type_name() == "Split"]:
        relus = [_computing(output, "Relu") for output in split.outputs()]
        whole, *widths = (_width(tensor) for tensor in (split.input_value(0), *split.outputs()))
        if any(relus) and sum(widths) == whole and split.output(0).get_element_type() == ov.Type.f32:
            least = np.repeat([np.float32(0 if relu else LEAST) for relu in relus], widths)
            split.input(0).replace_source_output(op.maximum(split.input_value(0), op.constant(least)).output(0))
            for relu in filter(None, relus):
                relu.output(0).replace(relu.input_value(0))


def _width(output: ov.Output) -> int:
    """The size of the last dimension; 0 where it is not known."""
    shape = output.get_partial_shape()
    return shape[-1].get_length() if shape.rank.is_static and len(shape) and shape[-1].is_static else 0


def _computing(output: ov.Output, kind: str) -> ov.Node | None:
    """The node of this kind that alone reads these numbers, moved at most."""
    readers = [target.get_node() for target in output.get_target_inputs()]
    if len(readers) != 1:
        return None
    (reader,) = readers
    if reader.get_type_name() in PASSED:
        return _computing(reader.output(0), kind)
    return reader if reader.get_type_name() == kind else None


def _narrow_convolutions(model: ov.Model) -> None:
    """Bfloat16 from what a depthwise convolution reads to where its channels are taken apart.

    The widest tokens of a block: in half the bytes a step takes a tenth less. They are rounded to 8 bits soon after.
    """
    for node in model.get_ops():
        if node.get_type_name() == "GroupConvolution":
            _narrow(_source(node.input(0)))
            _narrow(node.input(1))
            for output in _end(node).outputs():
                _widen(output)
    model.validate_nodes_and_infer_types()


def _source(reading: ov.Input) -> ov.Input:
    """Where numbers come in that are moved at most until they are read here."""
    node = reading.get_source_output().get_node()
    return _source(node.input(0)) if node.get_type_name() in PASSED else reading


def _end(node: ov.Node) -> ov.Node:
    """The last of the nodes that move these numbers at most, a bias added first; it is narrow, too."""
    readers = [target.get_node() for target in node.output(0).get_target_inputs()]
    following = [reader for reader in readers if reader.get_type_name() != "ShapeOf"]
    if len(following) != 1:
        return node
    weights = [reading for reading in following[0].inputs() if _is_weight(reading.get_source_output().get_node())]
    match following[0].get_type_name():
        case "Split":
            return following[0]
        case "Add" if weights:
            _narrow(weights[0])
        case kind if kind not in PASSED:
            return node
    return _end(following[0])


def _is_weight(node: ov.Node) -> bool:
    """Whether the node is a constant, or one in another shape."""
    return "Constant" in (
        node.get_type_name(),
        *(value.get_node().get_type_name() for value in node.input_values()[:1]),
    )


def _narrow(reading: ov.Input) -> None:
    reading.replace_source_output(op.convert(reading.get_source_output(), "bf16").output(0))


def _widen(output: ov.Output) -> None:
    readers = output.get_target_inputs()
    wide = op.convert(output, "f32").output(0)
    for reading in readers:
        reading.replace_source_output(wide)
