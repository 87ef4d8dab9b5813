"""Put the plugin for the middle of the Mix-FFN into INT8 graphs, in place of the nodes that compute it.

Between its two products an INT8 Mix-FFN convolves, gates and rounds. `sana::GatedDepthwiseInt8` does it in one launch.
The operator has no body: only engines with the plugin run such a graph.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser
from sana_calibration.rounding import LEVELS, SMALLEST
from sana_plugins.custom_op import ATTRIBUTES, DOMAIN
from sana_plugins.tensorrt.mix_ffn import GATED_DEPTHWISE, MULTIPLE, TAPS

__all__ = ["fuse_mix_ffn"]

# What is looked for, as graphs have it; float32 graphs have no Cast. Names that no node makes are inputs or constants.
MIDDLE = """
<domain: "sana", opset_import: ["" : 20]>
Middle (tokens, weight, bias, together, last, smallest, one_level, one, zero) => (codes, step) {
    planes = Transpose <perm = [0, 3, 1, 2]> (tokens)
    mixed = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1]>
        (planes, weight, bias)
    rows = Transpose <perm = [0, 2, 3, 1]> (mixed)
    flat = Reshape (rows, together)
    value, gate = Split <axis = 2, num_outputs = 2> (flat)
    opening = Sigmoid (gate)
    opened = Mul (gate, opening)
    gated = Mul (value, opened)
    wide = Cast <to = 1> (gated)
    size = Abs (wide)
    largest = ReduceMax <keepdims = 1> (size, last)
    positive = Max (largest, smallest)
    step = Mul (positive, one_level)
    steps = Div (wide, step)
    codes = QuantizeLinear (steps, one, zero)
}"""
WITHOUT_CAST = MIDDLE.replace("    wide = Cast <to = 1> (gated)\n", "").replace("gated =", "wide =")
FORMS = tuple(parser.parse_function(text) for text in (MIDDLE, WITHOUT_CAST))
DEFAULTS = {"ReduceMax": {"keepdims": 1}}  # of attributes that the form names and graphs leave out
Makers = Mapping[str, onnx.NodeProto]  # by what they make
CONSTANTS = {
    "last": np.array([-1]),
    "smallest": np.float32(SMALLEST),
    "one_level": np.float32(1 / LEVELS),
    "one": np.float32(1),
    "zero": np.int8(0),
}
TAPS_SHAPE = "fused.taps_{wide}"  # the shape that lays a weight's nine taps side by side


def fuse_mix_ffn(model: onnx.ModelProto) -> int:
    """Give the middle of every INT8 Mix-FFN of `model` to the plugin; of how many that was possible."""
    makers = {name: node for node in model.graph.node for name in node.output}
    ends = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    found = [middle for end in ends if (middle := _Middle.ending_in(end, model.graph, makers))]
    for middle in found:
        _replace(model.graph, middle)
    return len(found)


@dataclass
class _Middle:
    """Nodes of a graph that are those of a form, and which of the graph's names stand for the form's."""

    form: onnx.FunctionProto
    names: dict[str, str] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    @classmethod
    def ending_in(cls, codes: str, graph: onnx.GraphProto, makers: Makers) -> "_Middle | None":
        """The nodes that make these codes, or None when they are no such middle, or others read what lies inside."""
        for form in FORMS:
            middle = cls(form)
            if middle._binds("codes", codes, makers) and middle._is_alone(graph) and middle._is_known(graph):
                return middle
        return None

    def _binds(self, wanted: str, name: str, makers: Makers) -> bool:
        """Whether what makes `name` is what makes `wanted` in the form, down to the form's inputs."""
        if wanted in self.names:
            return self.names[wanted] == name
        self.names[wanted] = name
        like = next((node for node in self.form.node if wanted in node.output), None)
        if like is None:
            return True
        node = makers.get(name)
        if node is None or not _is_like(node, like):
            return False
        self.nodes.append(node)
        if any(self.names.setdefault(a, b) != b for a, b in zip(like.output, node.output, strict=True)):
            return False
        return all(self._binds(a, b, makers) for a, b in zip(like.input, node.input, strict=True))

    def _is_alone(self, graph: onnx.GraphProto) -> bool:
        """Whether nobody else reads what the plugin does not give."""
        kept = {*self.form.input, *self.form.output}
        inner = {name for wanted, name in self.names.items() if wanted not in kept}
        mine = {node.output[0] for node in self.nodes}
        readers = {name for node in graph.node if node.output[0] not in mine for name in node.input}
        return not inner & (readers | {value.name for value in graph.output})

    def _is_known(self, graph: onnx.GraphProto) -> bool:
        """Whether the constants are those that the kernel was compiled with, and the channels as many as it takes."""
        held = {tensor.name: tensor for tensor in graph.initializer}
        together, *others = (held.get(self.names[name]) for name in ("together", *CONSTANTS))
        agree = all(_is(tensor, value) for tensor, value in zip(others, CONSTANTS.values(), strict=True))
        return agree and _is(together, np.array([0, -1, self.wide])) and self.wide % (2 * MULTIPLE) == 0

    @property
    def wide(self) -> int:
        """Channels of the convolution: values and gates."""
        (convolution,) = (node for node in self.nodes if node.op_type == "Conv")
        return int(helper.get_node_attr_value(convolution, "group"))

    @property
    def place(self) -> str:
        """The Mix-FFN's name."""
        (convolution,) = (node for node in self.nodes if node.op_type == "Conv")
        return str(convolution.name).removesuffix(".depthwise.Conv")


def _is_like(node: onnx.NodeProto, like: onnx.NodeProto) -> bool:
    """Whether a node does what the form's does: the attributes that the form names are the same."""
    sizes = (len(node.input), len(node.output)) == (len(like.input), len(like.output))
    return sizes and node.op_type == like.op_type and _attributes(like).items() <= _attributes(node).items()


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    values = DEFAULTS.get(node.op_type, {}) | values
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _is(tensor: onnx.TensorProto | None, expected: Any) -> bool:
    """Whether a constant has this value; those that lie in the weights' file are too large to."""
    if tensor is None or tensor.data_location != TensorProto.DEFAULT:
        return False
    return np.array_equal(numpy_helper.to_array(tensor), expected)


def _replace(graph: onnx.GraphProto, middle: _Middle) -> None:
    """Put the plugin's node where the middle's last one is, and leave the others out."""
    mine = {node.output[0] for node in middle.nodes}
    new = list(_plugin(graph, middle))
    nodes = []
    for node in graph.node:
        if node.output[0] == middle.names["codes"]:
            nodes += new
        elif node.output[0] not in mine:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _plugin(graph: onnx.GraphProto, middle: _Middle) -> Iterator[onnx.NodeProto]:
    """The plugin's node, and those that lay the weight tap by tap, which engines do when they are built."""
    names, shape = middle.names, TAPS_SHAPE.format(wide=middle.wide)
    if shape not in {tensor.name for tensor in graph.initializer}:
        graph.initializer.append(numpy_helper.from_array(np.array([middle.wide, TAPS]), shape))
    flat, taps, name = (f"{middle.place}.{kind}" for kind in ("flat_weight", "taps", GATED_DEPTHWISE.name))
    yield helper.make_node("Reshape", [names["weight"], shape], [flat], name=flat)
    yield helper.make_node("Transpose", [flat], [taps], name=taps, perm=[1, 0])
    inputs, outputs = [names["tokens"], taps, names["bias"]], [names["codes"], names["step"]]
    yield helper.make_node(GATED_DEPTHWISE.name, inputs, outputs, name=name, domain=DOMAIN, **ATTRIBUTES)
