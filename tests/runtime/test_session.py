"""Sessions: one protocol over two engine libraries, with the same answers and honest failures."""

import subprocess
import sys
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


def save_narrow(path: Path, layers: int, width: int) -> Path:
    """A graph of products whose weights are stored in bfloat16 and widened where they are read."""
    rng = np.random.default_rng(0)
    weights, nodes = [], []
    for i in range(layers):
        high = (rng.standard_normal((width, width), np.float32).view(np.uint32) >> 16).astype(np.uint16)
        weights.append(helper.make_tensor(f"w{i}", TensorProto.BFLOAT16, high.shape, high.tobytes(), raw=True))
        nodes.append(helper.make_node("Cast", [f"w{i}"], [f"wide{i}"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("MatMul", [f"y{i}", f"wide{i}"], [f"p{i}"]))
        nodes.append(helper.make_node("Tanh", [f"p{i}"], [f"y{i + 1}"]))
    shape = ["n", width]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("y0", f"y{layers}")]
    graph = helper.make_graph(nodes, "narrow", ends[:1], ends[1:], initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="narrow.data")
    return path


TAKEN = """
import sys
from pathlib import Path
import numpy as np
from sana_runtime.session import Device, SessionOptions, open_session
def own():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssAnon:"))
graph, half = Path(sys.argv[1]), sys.argv[2] == "half"
open_session(graph.with_name("small.onnx"), Device.CPU, SessionOptions()).run({"x": np.eye(3, dtype=np.float32)})
before = own()
session = open_session(graph, Device.CPU, SessionOptions(half_products=half))
session.run({"y0": np.ones((4, 1024), np.float32)})
print(own() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what a process takes for itself is read as Linux tells it")
@pytest.mark.parametrize(("products", "copies"), [("half", 1), ("whole", 2)])
def test_weights_of_16_bits_are_in_memory_once_in_the_width_of_their_products(products, copies, tmp_path):
    graph, weights = save_narrow(tmp_path / "narrow.onnx", 24, 1024), 24 * 1024 * 1024 * 2
    save_chain(tmp_path / "small.onnx", 1)
    command = [sys.executable, "-c", TAKEN, str(graph), products]
    taken = int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert copies * weights / 2 < taken < (copies + 0.5) * weights


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
