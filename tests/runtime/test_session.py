"""Sessions: one protocol over two engine libraries, with the same answers and honest failures."""

import threading
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from sana_runtime.errors import BackendError
from sana_runtime.session import Device, Interrupted, SessionOptions, open_session

DEVICES = [Device.CPU, Device.ONNXRUNTIME]


def save_chain(path: Path, length: int) -> Path:
    """A graph that multiplies x by itself `length` times."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y0"])]
    nodes += [helper.make_node("MatMul", ["x", f"y{i}"], [f"y{i + 1}"]) for i in range(length)]
    square = ["n", "n"]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, square)],
        [helper.make_tensor_value_info(f"y{length}", TensorProto.FLOAT, square)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    return save_chain(tmp_path_factory.mktemp("graphs") / "chain.onnx", 3)


@pytest.mark.parametrize("device", DEVICES)
def test_a_session_computes_what_numpy_computes(device, chain):
    x = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)
    answer = open_session(chain, device, SessionOptions()).run({"x": x})
    np.testing.assert_allclose(answer["y3"], np.linalg.matrix_power(x, 5), rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_answers_stay_when_the_session_runs_again(device, chain):
    session = open_session(chain, device, SessionOptions())
    first = session.run({"x": np.eye(3, dtype=np.float32)})["y3"]
    session.run({"x": np.full((3, 3), 7, np.float32)})
    np.testing.assert_array_equal(first, np.eye(3))


@pytest.mark.parametrize("device", DEVICES)
def test_views_are_taken_as_what_they_show(device, chain):
    x = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    session = open_session(chain, device, SessionOptions())
    np.testing.assert_array_equal(
        session.run({"x": x.T[::2, ::2]})["y3"], session.run({"x": x.T[::2, ::2].copy()})["y3"]
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_long_run_can_be_interrupted_and_the_session_used_again(device, tmp_path):
    session = open_session(save_chain(tmp_path / "long.onnx", 1000), device, SessionOptions(threads=1))
    x = np.eye(400, dtype=np.float32) / 2
    requested = []

    def interrupt() -> None:
        requested.append(time.monotonic())
        session.interrupt()

    timer = threading.Timer(0.2, interrupt)
    timer.start()
    with pytest.raises(Interrupted):
        session.run({"x": x})
    assert requested, "the run ended before it was interrupted; make it longer"
    assert session.run({"x": x[:2, :2]})["y1000"].shape == (2, 2)


@pytest.mark.parametrize("device", DEVICES)
def test_an_interruption_while_nothing_runs_is_forgotten(device, chain):
    session = open_session(chain, device, SessionOptions())
    session.interrupt()
    assert session.run({"x": np.eye(2, dtype=np.float32)})["y3"].shape == (2, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("content", [b"", b"\x08\x0a garbage"])
def test_a_file_that_is_no_graph_is_a_backend_error_in_one_line(device, content, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"broken\.onnx") as raised:
        open_session(path, device, SessionOptions())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_of_the_wrong_shape_are_a_backend_error(device, chain):
    with pytest.raises(BackendError):
        open_session(chain, device, SessionOptions()).run({"x": np.zeros((2, 3), np.float32)})


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is there")
def test_a_provider_that_is_not_installed_is_refused_and_never_replaced(chain):
    with pytest.raises(BackendError, match="install onnxruntime-gpu"):
        open_session(chain, Device.CUDA, SessionOptions())


def test_sixteen_bit_products_are_used_only_where_allowed(tmp_path):
    path = save_chain(tmp_path / "chain.onnx", 1)
    x = np.random.default_rng(2).standard_normal((256, 256)).astype(np.float32)
    exact = np.linalg.matrix_power(x.astype(np.float64), 3)
    error = [
        np.abs(open_session(path, Device.CPU, SessionOptions(half_products=half)).run({"x": x})["y1"] - exact).max()
        for half in (False, True)
    ]
    assert error[0] < 1e-5 * np.abs(exact).max()
    assert error[1] >= error[0]
