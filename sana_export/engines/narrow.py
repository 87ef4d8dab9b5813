"""FP8 and INT4 forms of a graph's products, for the cards that have them.

FP8 (compute capability 8.9 and later): tokens are divided by their own largest magnitude and weights by one step for
the whole matrix, so that the product's sum stays small; the token's magnitude is applied afterwards, in fp32.
INT4 (8.0 and later): weights alone, with a step for every 64 of a column; products are computed in the graph's type.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from sana_calibration.edit import Editor, weight_array
from sana_calibration.products import Product, chosen

__all__ = ["Narrow", "narrow"]

FLOAT, FP8, INT4 = ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN, ir.DataType.INT4
FP8_LARGEST = 448.0
INT4_LEVELS = 7
BLOCK = 64  # rows of a column that share a step
OPSET = 21  # the first with INT4 and steps by block
SMALLEST = 1e-20  # stands in for the magnitude of what is all zeros


class Narrow(str, Enum):
    """A number format with fewer bits than INT8's graph has, or other ones."""

    FP8 = "fp8"
    INT4 = "int4"


def narrow(model: ir.Model, form: Narrow) -> tuple[str, ...]:
    """Rewrite every product that is wide enough, in place; returns their names."""
    model.graph.opset_imports[""] = max(OPSET, model.graph.opset_imports[""])
    for function in model.functions.values():
        function.opset_imports[""] = model.graph.opset_imports[""]
    write: Callable[[Editor, Product], ir.Value] = {Narrow.FP8: _fp8, Narrow.INT4: _int4}[form]
    products = [product for product in chosen(model) if form is Narrow.FP8 or product.rows % BLOCK == 0]
    for product in products:
        weight = product.weight
        y = write(Editor(model.graph, product.node, f"{product.name}.{form.value}"), product)
        y.shape = product.node.outputs[0].shape
        ir.convenience.replace_all_uses_with(product.node.outputs[0], y, replace_graph_outputs=True)
        model.graph.remove(product.node, safe=True)
        if not weight.uses():
            del model.graph.initializers[str(weight.name)]
    return tuple(product.name for product in products)


def _fp8(editor: Editor, product: Product) -> ir.Value:
    result = ir.DataType(product.node.outputs[0].dtype)
    wide = editor.cast(product.tokens, FLOAT, "wide")
    size = editor.node("Abs", [wide], "size")
    largest = editor.node("ReduceMax", [size, editor.constant("fp8.last_axis", [-1], np.int64)], "largest")
    magnitude = editor.node("Max", [largest, editor.constant("fp8.smallest", SMALLEST)], "magnitude")
    unit = editor.node("Div", [wide, magnitude], "unit")
    level = editor.constant("fp8.level", 1 / FP8_LARGEST)
    zero = editor.constant("fp8.zero", 0, ml_dtypes.float8_e4m3fn)
    codes = editor.node("QuantizeLinear", [unit, level, zero], "codes", FP8)
    tokens = editor.node("DequantizeLinear", [codes, level, zero], "tokens", FLOAT)
    content = weight_array(product.weight).astype(np.float32)
    step = np.float32(max(float(np.abs(content).max()), SMALLEST) / FP8_LARGEST)
    held = editor.constant(f"{product.name}.weight_fp8", content / step, ml_dtypes.float8_e4m3fn)
    weight = editor.node("DequantizeLinear", [held, _step(editor, product, step), zero], "weight", FLOAT)
    sums = editor.node("MatMul", [tokens, weight], "MatMul")
    return editor.cast(editor.node("Mul", [sums, magnitude], "scaled"), result, "result")


def _int4(editor: Editor, product: Product) -> ir.Value:
    result = ir.DataType(product.node.outputs[0].dtype)
    codes, steps = _blocks(weight_array(product.weight).astype(np.float32))
    held = editor.constant(f"{product.name}.weight_int4", codes, ml_dtypes.int4)
    inputs = [held, _step(editor, product, steps.astype(result.numpy()))]
    weight = editor.node("DequantizeLinear", inputs, "weight", result, {"axis": 0, "block_size": BLOCK})
    return editor.node("MatMul", [product.tokens, weight], "MatMul", result)


def _step(editor: Editor, product: Product, content: Any) -> ir.Value:
    return editor.constant(f"{product.name}.weight_step", content, np.asarray(content).dtype)


def _blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (rows, columns) and their steps (rows / BLOCK, columns)."""
    blocks = weight.reshape(-1, BLOCK, weight.shape[1])
    steps = np.maximum(np.abs(blocks).max(axis=1), np.float32(SMALLEST)) / np.float32(INT4_LEVELS)
    return np.rint(blocks / steps[:, None]).reshape(weight.shape).astype(np.int8), steps
