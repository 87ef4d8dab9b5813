"""Turn products of tokens and constant weights into INT8 products that every engine computes as such.

Tokens are rounded with a step size of their own, found while the graph runs; weights with one for each output channel:

    step  = max(max|x|, tiny) / 127                     one for each token, fp32
    codes = round(x / step)                             int8
    y     = (codes · weight codes) · weight steps · step    fp32, whatever type the graph has

Engines recognise an INT8 product by QuantizeLinear and DequantizeLinear around it. The codes of the tokens are
dequantised with a step of one, so that the step, which is no constant, can be applied after the product; it is applied
in fp32 because sums of codes leave fp16's range.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir
from sana_runtime.errors import UsageError

from sana_calibration.edit import Editor
from sana_calibration.products import Product, chosen, find_products, share
from sana_calibration.rounding import LEVELS, SMALLEST, column_codes, column_steps

__all__ = ["SCHEME", "Int8Writer", "Quantised", "Variant", "quantise", "write_dequantised"]

SCHEME = "int8: weights symmetric per output channel, activations symmetric per token"


class Variant(str, Enum):
    """Which form of the graph an engine needs."""

    PORTABLE = "portable"  # onnxruntime, OpenVINO, TensorRT from compute capability 8.0
    TURING = "turing"  # TensorRT at 7.5, where an INT8 product with an fp32 result is refused


# At 7.5 the product's result is fp16. All weights of a layer get this one power of two as their step, so that the
# largest possible sum of codes, 127 · 127 · rows, stays below 65504 up to 8317 rows; the columns' steps follow in fp32.
TURING_STEP = 2.0**-11
TURING_ROWS = int(65504 / TURING_STEP) // LEVELS**2

FLOAT, HALF, INT8 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8


@dataclass(frozen=True)
class Quantised:
    """What became of a graph's products."""

    products: tuple[str, ...]  # INT8 now
    left: tuple[str, ...]  # float still
    share: float  # of the multiplications of tokens with weights, how many are INT8


@dataclass(frozen=True)
class Codes:
    """Tokens as whole steps, dequantised with a step of one, and the steps (…, 1) in fp32."""

    values: ir.Value
    step: ir.Value


def quantise(model: ir.Model, names: Iterable[str] | None = None, variant: Variant = Variant.PORTABLE) -> Quantised:
    """Rewrite the products called `names` (all eligible ones without) in place, and say what was done.

    INT8 weights are made from the float ones when the model is saved, one weight at a time.
    """
    whole, products = find_products(model), chosen(model, names)
    writer = Int8Writer(model.graph, variant)
    for product in products:
        _replace(model.graph, product, writer.write(product))
    done = tuple(product.name for product in products)
    left = tuple(product.name for product in whole if product.name not in done)
    return Quantised(done, left, share(products, whole) if whole else 0.0)


class Int8Writer:
    """Writes INT8 forms of products into one graph, and rounds tokens that several products read once."""

    def __init__(self, graph: ir.Graph, variant: Variant) -> None:
        self._graph = graph
        self._operand = {Variant.PORTABLE: FLOAT, Variant.TURING: HALF}[variant]
        self._multiply = {Variant.PORTABLE: _portable_product, Variant.TURING: _turing_product}[variant]
        self._rounded: dict[ir.Value, Codes] = {}

    def write(self, product: Product) -> ir.Value:
        """The result of the INT8 form, in the type of the float product, which stays where it is."""
        editor = Editor(self._graph, product.node, f"{product.name}.int8")
        if product.tokens not in self._rounded:
            self._rounded[product.tokens] = _round_tokens(editor, product.tokens, self._operand)
        codes, result = self._rounded[product.tokens], product.node.outputs[0]
        scaled = editor.node("Mul", [self._multiply(editor, product, codes), codes.step], "scaled")
        y = editor.cast(scaled, ir.DataType(result.dtype), "result")
        y.shape = result.shape
        return y


