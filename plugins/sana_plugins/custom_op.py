"""The custom ONNX operator `sana::ReluLinearAttention`, with bodies for engines that have no plugin for it.

Its node carries the attributes that make TensorRT look for a plugin of that name first; where none is loaded,
and in every other engine, the body stands in: a function that travels inside the model file.
"""

from dataclasses import dataclass

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser

__all__ = ["ATTRIBUTES", "DOMAIN", "NAME", "VERSION", "attach", "body", "pack", "split", "turing_body"]

DOMAIN = "sana"
NAME = "ReluLinearAttention"
VERSION = 1
ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}

HEADER = """
<domain: "sana", opset_import: ["" : OPSET]>
ReluLinearAttention <plugin_namespace, plugin_version> (q, k, v) => (out)
"""

# q, k and v are (B, N, H, D). Sums over N and the division are fp32: the sums leave fp16's range, 1e-15 is 0 there.
BODY = """{
    q_wide = Cast <to = 1> (q)
    k_wide = Cast <to = 1> (k)
    v_wide = Cast <to = 1> (v)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_wide)
    k_heads = Transpose <perm = [0, 2, 3, 1]> (k_wide)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_wide)
    q_relu = Relu (q_heads)
    k_relu = Relu (k_heads)
    tokens = Constant <value = int64[1] {-1}> ()
    key_value = MatMul (k_relu, v_heads)
    key_sum = ReduceSum <keepdims = 1> (k_relu, tokens)
    mixed = MatMul (q_relu, key_value)
    weight = MatMul (q_relu, key_sum)
    tiny = Constant <value = float {1e-15}> ()
    divisor = Add (weight, tiny)
    mean = Div (mixed, divisor)
    mean_tokens = Transpose <perm = [0, 2, 1, 3]> (mean)
    out = CastLike (mean_tokens, q)
}"""

# Turing has no fp32 matrix product in TensorRT-RTX. The result does not change when a query row, or all keys of a head,
# are multiplied by a number, nor when keys and values are both divided by √N and the divisor by N; so everything that
# enters an fp16 product is first brought to the size of one, and only the small sum over D that divides stays fp32.
TURING_BODY = """{
    tiny = Constant <value = float {1e-15}> ()
    last = Constant <value = int64[1] {-1}> ()
    tokens_axis = Constant <value = int64[1] {2}> ()
    tokens_and_width = Constant <value = int64[2] {2, 3}> ()
    q_wide = Cast <to = 1> (q)
    k_wide = Cast <to = 1> (k)
    v_wide = Cast <to = 1> (v)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_wide)
    k_heads = Transpose <perm = [0, 2, 1, 3]> (k_wide)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_wide)
    q_relu = Relu (q_heads)
    k_relu = Relu (k_heads)
    q_max = ReduceMax <keepdims = 1> (q_relu, last)
    k_max = ReduceMax <keepdims = 1> (k_relu, tokens_and_width)
    q_size = Max (q_max, tiny)
    k_size = Max (k_max, tiny)
    q_unit = Div (q_relu, q_size)
    k_unit = Div (k_relu, k_size)
    count = Shape <start = 1, end = 2> (k)
    count_wide = Cast <to = 1> (count)
    root = Sqrt (count_wide)
    k_small = Div (k_unit, root)
    v_small = Div (v_heads, root)
    q_half = Cast <to = 10> (q_unit)
    k_half = Cast <to = 10> (k_small)
    v_half = Cast <to = 10> (v_small)
    k_turned = Transpose <perm = [0, 1, 3, 2]> (k_half)
    key_value = MatMul (k_turned, v_half)
    mixed_half = MatMul (q_half, key_value)
    mixed = Cast <to = 1> (mixed_half)
    key_mean = ReduceMean <keepdims = 1> (k_unit, tokens_axis)
    weights = Mul (q_unit, key_mean)
    weight = ReduceSum <keepdims = 1> (weights, last)
    divisor = Add (weight, tiny)
    mean = Div (mixed, divisor)
    mean_tokens = Transpose <perm = [0, 2, 1, 3]> (mean)
    out = CastLike (mean_tokens, q)
}"""


def body(opset: int = 20) -> FunctionProto:
    """The operator in standard operations, accumulating and dividing in fp32."""
    return _parsed(BODY, opset)


def turing_body(opset: int = 20) -> FunctionProto:
    """The operator with fp16 products only, for engines of compute capability 7.5."""
    return _parsed(TURING_BODY, opset)


