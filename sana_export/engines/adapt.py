"""Change a graph where an architecture or the plugin asks for it, without writing it anew: its weights stay in place.

The attention plugin is given the packed tensor that q, k and v are thirds of, which spares three copies a block; the
plugin for the middle of the Mix-FFN takes the place of the nodes that compute it, when it is asked for.
Turing (compute capability 7.5) has no fp32 matrix products. Linear attention without the plugin gets the body that
does with fp16 ones, INT8 products give fp16 sums, whose steps are applied in fp32 afterwards, and the fp32 products
that an INT8 bundle keeps are fp16 ones, as in an fp16 bundle.
"""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sana_calibration.quantise import TURING_ROWS, TURING_STEP
from sana_plugins.custom_op import DOMAIN, NAME, attach, pack, turing_body
from sana_runtime.errors import BackendError

from sana_export.engines.fused import fuse_mix_ffn
from sana_export.engines.job import EngineJob

__all__ = ["TURING", "adapted"]

TURING = 75
STEP, UNIT, BACK = "turing.step", "turing.one", "turing.steps_to_one"


def adapted(job: EngineJob) -> bytes | None:
    """The graph as the job's architecture and the plugin need it; None when that is how it lies in its file."""
    turing = job.capabilities == (TURING,)
    if not turing and not job.plugin:
        return None
    model = onnx.load(job.graph, load_external_data=False)
    changed = job.plugin and pack(model) > 0
    if job.fused_mix_ffn and not fuse_mix_ffn(model):
        raise BackendError(f"{job.part} has no INT8 Mix-FFN that the plugin computes; leave out --fused-mix-ffn")
    changed = job.fused_mix_ffn or changed
    changed = (turing and _suit_turing(model)) or changed
    content: bytes = model.SerializeToString()
    return content if changed else None


def _suit_turing(model: onnx.ModelProto) -> bool:
    """Leave no fp32 product; whether there were any."""
    changed = False
    if any((node.domain, node.op_type) == (DOMAIN, NAME) for node in model.graph.node):
        opset = next(entry.version for entry in model.opset_import if not entry.domain)
        attach(model, turing_body(opset))
        changed = True
    return _narrow_products(model.graph) or changed


def _narrow_products(graph: onnx.GraphProto) -> bool:
    """Give every INT8 product an fp16 sum; whether there were any, and then other products have fp16 factors, too."""
    if not any(map(_int8_among(graph), graph.node)):
        return False
    _halve_products(graph)
    dequantised, products = _dequantised(graph), list(filter(_int8_among(graph), graph.node))
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    steps: dict[str, str] = {}
    for product in products:
        tokens, weight = (dequantised[name] for name in product.input)
        if rows[weight.input[0]] > TURING_ROWS:
            raise BackendError(f"{product.name} adds up more than {TURING_ROWS} products; leave it float for Turing")
        tokens.input[1] = UNIT
        steps[product.output[0]] = weight.input[1]
        weight.input[1:] = [STEP]
        del weight.attribute[:]
    nodes = [new for node in graph.node for new in _scaled(node, steps)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    constants = {STEP: np.float16(TURING_STEP), UNIT: np.float16(1), BACK: np.float32(1 / TURING_STEP)}
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    return True


def _dequantised(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """What makes tokens and weights of codes, by what it makes."""
    return {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}


def _int8_among(graph: onnx.GraphProto) -> Callable[[onnx.NodeProto], bool]:
    """A function that says of a node whether it is an INT8 product."""
    codes = set(_dequantised(graph))
    return lambda node: node.op_type == "MatMul" and set(node.input) <= codes


def _halve_products(graph: onnx.GraphProto) -> None:
    """Let fp32 products be fp16 ones, but for those in INT8."""
    is_int8 = _int8_among(graph)
    wide = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    nodes = []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.output[0] not in wide or is_int8(node):
            nodes.append(node)
            continue
        result, half = node.output[0], f"{node.output[0]}.half"
        for i, name in enumerate(node.input):
            node.input[i] = f"{half}.{i}"
            nodes.append(helper.make_node("Cast", [name], [node.input[i]], name=node.input[i], to=TensorProto.FLOAT16))
        node.output[0] = half
        nodes += [node, helper.make_node("Cast", [half], [result], name=f"{half}.wide", to=TensorProto.FLOAT)]
    del graph.node[:]
    graph.node.extend(nodes)


def _scaled(node: onnx.NodeProto, steps: dict[str, str]) -> Iterator[onnx.NodeProto]:
    """The node, and after an INT8 product its columns' steps, applied in fp32."""
    step = steps.get(node.output[0])
    if step is None:
        yield node
        return
    result, (half, wide, columns) = node.output[0], (f"{node.name}.{kind}" for kind in ("half", "wide", "columns"))
    node.output[0] = half
    yield node
    yield helper.make_node("Cast", [half], [wide], name=wide, to=TensorProto.FLOAT)
    yield helper.make_node("Mul", [wide, step], [columns], name=columns)
    yield helper.make_node("Mul", [columns, BACK], [result], name=f"{node.name}.scaled")
