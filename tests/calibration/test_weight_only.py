"""Weights and tables of a part in INT8, computed in float: oracles are written out in numpy."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_calibration.weight_only import quantise_weights
from sana_runtime.session import Device, SessionOptions, open_session

from sana_export.saving import data_file, save_graph

RNG = np.random.default_rng(3)
TABLE, WEIGHT, SMALL = (RNG.standard_normal(shape).astype(np.float32) for shape in ((300, 48), (48, 96), (96, 8)))
IDS = np.array([[0, 7, 299], [7, 7, 150]])


def text_model():
    """Rows of a table through two products, the second too small to be worth rounding; and a constant look-up."""
    angles = numpy_helper.from_array(np.ones((300, 48), np.float32), "constant_1")
    weights = zip((TABLE, WEIGHT, SMALL), ("embedding", "layers.0.expand", "layers.0.out"), strict=True)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["embedding.weight", "ids"], ["rows"], "g"),
            helper.make_node("Gather", ["constant_1", "ids"], ["angles"], "a"),
            helper.make_node("Mul", ["rows", "angles"], ["turned"], "t"),
            helper.make_node("MatMul", ["turned", "layers.0.expand.weight"], ["wide"], "m"),
            helper.make_node("MatMul", ["wide", "layers.0.out.weight"], ["y"], "o"),
        ],
        "text",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "L"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "L", 8])],
        [angles, *(numpy_helper.from_array(array, f"{name}.weight") for array, name in weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def rounded(weight, axis):
    step = np.abs(weight).max(axis=axis, keepdims=True) / 127
    return np.rint(weight / step) * step


ENGINES = ((Device.CPU, 1e-5), (Device.ONNXRUNTIME, 5e-3))  # onnxruntime rounds tokens, too, in blocks of 32 channels


@pytest.mark.parametrize(("device", "tolerance"), ENGINES)
def test_the_graph_computes_with_weights_rounded_by_column_and_tables_by_row(tmp_path, device, tolerance):
    model = text_model()
    done = quantise_weights(model)
    assert (done.products, done.left) == (("layers.0.expand",), ("layers.0.out",))
    save_graph(model, tmp_path / "text.onnx")
    onnx.checker.check_model(tmp_path / "text.onnx", full_check=True)
    expected = rounded(TABLE, 1)[IDS] @ rounded(WEIGHT, 0) @ SMALL
    session = open_session(tmp_path / "text.onnx", device, SessionOptions(threads=1))
    actual = session.run({"ids": IDS})["y"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    plain = TABLE[IDS] @ WEIGHT @ SMALL
    assert np.abs(actual - plain).max() > 1e-4 * np.abs(plain).max(), "nothing was rounded"


def test_what_is_stored_is_a_quarter_and_constants_of_the_graph_stay_as_they_are(tmp_path):
    model = text_model()
    quantise_weights(model)
    save_graph(model, tmp_path / "text.onnx")
    kinds = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert kinds["constant_1"] == kinds["layers.0.out.weight"] == ir.DataType.FLOAT
    assert kinds["embedding.weight_int8"] == kinds["layers.0.expand.weight_int8"] == ir.DataType.INT8
    assert not {"embedding.weight", "layers.0.expand.weight"} & kinds.keys()
    left = TABLE.nbytes + SMALL.nbytes + 4 * (len(TABLE) + WEIGHT.shape[1])  # the constant, the small one, steps
    pages = 6 * 4096
    assert data_file(tmp_path / "text.onnx").stat().st_size <= (TABLE.size + WEIGHT.size) + left + pages


def test_a_row_and_a_column_of_zeros_stay_zero(tmp_path):
    model = text_model()
    table, weight = TABLE.copy(), WEIGHT.copy()
    table[7], weight[:, 3] = 0, 0
    for name, array in (("embedding.weight", table), ("layers.0.expand.weight", weight)):
        model.graph.initializers[name].const_value = ir.Tensor(array, name=name)
    quantise_weights(model)
    save_graph(model, tmp_path / "text.onnx")
    session = open_session(tmp_path / "text.onnx", Device.ONNXRUNTIME, SessionOptions(threads=1))
    y = session.run({"ids": IDS})["y"]
    assert np.isfinite(y).all()
    assert not y[0, 1].any()
    assert y[0, 0].any()
