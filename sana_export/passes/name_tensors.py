"""Name nodes and tensors after the modules they come from, the same in every export."""

import ast
from collections import Counter
from itertools import chain, count

import onnx_ir as ir

__all__ = ["name_tensors"]

SCOPES = "pkg.torch.onnx.name_scopes"  # the tracer's note of a node's modules, outermost first, and its own name last
NOWHERE = "_empty_nn_module_stack_from_metadata_hook"  # its note of a node that reads the inputs' sizes


def name_tensors(model: ir.Model, part: str) -> int:
    """Name each node `module.Operator`, its outputs alike, and weights as in the reference model."""
    graph = model.graph
    fixed = {value.name for value in (*graph.inputs, *graph.outputs)}
    scope, seen = "", Counter[str](name for name in fixed if name)
    renamed = _shorten_weights(graph, part, seen)
    for node in graph:
        scope = _scope(node, part, scope)
        node.name = _unique(".".join(filter(None, (scope, node.op_type))), seen)
        for i, output in enumerate(node.outputs):
            if output.name not in fixed:
                output.name = f"{node.name}.{i}" if len(node.outputs) > 1 else node.name
                renamed += 1
    return renamed


def _shorten_weights(graph: ir.Graph, part: str, seen: Counter[str]) -> int:
    """Take the part's own name off its weights, and number constants in the order in which they are used."""
    used = dict.fromkeys(value for node in graph for value in node.inputs if value and value.is_initializer())
    numbers = count()
    graph.initializers.clear()
    for value in used:
        name = str(value.name)
        kept = (
            name.removeprefix(f"{part}.") if "." in name or name.startswith("shape_") else f"constant_{next(numbers)}"
        )
        value.name = _unique(kept, seen)
        assert value.const_value is not None
        value.const_value.name = value.name
        graph.initializers[value.name] = value
    return len(used)


def _scope(node: ir.Node, part: str, previous: str) -> str:
    """The module a node belongs to; one that a rewrite made belongs where its neighbour does."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    if not scopes:
        return previous
    module = next(chain(reversed([str(scope) for scope in scopes[:-1]]), [""]))
    return "" if module in (part, NOWHERE) else module.removeprefix(f"{part}.")


def _unique(name: str, seen: Counter[str]) -> str:
    seen[name] += 1
    return name if seen[name] == 1 else _unique(f"{name}_{seen[name] - 1}", seen)
