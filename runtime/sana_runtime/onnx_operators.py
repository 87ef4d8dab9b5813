"""Count a graph's operators, with no ONNX library at hand."""

from collections import Counter
from pathlib import Path

from sana_runtime.onnx_guard import FIELDS, GRAPH, MODEL, NODE
from sana_runtime.wire import Walker

__all__ = ["operators"]


def operators(path: Path) -> Counter[str]:
    """How often each operator stands in the main graph of the ONNX file at `path`, which `guard` has let pass."""
    walker = Walker(FIELDS)

    def inside(message: memoryview, table: dict[int, str], name: str) -> list[memoryview]:
        return [field.data for field in walker.fields(message) if table.get(field.tag) == name]

    (graph,) = inside(memoryview(path.read_bytes()), MODEL, "one graph")
    return Counter(str(inside(node, NODE, "op_type")[0], "utf-8") for node in inside(graph, GRAPH, "node"))
