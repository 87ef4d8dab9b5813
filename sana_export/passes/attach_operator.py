"""Send the body of the linear-attention operator along with a graph that uses it."""

import onnx_ir as ir
from sana_plugins.custom_op import DOMAIN, VERSION, body

__all__ = ["attach_operator"]


def attach_operator(model: ir.Model) -> int:
    """Add the body where the operator is used; returns the number of nodes that use it."""
    count: int = sum(node.domain == DOMAIN for node in model.graph)
    if count:
        function = ir.serde.deserialize_function(body(model.graph.opset_imports[""]))
        model.functions[function.identifier()] = function
        model.graph.opset_imports[DOMAIN] = VERSION
    return count
