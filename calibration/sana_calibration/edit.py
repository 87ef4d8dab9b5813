"""Add nodes and constants to an ONNX graph, in place, with names that tell where they belong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["Editor", "replace_weight", "weight_array"]


@dataclass(frozen=True)
class Editor:
    """Writes new nodes before `at`, named after `scope`."""

    graph: ir.Graph
    at: ir.Node
    scope: str

    def node(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        name: str,
        dtype: ir.DataType = ir.DataType.FLOAT,
        attributes: dict[str, Any] | None = None,
    ) -> ir.Value:
        """The output of a new node, which bears the node's name."""
        node = ir.node(kind, inputs, attributes or {}, name=f"{self.scope}.{name}")
        self.graph.insert_before(self.at, node)
        output = node.outputs[0]
        output.name, output.type = node.name, ir.TensorType(dtype)
        return output

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """`value` in another type; itself when it has that type."""
        if value.dtype == dtype:
            return value
        return self.node("Cast", [value], name, dtype, {"to": dtype})

    def constant(self, name: str, content: ArrayLike, dtype: DTypeLike = np.float32) -> ir.Value:
        """An initializer; one and the same for every call with this name."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        return self._register(name, ir.Tensor(np.array(content, dtype), name=name))

    def later(self, name: str, make: Callable[[], NDArray[Any]], dtype: DTypeLike, shape: Sequence[int]) -> ir.Value:
        """An initializer whose content is made when the model is saved, and not kept."""
        return self._register(name, _lazy(name, make, ir.DataType.from_numpy(np.dtype(dtype)), shape))

    def _register(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=kind, const_value=tensor)
        self.graph.register_initializer(value)
        return value


def weight_array(value: ir.Value) -> NDArray[Any]:
    """The content of an initializer."""
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def replace_weight(value: ir.Value, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Change an initializer's content, when the model is saved, by a function that keeps its shape."""
    old, name = value.const_value, str(value.name)
    assert old is not None
    value.const_value = _lazy(name, lambda: change(np.asarray(old.numpy())), old.dtype, old.shape.numpy())


def _lazy(name: str, make: Callable[[], NDArray[Any]], dtype: ir.DataType, shape: Sequence[int]) -> ir.LazyTensor:
    def made() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(make()).astype(dtype.numpy(), copy=False), dtype=dtype, name=name)

    return ir.LazyTensor(made, dtype=dtype, shape=ir.Shape(shape), name=name)
