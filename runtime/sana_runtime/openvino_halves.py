"""A graph in two halves, so that two cores make it ready: OpenVINO sets up the nodes of a model one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import TypeVar

import numpy as np

from sana_runtime.openvino_graph import op, ov

__all__ = ["halves", "side_by_side"]

BETWEEN = "sana.between."  # and a number: names of what the first half hands to the second
NEAR = 0.2  # of all operations: so far from the middle the cut may be

Given = TypeVar("Given")
Made = TypeVar("Made")


def side_by_side(make: Callable[[Given], Made], things: Sequence[Given]) -> list[Made]:
    """What becomes of each thing, each in a thread of its own."""
    if len(things) == 1:
        return [make(things[0])]
    with ThreadPoolExecutor(len(things)) as pool:
        return list(pool.map(make, things))


def halves(model: ov.Model) -> tuple[ov.Model, ov.Model]:
    """The graph up to about its middle and the rest, cut where the fewest numbers pass; the model itself is used up.

    What passes has names of its own, the same in both. Sizes must be known, but for those of texts.
    """
    _settle_shapes(model)
    nodes = list(_computed(model))
    places = {node.get_name(): place for place, node in enumerate(nodes)}
    cut = _narrowest(nodes, places)
    passing = [output for node in nodes[:cut] for output in node.outputs() if _last_read(output, places) >= cut]
    starts, ends = [], []
    for index, output in enumerate(passing):
        name = f"{BETWEEN}{index}"
        start = op.parameter(output.get_partial_shape(), output.get_element_type(), name)
        for reading in output.get_target_inputs():
            if places[reading.get_node().get_name()] >= cut:
                reading.replace_source_output(start.output(0))
        start.output(0).get_tensor().set_names({name})
        output.get_tensor().set_names({name})
        starts.append(start)
        ends.append(op.result(output))
    given = model.get_parameters()
    first = ov.Model(ends, _read(given, nodes[:cut]))
    return first, ov.Model(model.get_results(), [*starts, *_read(given, nodes[cut:])])


def _settle_shapes(model: ov.Model) -> None:
    """Put numbers in the place of sizes that are known: they would have to pass, and then nobody would know them."""
    for node in model.get_ops():
        if node.get_type_name() == "ShapeOf" and node.input_value(0).get_partial_shape().is_static:
            shape = np.array(node.input_value(0).get_shape(), np.int64)
            node.output(0).replace(op.constant(shape).output(0))
    model.validate_nodes_and_infer_types()


def _computed(model: ov.Model) -> Iterator[ov.Node]:
    """The nodes that depend on what is fed, each after those that it reads; the others go where they are read."""
    depending = {parameter.get_name() for parameter in model.get_parameters()}
    for node in model.get_ordered_ops():
        if any(value.get_node().get_name() in depending for value in node.input_values()):
            depending.add(node.get_name())
            yield node


def _narrowest(nodes: Sequence[ov.Node], places: dict[str, int]) -> int:
    """The place near the middle before which the fewest outputs have been made that are read from there on."""
    changes = [0] * (len(nodes) + 1)
    for place, node in enumerate(nodes):
        for last in (_last_read(output, places) for output in node.outputs()):
            if last > place:
                changes[place + 1] += 1
                changes[last + 1] -= 1
    passing, middle = list(accumulate(changes)), len(nodes) // 2
    reach = int(NEAR * len(nodes))
    near = range(max(1, middle - reach), middle + reach + 1)
    return min(near, key=lambda place: (passing[place], abs(place - middle)))


def _last_read(output: ov.Output, places: dict[str, int]) -> int:
    """The place of the last node that reads this output; -1 where nobody does."""
    return max((places[reading.get_node().get_name()] for reading in output.get_target_inputs()), default=-1)


def _read(parameters: Iterable[ov.Node], nodes: Iterable[ov.Node]) -> list[ov.Node]:
    """The parameters that these nodes read."""
    names = {value.get_node().get_name() for node in nodes for value in node.input_values()}
    return [parameter for parameter in parameters if parameter.get_name() in names]
