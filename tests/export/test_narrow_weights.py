"""Weights stored in 16 bits are widened where they are read: half the bytes, the same fp32 graph."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_runtime.session import Device, SessionOptions, open_session

from sana_export.passes.narrow_weights import narrow_weights, widen_weights
from sana_export.precision import Precision, scheme_of, stored_as
from sana_export.saving import data_file, save_graph

RNG = np.random.default_rng(0)


def layer(weight):
    """x times a weight, plus a bias that is too small to be worth narrowing."""
    rows, columns = weight.shape
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "layer.weight"], ["m"], "m"),
            helper.make_node("Add", ["m", "bias"], ["y"], "a"),
        ],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", columns])],
        [
            numpy_helper.from_array(weight, "layer.weight"),
            numpy_helper.from_array(np.ones(columns, np.float32), "bias"),
        ],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


@pytest.mark.parametrize("device", [Device.ONNXRUNTIME, Device.CPU])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_a_narrowed_graph_computes_in_fp32_with_rounded_weights(tmp_path, device, dtype):
    weight = RNG.standard_normal((48, 64)).astype(np.float32)
    model = layer(weight)
    assert narrow_weights(model, dtype) == 1
    save_graph(model, tmp_path / "layer.onnx")
    onnx.checker.check_model(tmp_path / "layer.onnx", full_check=True)
    assert data_file(tmp_path / "layer.onnx").stat().st_size == weight.nbytes // 2
    x = RNG.standard_normal((3, 48)).astype(np.float32)
    expected = x @ weight.astype(dtype.numpy()).astype(np.float32) + 1
    actual = open_session(tmp_path / "layer.onnx", device, SessionOptions(threads=1)).run({"x": x})["y"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_widened_and_narrowed_again_a_graph_is_the_same_to_the_byte(tmp_path, dtype):
    model = layer(RNG.standard_normal((48, 64)).astype(np.float32))
    narrow_weights(model, dtype)
    save_graph(model, tmp_path / "narrow.onnx")
    again = ir.load(tmp_path / "narrow.onnx")
    assert widen_weights(again) == dtype
    assert [node.op_type for node in again.graph] == ["MatMul", "Add"]
    assert widen_weights(again) is None
    narrow_weights(again, dtype)
    save_graph(again, tmp_path / "again.onnx")
    assert data_file(tmp_path / "again.onnx").read_bytes() == data_file(tmp_path / "narrow.onnx").read_bytes()


def test_tables_and_remembered_states_keep_their_precision():
    model = layer(RNG.standard_normal((48, 64)).astype(np.float32))
    value = model.graph.initializers.pop("layer.weight")
    value.name = "constant_3"
    model.graph.register_initializer(value)
    assert narrow_weights(model, ir.DataType.BFLOAT16) == 0


def test_a_weight_that_float16_cannot_hold_is_stored_as_bfloat16(tmp_path):
    weight = RNG.standard_normal((48, 64)).astype(np.float32)
    weight[3, 4] = 1e6
    model = layer(weight)
    narrow_weights(model, ir.DataType.FLOAT16)
    save_graph(model, tmp_path / "layer.onnx")
    (y,) = onnxruntime.InferenceSession(tmp_path / "layer.onnx").run(None, {"x": np.eye(48, dtype=np.float32)})
    assert np.isfinite(y).all()
    assert y[3, 4] == pytest.approx(1e6, rel=0.01)


def test_int8_bundles_hold_no_product_that_onnxruntime_lacks_and_name_what_they_store():
    assert scheme_of("text_encoder", Precision.INT8) == ("bf16", "bfloat16-weights")
    assert scheme_of("decoder", Precision.INT8) == ("bf16", "float16-weights")
    assert scheme_of("transformer", Precision.INT8) == scheme_of("caption", Precision.INT8) == ("fp32", "float32")
    assert scheme_of("decoder", Precision.FP16) == ("bf16", "bfloat16")
    assert stored_as("transformer", Precision.FP16) == "float16"
