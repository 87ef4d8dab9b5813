"""A graph that computes its products in float and in INT8, and takes at run time which of the two counts."""

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

    Compiled once, the graph tries any choice of INT8 layers.
    """
    products = chosen(model, names)
    switches = ir.Value(name=IN_INT8, shape=ir.Shape([len(products)]), type=ir.TensorType(ir.DataType.BOOL))
    model.graph.inputs.append(switches)
    writer = Int8Writer(model.graph, Variant.PORTABLE)
    for index, product in enumerate(products):
        _choose(model.graph, product, writer.write(product), (switches, index))
    return tuple(product.name for product in products)


def switches(names: Sequence[str]) -> TensorSpec:
    """The input that the graph takes besides those of a transformer."""
    return TensorSpec(IN_INT8, "bool", (len(names),))


def _choose(graph: ir.Graph, product: Product, y: ir.Value, switch: tuple[ir.Value, int]) -> None:
    """Let whoever reads the float product read `y` where the switch is on."""
    editor, result = Editor(graph, product.node, f"{product.name}.trial"), product.node.outputs[0]
    place = editor.constant(f"trial.{switch[1]}", switch[1], np.int64)
    on = editor.node("Gather", [switch[0], place], "on", ir.DataType.BOOL)
    readers = list(result.uses())
    choice = ir.node("Where", [on, y, result], name=f"{product.name}.trial.choice")
    graph.insert_after(product.node, choice)
    output = choice.outputs[0]
    output.name, output.type, output.shape = choice.name, result.type, result.shape
    for reader, place_in_reader in readers:
        reader.replace_input_with(place_in_reader, output)
