"""A graph of bfloat16 runs on onnxruntime's CPU provider, which knows no bfloat16, as the fp32 graph it stands for."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sana_runtime.bfloat16 import widened
from sana_runtime.session import Device, SessionOptions, open_session

ROWS, COLUMNS = 24, 40
HALF, WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT


def rounded(array):
    """Cut to the upper half of fp32, which is bfloat16."""
    return (array.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def tensor(name, array):
    codes = (rounded(array).view(np.uint32) >> 16).astype("<u2")
    return onnx.TensorProto(name=name, data_type=HALF, dims=array.shape, raw_data=codes.tobytes())


@pytest.fixture(scope="module")
def arrays():
    generator = np.random.default_rng(0)
    shapes = {"x": (3, ROWS), "weight": (ROWS, COLUMNS), "bias": (COLUMNS,), "gain": (ROWS, ROWS)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def graph(tmp_path_factory, arrays):
    """y = (2x · gain) · weight + bias: a large weight and an fp32 one beside the graph, a bias and a constant in it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=HALF),
        helper.make_node("Constant", [], ["two"], value=tensor("two", np.array([2], np.float32))),
        helper.make_node("Mul", ["narrow", "two"], ["double"]),
        helper.make_node("Cast", ["double"], ["wide"], to=WIDE),
        helper.make_node("MatMul", ["wide", "gain"], ["gained"]),
        helper.make_node("CastLike", ["gained", "double"], ["again"]),
        helper.make_node("MatMul", ["again", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Transpose", ["sum"], ["turned"], perm=[1, 0]),
        helper.make_node("Cast", ["turned"], ["y"], to=WIDE),
    ]
    gain = onnx.numpy_helper.from_array(arrays["gain"], "gain")
    held = [tensor(name, arrays[name]) for name in ("weight", "bias")]
    ends = [helper.make_tensor_value_info(name, WIDE, [None, None]) for name in ("x", "y")]
    inner = [helper.make_tensor_value_info(name, HALF, None) for name in ("double", "sum")]
    body = helper.make_graph(nodes, "main", ends[:1], ends[1:], [gain, *held], value_info=inner)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    path = tmp_path_factory.mktemp("graphs") / "half.onnx"
    onnx.save(model, path, save_as_external_data=True, location="half.data", size_threshold=256)
    return path


def expected(arrays):
    double = 2 * rounded(arrays["x"]).astype(np.float64)
    return (double @ arrays["gain"] @ rounded(arrays["weight"]) + rounded(arrays["bias"])).T


def test_onnxruntime_runs_it_in_fp32_on_weights_that_were_rounded(graph, arrays):
    session = open_session(graph, Device.ONNXRUNTIME, SessionOptions(threads=1))
    given = {"x": rounded(arrays["x"])}
    exact = expected(arrays)
    assert np.abs(session.run(given)["y"] - exact).max() <= 1e-5 * np.abs(exact).max()


def test_openvino_gives_the_same_but_for_rounding(graph, arrays):
    given = {"x": rounded(arrays["x"])}
    actual, exact = (
        open_session(graph, device, SessionOptions(threads=1)).run(given)["y"]
        for device in (Device.CPU, Device.ONNXRUNTIME)
    )
    assert np.abs(actual - exact).max() <= 2e-2 * np.abs(exact).max()


def test_what_was_rewritten_is_a_valid_model_without_bfloat16(graph):
    content, weights = widened(graph)
    model = onnx.load_model_from_string(content)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert HALF not in {weight.data_type for weight in model.graph.initializer}
    assert not any(attribute.i == HALF for node in model.graph.node for attribute in node.attribute)
    assert {name: array.dtype for name, array in weights.items()} == {"gain": np.float32, "weight": np.float32}


def test_a_graph_without_bfloat16_is_left_alone(tmp_path):
    value = [helper.make_tensor_value_info(name, WIDE, [16]) for name in ("x", "y")]
    softmax = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    path = tmp_path / "plain.onnx"
    onnx.save(helper.make_model(helper.make_graph([softmax], "main", value[:1], value[1:])), path)
    assert widened(path) is None
