"""Forget the tracer's notes: stack traces of our machine, and formulas for sizes."""

import onnx_ir as ir
import onnx_ir.passes.common as common

__all__ = ["strip_notes"]

PRODUCER = "sana-export"


def strip_notes(model: ir.Model) -> int:
    """Clear metadata and documentation, and name only the sizes that the signature names; counts cleared sizes."""
    named = {size.value for value in (*model.graph.inputs, *model.graph.outputs) for size in _symbols(value)}
    cleared = 0
    for value in (value for node in model.graph for value in node.outputs if value.shape is not None):
        strange = [size for size in _symbols(value) if size.value is not None and size.value not in named]
        cleared += len(strange)
        assert value.shape is not None
        value.shape = ir.Shape([None if size in strange else size for size in value.shape])
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.graph.name = "main"
    model.producer_name, model.producer_version, model.domain, model.doc_string = PRODUCER, "", "", ""
    return cleared


def _symbols(value: ir.Value) -> list[ir.SymbolicDim]:
    return [size for size in value.shape or () if isinstance(size, ir.SymbolicDim)]
