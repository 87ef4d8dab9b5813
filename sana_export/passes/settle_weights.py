"""Store each weight the way the graph reads it: transposed, unsqueezed or in another type."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["settle_weights"]

Array = NDArray[Any]
Change = Callable[[Array], Array]


def settle_weights(model: ir.Model) -> int:
    """Take nodes that only rearrange one weight out of the graph; the change is made when the weight is written.

    Constant folding would do the same, but it holds the old and the new weights, and forgets their names.
    """
    settled = 0
    for node in list(model.graph):
        weight = node.inputs[0] if node.inputs else None
        change = _change(node) if weight is not None and _is_read_once(weight) else None
        if weight is None or change is None:
            continue
        _rewrite(weight, change, node.outputs[0])
        ir.convenience.replace_all_uses_with(node.outputs[0], weight)
        model.graph.remove(node, safe=True)
        settled += 1
    return settled


def _is_read_once(value: ir.Value) -> bool:
    return value.is_initializer() and value.const_value is not None and len(value.uses()) == 1


def _change(node: ir.Node) -> Change | None:
    """What a node does to an array, if it is one of those that rearrange."""
    if node.op_type == "Transpose":
        order = node.attributes["perm"].as_ints()
        return lambda array: array.transpose(order)
    if node.op_type == "Cast":
        dtype = ir.DataType(node.attributes["to"].as_int()).numpy()
        return lambda array: array.astype(dtype)
    axes = node.inputs[1].const_value if node.op_type == "Unsqueeze" and node.inputs[1] else None
    if axes is not None:
        places = tuple(int(axis) for axis in axes.numpy())
        return lambda array: np.expand_dims(array, places)
    return None


def _rewrite(weight: ir.Value, change: Change, result: ir.Value) -> None:
    """Let `weight` be what `result` was."""
    original = weight.const_value
    assert original is not None
    shape = change(_without_memory(original)).shape
    dtype = result.dtype or original.dtype

    def changed() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(change(original.numpy())), dtype=dtype)

    weight.const_value = ir.LazyTensor(changed, dtype=dtype, shape=ir.Shape(shape), name=original.name)
    weight.shape, weight.type = ir.Shape(shape), ir.TensorType(dtype)


def _without_memory(tensor: ir.TensorProtocol) -> Array:
    """An array of the tensor's shape that occupies one byte."""
    return np.broadcast_to(np.zeros((), np.int8), tensor.shape.numpy())
