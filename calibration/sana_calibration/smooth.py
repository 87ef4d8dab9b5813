"""Move the spread of a product's input channels into its weight, where each output channel has a step of its own.

A product does not change when its tokens are divided by a factor for each channel, and its weight's rows are multiplied
by them. The division costs nothing where what comes before can take it:

    attention.qkv, feed_forward.expand   x = norm · gain + shift: gain and shift, two vectors a picture, are divided
    attention.out                        the attention is linear in its values: columns of qkv's weight are divided
    cross_attention.out                  the same, in the caption part: columns of the weight and the bias of kv
    feed_forward.contract                x = value · silu(gate): kernels and biases of the depthwise convolution
    cross_attention.q                    x is the residual stream, which others read too: the tokens are divided

Factors are powers of two: no float is rounded, so the float graph computes bit for bit what it did before.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from sana_runtime.errors import UsageError

from sana_calibration.edit import Editor, replace_weight
from sana_calibration.products import Product, chosen

__all__ = ["Factors", "smooth", "smoothable"]

Factors = Mapping[str, NDArray[np.float32]]  # by product: what its input channels (C) are divided by


def smoothable(name: str) -> bool:
    """Whether there is a way to smooth the input of the product called so."""
    return _kind(name) in FOLDS


def smooth(transformer: ir.Model, caption: ir.Model, factors: Factors) -> None:
    """Divide the input channels of products by `factors`, in place, and multiply their weights' rows.

    Both parts change, and belong together from now on.
    """
    for product in chosen(transformer, factors):
        factor = np.asarray(factors[product.name], np.float32)
        if not smoothable(product.name):
            raise UsageError(f"{product.name} has no known place for smoothing; leave it out")
        if factor.shape != (product.rows,) or (np.frexp(factor)[0] != 0.5).any():
            raise UsageError(f"{product.name} takes {product.rows} factors, each a power of two; choose them again")
        assert f"{product.name}.inverse" not in transformer.graph.initializers, "a graph is smoothed once"
        FOLDS[_kind(product.name)](transformer.graph, caption.graph, product, np.reciprocal(factor))
        replace_weight(product.weight, partial(_scaled, factor=factor[:, None]))


def _kind(name: str) -> str:
    """blocks.3.attention.out is an attention.out."""
    return name.split(".", 2)[-1]


def _scaled(array: NDArray[Any], factor: NDArray[np.float32]) -> NDArray[Any]:
    """In the array's own type; exact, because the factors are powers of two."""
    return np.asarray(array * factor.astype(array.dtype))


def _divide_modulation(graph: ir.Graph, caption: ir.Graph, product: Product, inverse: NDArray[np.float32]) -> None:
    affine = _producer(product.tokens)
    if affine.op_type == "Cast":
        affine = _producer(affine.inputs[0])
    gained, shift = affine.inputs
    gain_node = _producer(gained)
    _, gain = gain_node.inputs
    assert shift is not None and gain is not None
    assert (affine.op_type, gain_node.op_type, gain_node.inputs[0].producer().op_type) == (
        "Add",
        "Mul",
        "LayerNormalization",
    )
    for node, place, vector, name in ((gain_node, 1, gain, "gain"), (affine, 1, shift, "shift")):
        editor = Editor(graph, node, f"{product.name}.smooth")
        divided = editor.node("Mul", [vector, editor.constant(f"{product.name}.inverse", inverse)], name)
        divided.shape = vector.shape
        node.replace_input_with(place, divided)


def _divide_values(graph: ir.Graph, caption: ir.Graph, product: Product, inverse: NDArray[np.float32]) -> None:
    qkv = product.name.removesuffix("out") + "qkv"
    _scale_last(graph, f"{qkv}.weight", np.concatenate([np.ones(2 * len(inverse), np.float32), inverse]))


def _divide_caption_values(graph: ir.Graph, caption: ir.Graph, product: Product, inverse: NDArray[np.float32]) -> None:
    kv = product.name.removesuffix("cross_attention.out") + "kv"
    for kind in ("weight", "bias"):
        _scale_last(caption, f"{kv}.{kind}", np.concatenate([np.ones(len(inverse), np.float32), inverse]))


def _divide_depthwise(graph: ir.Graph, caption: ir.Graph, product: Product, inverse: NDArray[np.float32]) -> None:
    depthwise = product.name.removesuffix("contract") + "depthwise"
    values_and_gates = np.concatenate([inverse, np.ones(len(inverse), np.float32)])
    replace_weight(
        graph.initializers[f"{depthwise}.weight"], partial(_scaled, factor=values_and_gates[:, None, None, None])
    )
    _scale_last(graph, f"{depthwise}.bias", values_and_gates)


def _divide_tokens(graph: ir.Graph, caption: ir.Graph, product: Product, inverse: NDArray[np.float32]) -> None:
    """In fp32: the INT8 form of the product takes the tokens from there."""
    tokens, editor = product.tokens, Editor(graph, product.node, f"{product.name}.smooth")
    wide = editor.cast(tokens, ir.DataType.FLOAT, "wide")
    divided = editor.node("Mul", [wide, editor.constant(f"{product.name}.inverse", inverse)], "tokens")
    product.node.replace_input_with(0, editor.cast(divided, ir.DataType(tokens.dtype), "narrow"))


def _scale_last(graph: ir.Graph, name: str, factor: NDArray[np.float32]) -> None:
    replace_weight(graph.initializers[name], partial(_scaled, factor=factor))


def _producer(value: ir.Value | None) -> ir.Node:
    node = value.producer() if value is not None else None
    assert node is not None
    return node


FOLDS: dict[str, Callable[[ir.Graph, ir.Graph, Product, NDArray[np.float32]], None]] = {
    "attention.qkv": _divide_modulation,
    "attention.out": _divide_values,
    "cross_attention.q": _divide_tokens,
    "cross_attention.out": _divide_caption_values,
    "feed_forward.expand": _divide_modulation,
    "feed_forward.contract": _divide_depthwise,
}
