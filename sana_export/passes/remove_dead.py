"""Drop what no output depends on."""

import onnx_ir as ir
import onnx_ir.passes.common as common

__all__ = ["remove_dead"]


def remove_dead(model: ir.Model) -> int:
    """Remove unused nodes, initializers and operator sets; returns the number of nodes and initializers gone."""
    before = len(model.graph) + len(model.graph.initializers)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return before - len(model.graph) - len(model.graph.initializers)
