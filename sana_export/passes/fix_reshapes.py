"""Give each Reshape a constant target: 0 for a size that stays, -1 for the one that follows."""

import numpy as np
import onnx_ir as ir

__all__ = ["fix_reshapes"]


def fix_reshapes(model: ir.Model) -> int:
    """Replace targets computed from the inputs' sizes, wherever at most one size is not known to stay."""
    changed = 0
    for node in [node for node in model.graph if node.op_type == "Reshape"]:
        target = _target(node)
        if target is not None and node.inputs[1] is not None and node.inputs[1].const_value is None:
            node.replace_input_with(1, _constant(model.graph, target))
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
            changed += 1
    return changed


def _target(node: ir.Node) -> tuple[int, ...] | None:
    """The constant that means the same for every size; None if there is none."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or result.shape is None:
        return None
    target = tuple(_entry(size, i, source.shape) for i, size in enumerate(result.shape))
    return target if target.count(-1) <= 1 else None


def _entry(size: int | ir.SymbolicDim, index: int, source: ir.Shape) -> int:
    if isinstance(size, int):
        return size
    stays = size.value is not None and index < len(source) and source[index] == size
    return 0 if stays else -1


def _constant(graph: ir.Graph, target: tuple[int, ...]) -> ir.Value:
    """One initializer for each target, however many reshapes share it."""
    name = "shape_" + "_".join(str(size).replace("-1", "rest") for size in target)
    if name not in graph.initializers:
        tensor = ir.Tensor(np.array(target, np.int64), name=name)
        value = ir.Value(name=name, shape=ir.Shape([len(target)]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
