"""The layers of a graph, with the types that their weights are stored and read in; no ONNX library is needed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sana_runtime.onnx_guard import BITS, FIELDS
from sana_runtime.wire import BYTES, Walker

__all__ = ["INTEGER_PRODUCT", "STORED", "WIDENED", "Layer", "layers"]

# How a weight is read: both factors as codes, through a node that widens it first, or as it lies in the file.
INTEGER_PRODUCT, WIDENED, STORED = "codes by codes", "widened", "as stored"

GRAPH, NODES, TENSORS = 7, 1, 5  # numbers of fields in onnx.proto, as those below
INPUT, OUTPUT, OPERATOR = 1, 2, 4  # of a node
DIMS, TYPE, NAME = 1, 2, 8  # of a tensor
TYPES = {1: "fp32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "fp16", 11: "fp64", 16: "bf16"}
TYPES |= {17: "fp8", 21: "uint4", 22: "int4"}
WIDENING = ("DequantizeLinear", "Cast")
LONGEST = 4  # such nodes in a row; a graph that was made to mislead could have a ring of them


@dataclass(frozen=True)
class Layer:
    """The constants of one module; type and shape are those of the largest, its weight."""

    name: str
    operator: str  # what the weight is used in
    shape: tuple[int, ...]
    stored: str
    read: str  # INTEGER_PRODUCT, WIDENED or STORED
    bytes: int  # of all its constants


@dataclass(frozen=True)
class Tensor:
    """One constant; its content is not read."""

    name: str
    shape: tuple[int, ...]
    kind: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * BITS.get(self.kind, 0) // 8


@dataclass(frozen=True)
class Node:
    """One operator at work."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def result(self) -> str:
        """The first output; a graph that was made to mislead may have none."""
        return next(iter(self.outputs), "")


@dataclass(frozen=True)
class Wiring:
    """Who reads a value first, and which operator made it."""

    readers: Mapping[str, Node]
    makers: Mapping[str, str]

    def use(self, value: str) -> tuple[str, str]:
        """The operator that a weight ends in, and how it is read there."""
        node, through = self.readers.get(value), ""
        for _ in range(LONGEST):
            if node is None or node.operator not in WIDENING or node.inputs[0] != value:
                break
            through, value, node = node.operator, node.result, self.readers.get(node.result)
        if node is None:
            return "", STORED
        if node.operator == "Gather" and (found := self.readers.get(node.result)) and found.operator in WIDENING:
            through = found.operator  # a table's rows are widened when they have been found
        factors = [through if each == value else self.makers.get(each) for each in node.inputs[:2]]
        codes = factors == ["DequantizeLinear"] * 2
        return node.operator, INTEGER_PRODUCT if codes else WIDENED if through else STORED


def layers(path: Path) -> list[Layer]:
    """The layers of the ONNX file at `path`, which `guard` has let pass, in the order of its weights."""
    nodes, tensors = _read(path)
    readers = {value: node for node in reversed(nodes) for value in node.inputs}
    wiring = Wiring(readers, {value: node.operator for node in nodes for value in node.outputs})
    modules: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        modules.setdefault(tensor.name.rpartition(".")[0] or tensor.name, []).append(tensor)
    return [_layer(name, held, wiring) for name, held in modules.items()]


def _layer(name: str, tensors: list[Tensor], wiring: Wiring) -> Layer:
    weight = max(tensors, key=lambda tensor: tensor.bytes)
    operator, read = wiring.use(weight.name)
    total = sum(tensor.bytes for tensor in tensors)
    return Layer(name, operator, weight.shape, TYPES.get(weight.kind, f"type {weight.kind}"), read, total)


def _read(path: Path) -> tuple[list[Node], list[Tensor]]:
    walker = Walker(FIELDS)
    (graph,) = (field.data for field in walker.fields(memoryview(path.read_bytes())) if field.tag == GRAPH)
    fields = list(walker.fields(graph))
    nodes = [_node(walker, field.data) for field in fields if field.tag == NODES]
    return nodes, [_tensor(walker, field.data) for field in fields if field.tag == TENSORS]


def _node(walker: Walker, message: memoryview) -> Node:
    texts: dict[int, list[str]] = {INPUT: [], OUTPUT: [], OPERATOR: []}
    for field in walker.fields(message):
        if field.tag in texts:
            texts[field.tag].append(_text(field.data))
    return Node("".join(texts[OPERATOR]), tuple(texts[INPUT]), tuple(texts[OUTPUT]))


def _tensor(walker: Walker, message: memoryview) -> Tensor:
    fields = list(walker.fields(message))
    named = {field.tag: field for field in fields}
    dims = [
        size
        for field in fields
        if field.tag == DIMS
        for size in (walker.varints(field.data) if field.kind == BYTES else (field.number,))
    ]
    name = _text(named[NAME].data) if NAME in named else ""
    return Tensor(name, tuple(dims), named[TYPE].number if TYPE in named else 0)


def _text(data: memoryview) -> str:
    return str(data, "utf-8", "replace")
