"""Count a graph's operators and weights, with no ONNX library at hand."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sana_runtime.onnx_guard import BITS, FIELDS, GRAPH, MODEL, NODE, TENSOR
from sana_runtime.wire import BYTES, Field, Walker

__all__ = ["Weight", "operators", "weights"]

SIZED = {tag for tag, name in TENSOR.items() if name in ("dims", "data_type")}


@dataclass(frozen=True)
class Weight:
    """One constant tensor of a graph."""

    dims: tuple[int, ...]
    bytes: int


def operators(path: Path) -> Counter[str]:
    """How often each operator stands in the main graph of the ONNX file at `path`, which `guard` has let pass."""
    walker = Walker(FIELDS)
    nodes = _inside(walker, _graph(walker, path), GRAPH, "node")
    return Counter(str(_inside(walker, node.data, NODE, "op_type")[0].data, "utf-8") for node in nodes)


def weights(path: Path) -> Iterator[Weight]:
    """Every tensor of the main graph of the ONNX file at `path`, which `guard` has let pass."""
    walker = Walker(FIELDS)
    for tensor in _inside(walker, _graph(walker, path), GRAPH, "tensor"):
        fields = list(walker.fields(tensor.data, SIZED))  # once: what `guard` had a budget for is not read twice
        dims = tuple(
            size
            for field in _named(fields, TENSOR, "dims")
            for size in (walker.varints(field.data) if field.kind == BYTES else (field.number,))
        )
        kinds = [field.number for field in _named(fields, TENSOR, "data_type")]
        yield Weight(dims, math.prod(dims) * max((BITS.get(kind, 0) for kind in kinds), default=0) // 8)


def _graph(walker: Walker, path: Path) -> memoryview:
    (graph,) = _inside(walker, memoryview(path.read_bytes()), MODEL, "one graph")
    return graph.data


def _inside(walker: Walker, message: memoryview, table: Mapping[int, str], name: str) -> list[Field]:
    return list(walker.fields(message, {tag for tag, listed in table.items() if listed == name}))


def _named(fields: Iterable[Field], table: Mapping[int, str], name: str) -> list[Field]:
    return [field for field in fields if table.get(field.tag) == name]
