"""Compute what does not depend on the inputs, and write the rest in fewer operations."""

import onnx_ir as ir
from onnxscript.optimizer import optimize_ir

__all__ = ["INDICES", "PREFIXES", "fold_constants"]

INDICES = 8  # elements: axes, sizes and steps, but no weights
PREFIXES = 1 << 25  # elements: the remembered prefix is cut into layers, the large matrices are left alone


def fold_constants(model: ir.Model, largest: int) -> int:
    """Fold constants of up to `largest` elements, and sequences into splits; returns the number of nodes gone."""
    before = len(model.graph)
    optimize_ir(model, input_size_limit=largest, output_size_limit=largest)
    return before - len(model.graph)
