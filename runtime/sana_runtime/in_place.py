"""Products of INT8 weights as onnxruntime computes them straight from the file, with nothing unpacked or packed.

A part that runs once for a prompt reads each weight once: to widen weights, or to bring them into an order that kernels
like, takes longer than the products, and as much memory again. Whole-number products take them as they lie. Tokens are
float: they become two digits of 7 bits, in twice the rows, with a step for each token. That is finer than bfloat16, the
alternative. Digits of 8 bits would be too much for processors that add two such products in 16 bits.
"""

import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from sana_runtime.rewriting import Field, content, fields, number

__all__ = ["in_place"]

# Field numbers of onnx.proto.
GRAPH, OPSET = 7, 8  # of a model
NODE, TENSOR = 1, 5  # of a graph
INPUT, OUTPUT, OPERATOR, ATTRIBUTE, DOMAIN = 1, 2, 4, 5, 7  # of a node
NAME, INTEGER, ATTRIBUTE_TYPE = 1, 3, 20  # of an attribute
DIMS, DATA_TYPE, TENSOR_NAME, RAW = 1, 2, 8, 9  # of a tensor
OPSET_DOMAIN, OPSET_VERSION = 1, 2
FLOAT, UINT8, INT8, INT64 = 1, 2, 3, 7  # TensorProto.DataType
IS_INTEGER = 2  # AttributeProto.AttributeType

CONTRIBUTED = "com.microsoft"  # the domain of onnxruntime's own operators
LEVELS = 63  # of a digit, to either side of its middle
MIDDLE = 64
PREFIX = "sana.in_place."  # of names that are new


class Node(NamedTuple):
    """What is looked at of one node."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    by_column: bool  # nothing but an axis is said, and that is the last of two
    whole: memoryview


def in_place(graph: Path) -> bytes | None:
    """The graph with products of INT8 weights in whole numbers; None if there are none."""
    model = list(fields(memoryview(graph.read_bytes())))
    main = next(field for field in model if field.tag == GRAPH)
    held = list(fields(main.data))
    nodes = [_node(field) for field in held if field.tag == NODE]
    widened = _widened(nodes, set(_int8_names(held)))
    products = [node for node in nodes if _is_product(node, widened)]
    if not products:
        return None
    readers = Counter(name for node in nodes for name in node.inputs)
    readers.subtract(node.inputs[1] for node in products)
    unread = {name for name in widened if not readers[name]}
    written: list[bytes | memoryview] = [content(TENSOR, tensor) for tensor in CONSTANTS]
    for node in nodes:
        if _is_product(node, widened):
            written += [content(NODE, each) for each in _product(node, widened[node.inputs[1]].inputs)]
        elif not unread.intersection(node.outputs):
            written.append(node.whole)
    others = [field.whole for field in held if field.tag != NODE]
    return b"".join(
        [
            *(field.whole for field in model if field.tag != GRAPH),
            content(OPSET, content(OPSET_DOMAIN, CONTRIBUTED) + number(OPSET_VERSION, 1)),
            content(GRAPH, b"".join([*others, *written])),
        ]
    )


def _node(field: Field) -> Node:
    texts: dict[int, list[str]] = {INPUT: [], OUTPUT: [], OPERATOR: []}
    by_column = True
    for each in fields(field.data):
        if each.tag in texts:
            texts[each.tag].append(str(each.data, "utf-8"))
        elif each.tag == ATTRIBUTE:
            said = {inner.tag: inner.number or bytes(inner.data) for inner in fields(each.data)}
            by_column &= said.get(NAME) == b"axis" and said.get(INTEGER) == 1
    return Node("".join(texts[OPERATOR]), tuple(texts[INPUT]), tuple(texts[OUTPUT]), by_column, field.whole)


def _int8_names(graph: list[Field]) -> Iterator[str]:
    """Names of the graph's weights of 8-bit whole numbers."""
    for field in graph:
        if field.tag == TENSOR:
            tensor = list(fields(field.data))
            if any(each.tag == DATA_TYPE and each.number == INT8 for each in tensor):
                yield from (str(each.data, "utf-8") for each in tensor if each.tag == TENSOR_NAME)