def attach(model: ModelProto, function: FunctionProto) -> ModelProto:
    """Give `model` this body for the operator, in place of the one it may have."""
    others = [held for held in model.functions if (held.domain, held.name) != (function.domain, function.name)]
    del model.functions[:]
    model.functions.extend([*others, function])
    if DOMAIN not in (entry.domain for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    return model


def pack(model: ModelProto) -> int:
    """Give operators of `model` the packed tensor that their q, k and v are thirds of; how many that was possible for.

    Their output is then (B, N, C). They have no body, so only engines with the plugin run such a model.
    """
    chains = [chain for node in model.graph.node if (chain := _Chain.around(node, model.graph))]
    gone = {name for chain in chains for node in (chain.split, *chain.shaped) for name in node.output}
    joined = {chain.joined.name for chain in chains}
    for chain in chains:
        chain.operator.input[:], chain.operator.output[:] = chain.split.input[:1], chain.joined.output[:]
    nodes = [node for node in model.graph.node if node.output[0] not in gone and node.name not in joined]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return len(chains)


@dataclass
class _Chain:
    """An operator among the nodes that take a packed tensor apart before it and join heads after it."""

    split: NodeProto
    shaped: tuple[NodeProto, ...]  # q, k and v as heads
    operator: NodeProto
    joined: NodeProto

    @classmethod
    def around(cls, node: NodeProto, graph: GraphProto) -> "_Chain | None":
        """The chain around a node, or None where there is none or others read what lies inside it."""
        if (node.domain, node.op_type, len(node.input)) != (DOMAIN, NAME, 3):
            return None
        makers = {name: other for other in graph.node for name in other.output}
        shaped = tuple(makers[name] for name in node.input if name in makers and makers[name].op_type == "Reshape")
        sources = [other.input[0] for other in shaped]
        split = makers.get(sources[0]) if len(sources) == 3 else None
        if split is None or list(split.output) != sources or not _into_thirds(split):
            return None
        inner = {*split.output, *node.input, node.output[0]}
        readers = [other for other in graph.node if inner & set(other.input)]
        joined = next((other for other in readers if node.output[0] in other.input), None)
        alone = len(readers) == len(shaped) + 2 and not inner & {value.name for value in graph.output}
        if joined is None or not alone or not _heads_apart_and_together(shaped, joined, graph):
            return None
        return cls(split, shaped, node, joined)


def _into_thirds(node: NodeProto) -> bool:
    """Whether a node cuts the channels of tokens (B, N, 3 · C) into three equal parts."""
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return node.op_type == "Split" and len(node.input) == 1 and given.get("axis") in (2, -1)


def _heads_apart_and_together(shaped: tuple[NodeProto, ...], joined: NodeProto, graph: GraphProto) -> bool:
    """Whether the nodes only write (B, N, C) as (B, N, heads, D), and back."""
    constants = {
        tensor.name: numpy_helper.to_array(tensor).tolist()
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.INT64 and tensor.data_location == TensorProto.DEFAULT
    }
    apart, together = ([constants.get(node.input[1]) for node in nodes] for nodes in (shaped, (joined,)))
    shape = apart[0]
    if joined.op_type != "Reshape" or not isinstance(shape, list) or len(shape) != 4 or shape[:2] != [0, 0]:
        return False
    return apart == [shape] * 3 and together == [[0, 0, shape[2] * shape[3]]]


def split(model: ModelProto) -> int:
    """Write each operator of `model` as the two that TensorRT can compile into a plan; how many there were.

    `SumKeyValues` (k, v → state) and `ApplyQueries` (q, state → out) have no body: only TensorRT runs such a model.
    """
    nodes, found = [], 0
    for node in model.graph.node:
        if (node.domain, node.op_type) != (DOMAIN, NAME):
            nodes.append(node)
            continue
        q, k, v = node.input
        state, found = f"{node.output[0]}.state", found + 1
        for kind, inputs, output in (("SumKeyValues", [k, v], state), ("ApplyQueries", [q, state], node.output[0])):
            name = f"{node.name}.{kind}"
            nodes.append(helper.make_node(kind, inputs, [output], name=name, domain=DOMAIN, **ATTRIBUTES))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [held for held in model.functions if (held.domain, held.name) != (DOMAIN, NAME)]
    del model.functions[:]
    model.functions.extend(kept)
    return found


def _parsed(operations: str, opset: int) -> FunctionProto:
    function: onnx.FunctionProto = parser.parse_function(HEADER.replace("OPSET", str(opset)) + operations)
    return function
