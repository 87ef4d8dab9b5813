"""The float graph, which also says what flows into its products."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from sana_calibration.edit import Editor
from sana_calibration.products import Product, chosen

__all__ = ["LARGEST", "POWER", "SAMPLE", "SAMPLED", "write_recording_graph"]

SAMPLED = "sampled_tokens"  # the additional input: positions of the tokens to return, int64
SAMPLE, LARGEST, POWER = ".sample", ".largest", ".power"  # the additional outputs' endings

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


def write_recording_graph(source: Path, target: Path, names: Sequence[str] | None = None) -> dict[str, int]:
    """Write `target` beside `source`, whose weights it shares; returns the observed products' input channels.

    For each product it returns the sampled tokens (B, T, C), and over all tokens each channel's largest magnitude and
    its mean square, which is not finite when any value is not.
    """
    assert target.parent.resolve() == source.parent.resolve(), "weights are found by their name in the same folder"
    model = ir.load(source)
    products = chosen(model, names)
    kind = ir.TensorType(INT64)
    positions = ir.Value(name=SAMPLED, shape=ir.Shape(["sampled"]), type=kind)
    model.graph.inputs.append(positions)
    for product in products:
        model.graph.outputs.extend(_observe(model.graph, product, positions))
    ir.save(model, target)
    return {product.name: product.rows for product in products}


def _observe(graph: ir.Graph, product: Product, positions: ir.Value) -> list[ir.Value]:
    editor = Editor(graph, product.node, product.name)
    tokens = editor.cast(product.tokens, FLOAT, "observed")
    axes = editor.constant("observed.all_tokens", [0, 1], np.int64)
    size = editor.node("Abs", [tokens], "size")
    outputs = [
        editor.node("Gather", [tokens, positions], SAMPLE[1:], attributes={"axis": 1}),
        editor.node("ReduceMax", [size, axes], LARGEST[1:], attributes={"keepdims": 0}),
        editor.node(
            "ReduceMean", [editor.node("Mul", [tokens, tokens], "square"), axes], POWER[1:], attributes={"keepdims": 0}
        ),
    ]
    for output, shape in zip(
        outputs, (["batch", "sampled", product.rows], [product.rows], [product.rows]), strict=True
    ):
        output.shape = ir.Shape(shape)
    return outputs
