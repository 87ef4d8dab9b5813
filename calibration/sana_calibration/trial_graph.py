"""A graph that computes each of its products in float or in INT8, as it is told while it runs."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from sana_runtime.signature import TensorSpec

from sana_calibration.edit import Editor
from sana_calibration.products import Product, chosen
from sana_calibration.quantise import Int8Writer, Variant

__all__ = ["IN_INT8", "make_trial_graph", "switches"]

IN_INT8 = "in_int8"  # the additional input: one bool for each product, in the order of `make_trial_graph`'s answer


def make_trial_graph(model: ir.Model, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Rewrite the products called `names` (all eligible ones without) in place; returns them in the graph's order.

    Compiled once, the graph tries any choice of INT8 layers, and computes only the form that was chosen. Engines pack
    the weights of both.
    """
    products = chosen(model, names)
    switches = ir.Value(name=IN_INT8, shape=ir.Shape([len(products)]), type=ir.TensorType(ir.DataType.BOOL))
    model.graph.inputs.append(switches)
    for index, product in enumerate(products):
        _choose(model.graph, product, (switches, index))
    return tuple(product.name for product in products)


def switches(names: Sequence[str]) -> TensorSpec:
    """The input that the graph takes besides those of a transformer."""
    return TensorSpec(IN_INT8, "bool", (len(names),))


def _choose(graph: ir.Graph, product: Product, switch: tuple[ir.Value, int]) -> None:
    """Put an `If` in the product's place, whose branches are its two forms; their weights stay outside."""
    editor, result = Editor(graph, product.node, f"{product.name}.trial"), product.node.outputs[0]
    dtype = ir.DataType(result.dtype)
    place = editor.constant(f"trial.{switch[1]}", switch[1], np.int64)
    on = editor.node("Gather", [switch[0], place], "on", ir.DataType.BOOL)
    outside = set(graph)
    in_int8 = Int8Writer(graph, Variant.PORTABLE).write(product)  # of its own: what one branch computes no other sees
    then_branch = _branch(graph, outside, in_int8)
    in_float = editor.node("MatMul", [product.tokens, product.weight], "float", dtype)
    else_branch = _branch(graph, outside, in_float)
    choice = editor.node("If", [on], "choice", dtype, {"then_branch": then_branch, "else_branch": else_branch})
    choice.name, choice.shape = result.name, result.shape
    ir.convenience.replace_all_uses_with(result, choice, replace_graph_outputs=True)
    graph.remove(product.node, safe=True)


def _branch(graph: ir.Graph, outside: set[ir.Node], result: ir.Value) -> ir.Graph:
    """What is in `graph` and not `outside`, taken out of it, as a body that computes `result`."""
    nodes = [node for node in graph if node not in outside]
    graph.remove(nodes)
    return ir.Graph([], [result], nodes=nodes, name=result.name)