def _widened(nodes: list[Node], weights: set[str]) -> Mapping[str, Node]:
    """By the name of what they give: the nodes that make floats of weights, with a step for each column."""
    return {
        node.outputs[0]: node
        for node in nodes
        if node.operator == "DequantizeLinear" and node.by_column and node.inputs[0] in weights
    }


def _is_product(node: Node, widened: Mapping[str, Node]) -> bool:
    return node.operator == "MatMul" and node.inputs[1] in widened


def _product(node: Node, weight: tuple[str, ...]) -> Iterator[bytes]:
    """Tokens times a weight, given as its numbers, their steps and, perhaps, their zeros."""
    (tokens, _), (answer,) = node.inputs, node.outputs
    codes, steps, *zeros = weight

    def new(name: str) -> str:
        return f"{PREFIX}{answer}.{name}"

    yield _write("Abs", [tokens], new("sizes"))
    yield _write("ReduceMax", [new("sizes"), AXES], new("largest"))
    yield _write("ReduceSum", [new("sizes"), AXES], new("all"))  # a NaN among them would get lost in the largest
    yield _write("Mul", [new("all"), TINY], new("nothing"))
    yield _write("Max", [new("largest"), new("nothing"), TINY], new("above_zero"))
    yield _write("Mul", [new("above_zero"), SHARE], new("step"))
    yield _write("Div", [tokens, new("step")], new("scaled"))
    yield _write("QuantizeLinear", [new("scaled"), ONE, ZERO], new("high"))
    yield _write("DequantizeLinear", [new("high"), ONE, ZERO], new("rounded"))
    yield _write("Sub", [new("scaled"), new("rounded")], new("rest"))
    yield _write("QuantizeLinear", [new("rest"), FINE, ZERO], new("low"))
    yield _write("Concat", [new("high"), new("low")], new("digits"), axis=0)
    multiplied = [new("digits"), codes, ONE, steps, ZERO, *zeros]
    yield _write("MatMulIntegerToFloat", multiplied, new("products"), domain=CONTRIBUTED)
    yield _write("Split", [new("products")], new("of_high"), new("of_low"), axis=0, num_outputs=2)
    yield _write("Mul", [new("of_low"), FINE], new("fine"))
    yield _write("Add", [new("of_high"), new("fine")], new("sum"))
    yield _write("Mul", [new("sum"), new("step")], answer)


def _write(operator: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: int) -> bytes:
    """A node."""
    return b"".join(
        [
            *(content(INPUT, name) for name in inputs),
            *(content(OUTPUT, name) for name in outputs),
            content(OPERATOR, operator),
            *(
                content(ATTRIBUTE, content(NAME, name) + number(INTEGER, value) + number(ATTRIBUTE_TYPE, IS_INTEGER))
                for name, value in attributes.items()
            ),
            content(DOMAIN, domain),
        ]
    )


def _constant(name: str, kind: int, raw: bytes, *dims: int) -> bytes:
    sizes = b"".join(number(DIMS, size) for size in dims)
    return sizes + number(DATA_TYPE, kind) + content(TENSOR_NAME, name) + content(RAW, raw)


ONE, ZERO, FINE, SHARE, TINY, AXES = (PREFIX + name for name in ("one", "zero", "fine", "share", "tiny", "axes"))
CONSTANTS = (
    _constant(ONE, FLOAT, struct.pack("<f", 1)),
    _constant(ZERO, UINT8, bytes([MIDDLE])),
    _constant(FINE, FLOAT, struct.pack("<f", 1 / (2 * LEVELS))),  # of the lower digit, in those of the higher one
    _constant(SHARE, FLOAT, struct.pack("<f", 1 / LEVELS)),
    _constant(TINY, FLOAT, struct.pack("<f", 1e-30)),  # tokens that are all zero
    _constant(AXES, INT64, struct.pack("<q", -1), 1),
)
