"""Store weights as 16-bit floats and widen them where they are read: half the bytes, and engines compute in fp32."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["narrow_weights", "widen_weights"]

SMALLEST = 1024  # numbers; less is no saving
HALF_LIMIT = 65504.0


def narrow_weights(model: ir.Model, dtype: ir.DataType) -> int:
    """Store every large fp32 weight that was learnt as `dtype`; what overflows float16 as bfloat16."""
    first = model.graph[0]
    wide = [value for value in model.graph.initializers.values() if _is_weight(value)]
    for value in wide:
        _narrow(model.graph, value, _fitting(value, dtype), first)
    return len(wide)


def widen_weights(model: ir.Model) -> ir.DataType | None:
    """Undo `narrow_weights`: the graph that reads fp32 weights again; returns what they were narrowed to, if they were.

    The numbers are those that were stored, so that narrowing them again loses nothing.
    """
    casts = [node for node in model.graph if _widens(node)]
    kinds = [_restore(model.graph, cast) for cast in casts]
    return kinds[0] if kinds else None


def _widens(node: ir.Node) -> bool:
    """Whether it is a Cast of a stored weight to fp32."""
    stored = node.inputs[0] if node.op_type == "Cast" else None
    return stored is not None and stored.const_value is not None and node.outputs[0].dtype == ir.DataType.FLOAT


def _restore(graph: ir.Graph, cast: ir.Node) -> ir.DataType:
    value = cast.inputs[0]
    assert value is not None and value.const_value is not None
    stored, dtype = value.const_value, ir.DataType(value.const_value.dtype)

    def widened() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(stored.numpy()).astype(np.float32), name=value.name)

    ir.convenience.replace_all_uses_with(cast.outputs[0], value)
    graph.remove(cast, safe=True)
    value.const_value = ir.LazyTensor(
        widened, dtype=ir.DataType.FLOAT, shape=ir.Shape(stored.shape), name=str(value.name)
    )
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return dtype


def _is_weight(value: ir.Value) -> bool:
    """Whether a matrix or kernels that were learnt: they have a path; tables and remembered prefixes have none."""
    tensor = value.const_value
    if tensor is None or "." not in str(value.name) or len(tensor.shape) < 2:
        return False
    return bool(tensor.dtype == ir.DataType.FLOAT and tensor.size >= SMALLEST)


def _fitting(value: ir.Value, dtype: ir.DataType) -> ir.DataType:
    if dtype != ir.DataType.FLOAT16:
        return dtype
    array = _array(value.const_value)
    return dtype if max(array.max(), -array.min()) <= HALF_LIMIT else ir.DataType.BFLOAT16


def _narrow(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, first: ir.Node) -> None:
    original = value.const_value
    assert original is not None
    widened = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}.widen")
    output = widened.outputs[0]
    output.name, output.type, output.shape = f"{value.name}.wide", ir.TensorType(ir.DataType.FLOAT), value.shape
    for reader, place in list(value.uses()):
        if reader is not widened:
            reader.replace_input_with(place, output)
    graph.insert_before(first, widened)

    def narrowed() -> ir.TensorProtocol:
        return ir.Tensor(_array(original).astype(dtype.numpy()), dtype=dtype, name=value.name)

    value.const_value = ir.LazyTensor(narrowed, dtype=dtype, shape=ir.Shape(original.shape), name=str(value.name))
    value.type = ir.TensorType(dtype)


def _array(tensor: ir.TensorProtocol | None) -> NDArray[np.float32]:
    assert tensor is not None
    return np.asarray(tensor.numpy())
