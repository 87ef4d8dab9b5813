"""The custom ONNX operator `sana::ReluLinearAttention`, with bodies for engines that have no plugin for it.

Its node carries the attributes that make TensorRT look for a plugin of that name first; where none is loaded,
and in every other engine, the body stands in: a function that travels inside the model file.
"""

import onnx
from onnx import FunctionProto, ModelProto, helper, parser

__all__ = ["ATTRIBUTES", "DOMAIN", "NAME", "VERSION", "attach", "body", "split", "turing_body"]

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