def _round_tokens(editor: Editor, tokens: ir.Value, operand: ir.DataType) -> Codes:
    """Give every token the step that its largest channel asks for, and count it in those steps."""
    wide = editor.cast(_before_narrowing(tokens), FLOAT, "wide")
    size = editor.node("Abs", [wide], "size")
    largest = editor.node("ReduceMax", [size, editor.constant("int8.last_axis", [-1], np.int64)], "largest")
    positive = editor.node("Max", [largest, editor.constant("int8.smallest", SMALLEST)], "positive")
    step = editor.node("Mul", [positive, editor.constant("int8.one_level", 1 / LEVELS)], "step")
    steps = editor.node("Div", [wide, step], "steps")
    zero = editor.constant("int8.zero", 0, np.int8)
    codes = editor.node("QuantizeLinear", [steps, _unit(editor, FLOAT), zero], "codes", INT8)
    return Codes(editor.node("DequantizeLinear", [codes, _unit(editor, operand), zero], "values", operand), step)


def _before_narrowing(tokens: ir.Value) -> ir.Value:
    """The fp32 value that a 16-bit graph narrows for its product: INT8 needs no such detour."""
    node = tokens.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Cast" else None
    return source if source is not None and source.dtype == FLOAT else tokens


def _unit(editor: Editor, operand: ir.DataType) -> ir.Value:
    return editor.constant(f"int8.one_{operand.name.lower()}", 1, operand.numpy())


def _portable_product(editor: Editor, product: Product, tokens: Codes) -> ir.Value:
    """The product in fp32, but for the tokens' steps."""
    return editor.node("MatMul", [tokens.values, write_dequantised(editor, product)], "MatMul")


def write_dequantised(editor: Editor, product: Product) -> ir.Value:
    """The product's weight as INT8 represents it, in fp32; only codes and steps are stored."""
    zeros = editor.constant(f"int8.zeros_{product.columns}", np.zeros(product.columns), np.int8)
    inputs = [_weight_codes(editor, product), _weight_steps(editor, product), zeros]
    return editor.node("DequantizeLinear", inputs, "weight", FLOAT, {"axis": 1})


def _turing_product(editor: Editor, product: Product, tokens: Codes) -> ir.Value:
    """The same by way of fp16."""
    if product.rows > TURING_ROWS:
        raise UsageError(f"{product.name} adds up {product.rows} products, more than {TURING_ROWS}; leave it float")
    unit, zero = editor.constant("int8.turing_step", TURING_STEP, np.float16), editor.constant("int8.zero", 0, np.int8)
    weight = editor.node("DequantizeLinear", [_weight_codes(editor, product), unit, zero], "weight", HALF)
    total = editor.node("MatMul", [tokens.values, weight], "MatMul", HALF)
    steps = _weight_steps(editor, product, 1 / TURING_STEP)
    return editor.node("Mul", [editor.cast(total, FLOAT, "sum"), steps], "columns")


def _weight_codes(editor: Editor, product: Product) -> ir.Value:
    tensor = product.weight.const_value
    assert tensor is not None
    shape = (product.rows, product.columns)
    return editor.later(f"{product.name}.weight_int8", lambda: column_codes(tensor.numpy()), np.int8, shape)


def _weight_steps(editor: Editor, product: Product, factor: float = 1.0) -> ir.Value:
    tensor = product.weight.const_value
    assert tensor is not None
    name, shape = f"{product.name}.weight_step", (product.columns,)
    return editor.later(name, lambda: column_steps(tensor.numpy()) * np.float32(factor), np.float32, shape)


def _replace(graph: ir.Graph, product: Product, y: ir.Value) -> None:
    """Let `y` stand where the float product stood, and forget the float weight."""
    weight, tokens = product.weight, product.tokens
    ir.convenience.replace_all_uses_with(product.node.outputs[0], y, replace_graph_outputs=True)
    graph.remove(product.node, safe=True)
    if not weight.uses():
        del graph.initializers[str(weight.name)]
    narrowing = tokens.producer()
    if narrowing is not None and narrowing.op_type == "Cast" and not tokens.uses():
        graph.remove(narrowing, safe=True)
