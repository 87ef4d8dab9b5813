"""Convolutions that OpenVINO computes in INT8 with a step for each picture."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_runtime.onnxruntime_session import OnnxruntimeSession
from sana_runtime.openvino_convolutions import round_convolutions
from sana_runtime.openvino_graph import read
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.session import Device, SessionOptions

CHANNELS = 32


def save(path, stored):
    """A residual block with weights of this type, then a convolution to three channels."""
    rng = np.random.default_rng(0)
    nodes, x = [], "x"
    weights = [numpy_helper.from_array(rng.standard_normal(CHANNELS).astype(np.float32), "bias")]
    for name, outputs in (("first", CHANNELS), ("second", CHANNELS), ("head", 3)):
        kernel = rng.standard_normal((outputs, CHANNELS, 3, 3)) * rng.uniform(0.01, 1, (outputs, 1, 1, 1))
        weights.append(numpy_helper.from_array((kernel / 17).astype(stored), f"{name}.stored"))
        nodes.append(helper.make_node("Cast", [f"{name}.stored"], [f"{name}.kernel"], to=TensorProto.FLOAT))
        inputs = [x, f"{name}.kernel", *(["bias"] if name == "first" else [])]
        nodes.append(helper.make_node("Conv", inputs, [name], pads=[1] * 4))
        x = name
        if name != "head":
            nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"]))
            x = f"{name}.relu"
    sizes = ["batch", CHANNELS, "height", "width"]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "block",
        [value("x", TensorProto.FLOAT, sizes)],
        [value("head", TensorProto.FLOAT, [sizes[0], 3, *sizes[2:]])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(params=[np.float32, np.float16])
def graph(request, tmp_path):
    return save(tmp_path / "block.onnx", request.param)


def pictures():
    rng = np.random.default_rng(1)
    return (rng.standard_normal((3, CHANNELS, 9, 7)) * np.array([1, 100, 0])[:, None, None, None]).astype(np.float32)


def test_int8_convolutions_are_near_float_ones_and_are_not_taken_for_them(graph):
    exact = OnnxruntimeSession(graph, Device.ONNXRUNTIME, SessionOptions()).run({"x": pictures()})["head"]
    rounded = OpenVinoSession(graph, SessionOptions(int8_convolutions=True)).run({"x": pictures()})["head"]
    plain = OpenVinoSession(graph, SessionOptions()).run({"x": pictures()})["head"]
    assert np.abs(plain - exact).max() < 1e-4 * np.abs(exact).max()
    for ours, theirs in zip(rounded, exact, strict=True):  # the last picture is what the bias alone gives
        assert 1e-3 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.03


def test_every_picture_has_a_step_of_its_own(graph):
    session = OpenVinoSession(graph, SessionOptions(int8_convolutions=True))
    together = session.run({"x": pictures()})["head"]
    alone = np.concatenate([session.run({"x": picture[None]})["head"] for picture in pictures()])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_only_convolutions_that_keep_the_number_of_channels_are_rounded(graph):
    model = read(graph, half_convolutions=False)
    assert round_convolutions(model) == 2
    assert sum(node.get_type_name() == "FakeQuantize" for node in model.get_ops()) == 2


def test_the_kernels_run_in_int8(graph):
    session = OpenVinoSession(graph, SessionOptions(int8_convolutions=True))
    session.run({"x": pictures()})
    ((request,),) = session._requests.values()
    nodes = [node.get_rt_info() for node in request.get_compiled_model().get_runtime_model().get_ops()]
    ran = [each["runtimePrecision"].astype(str) for each in nodes if each["layerType"].astype(str) == "Convolution"]
    assert sum(kind in ("i8", "u8") for kind in ran) == 2
    assert len(ran) == 3


def test_a_model_kept_in_int8_is_not_read_back_in_float(graph, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sana_runtime.openvino_session.WORTH_KEEPING", 0.0)
    monkeypatch.setenv("SANA_EXPORT_COMPILED", "on")
    options = [SessionOptions(int8_convolutions=int8) for int8 in (True, False, True, False)]
    answers = [OpenVinoSession(graph, each).run({"x": pictures()})["head"] for each in options]
    np.testing.assert_array_equal(answers[2], answers[0])
    np.testing.assert_array_equal(answers[3], answers[1])
    assert not np.array_equal(answers[0], answers[1])
