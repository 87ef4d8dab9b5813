"""Each pass does its one thing, and leaves the function of the graph alone."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import parser
from sana_reference.autoencoder_blocks import Upsample
from sana_reference.initialise import initialise

from sana_export.passes.fix_reshapes import fix_reshapes
from sana_export.passes.name_tensors import SCOPES, name_tensors
from sana_export.passes.remove_dead import remove_dead
from sana_export.passes.settle_weights import settle_weights
from sana_export.passes.strip_notes import strip_notes
from sana_export.tracing.upsampling import PhaseUpsample

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'


def parse(text, **weights):
    proto = parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def run(model, **feeds):
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)[0]


def test_a_transposed_weight_is_stored_transposed_under_its_name():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    model = parse("main (float[n,3] x) => (float[n,2] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }", w=weight)
    x = np.ones((4, 3), np.float32)
    before = run(model, x=x)
    assert settle_weights(model) == 1
    assert model.graph.initializers["w"].shape == ir.Shape([3, 2])
    assert [node.op_type for node in model.graph] == ["MatMul"]
    np.testing.assert_array_equal(run(model, x=x), before)


def test_a_weight_is_rearranged_in_several_steps_and_types():
    text = """main (float[n,3,1] x) => (float[n,3,1] y) {
        wide = Cast<to=1>(w)
        axes = Constant<value=int64[1] {1}>()
        column = Unsqueeze(wide, axes)
        y = Mul(x, column)
    }"""
    model = parse(text, w=np.array([1, 2, 3], np.float16))
    axes = model.graph[1].outputs[0]
    axes.const_value = model.graph[1].attributes["value"].as_tensor()
    assert settle_weights(model) == 2
    weight = model.graph.initializers["w"]
    assert (weight.dtype, weight.shape) == (ir.DataType.FLOAT, ir.Shape([3, 1]))
    np.testing.assert_array_equal(weight.const_value.numpy(), np.array([[1], [2], [3]], np.float32))


def test_a_weight_that_is_read_twice_stays_as_it_is():
    text = "main (float[n,2] x) => (float[n,2] y) { t = Transpose<perm=[1,0]>(w) a = MatMul(x, w) y = MatMul(a, t) }"
    assert settle_weights(parse(text, w=np.eye(2, dtype=np.float32))) == 0


def test_a_reshape_to_sizes_of_the_input_gets_a_constant_target():
    text = """main (float[batch,rows,6] x) => (float[batch,rows,2,3] y) {
        sizes = Shape<end=2>(x)
        inner = Constant<value=int64[2] {2, 3}>()
        target = Concat<axis=0>(sizes, inner)
        y = Reshape<allowzero=1>(x, target)
    }"""
    model = parse(text)
    model.graph.outputs[0].shape = ir.Shape(["batch", "rows", 2, 3])
    assert fix_reshapes(model) == 1
    assert remove_dead(model) == 3
    assert [node.op_type for node in model.graph] == ["Reshape"]
    assert model.graph.initializers["shape_0_0_2_3"].const_value.numpy().tolist() == [0, 0, 2, 3]
    assert run(model, x=np.zeros((4, 5, 6), np.float32)).shape == (4, 5, 2, 3)


def test_a_reshape_with_two_unknown_sizes_keeps_its_target():
    text = "main (float[n,6] x, int64[3] target) => (float[a,b,6] y) { y = Reshape(x, target) }"
    assert fix_reshapes(parse(text)) == 0


def test_nodes_are_named_after_their_modules_and_constants_by_their_order():
    text = "main (float[n] x) => (float[n] y) { a = Add(x, val_7) b = Mul(a, W) y = Mul(b, val_3) }"
    model = parse(text, val_3=np.float32(3), val_7=np.float32(7), W=np.float32(1))
    model.graph.initializers["W"].name = "decoder.stem.weight"
    for node in list(model.graph)[:2]:
        node.metadata_props[SCOPES] = "['', 'decoder', 'decoder.stem', 'mul_1']"
    name_tensors(model, "decoder")
    assert [node.name for node in model.graph] == ["stem.Add", "stem.Mul", "stem.Mul_1"]
    assert list(model.graph.initializers) == ["constant_0", "stem.weight", "constant_1"]
    assert model.graph.initializers["constant_0"].const_value.numpy() == 7
    assert model.graph.outputs[0].name == "y"


def test_notes_of_the_tracer_are_forgotten():
    model = parse("main (float[n] x) => (float[n] y) { a = Neg(x) y = Neg(a) }")
    node = model.graph[0]
    node.metadata_props["stack"] = "/home/somebody/model.py"
    node.outputs[0].shape = ir.Shape(["2*(n//2)"])
    model.graph.doc_string = "/home/somebody"
    assert strip_notes(model) == 1
    assert "somebody" not in str(ir.to_proto(model))


@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_upsampling_in_phases_is_exact(size):
    original = Upsample(32, 16)
    initialise(original, 0)
    x = torch.randn(2, 32, *size)
    with torch.no_grad():
        doubled = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        plain = original.conv(doubled) + torch.nn.functional.pixel_shuffle(x.repeat_interleave(2, dim=1), 2)
        actual = PhaseUpsample(original)(x)
    torch.testing.assert_close(actual, plain, rtol=0, atol=1e-5)


def test_kernels_of_half_precision_are_summed_before_they_are_rounded():
    original = Upsample(32, 16).to(torch.bfloat16)
    initialise(original, 0)
    kernel = PhaseUpsample(original).kernels["row0_column0"]
    rows = original.conv.weight.float()
    exact = (rows[:, :, 1:, 1:]).sum((2, 3))
    exact[range(16), range(0, 32, 2)] += 1  # the shortcut
    torch.testing.assert_close(kernel[:, :, 1, 1], exact.to(torch.bfloat16), rtol=0, atol=0)
