"""A session of a part that runs every step is compiled for the sizes that come, and answers as one that is not."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_runtime.errors import UsageError
from sana_runtime.openvino_session import KEPT, OpenVinoSession
from sana_runtime.session import SessionOptions
from sana_runtime.signature import Axis, Signature, TensorSpec

CHANNELS = 8
BATCH, HEIGHT, WIDTH, ROWS = (Axis(name, 1, 2, 16) for name in ("batch", "height", "width", "rows"))
LATENT = TensorSpec("latent", "float32", (BATCH, HEIGHT, WIDTH, CHANNELS))
TEXT = TensorSpec("text_kv", "float32", (BATCH, ROWS, CHANNELS))
TIME = TensorSpec("timestep", "float32", (BATCH,))
SIGNATURE = Signature("transformer", (LATENT, TIME, TEXT), (TensorSpec("velocity", "float32", LATENT.shape),))


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    """Channels last, a convolution, channels last again; then the text's mean is added, and all grows with time."""
    kernel = np.random.default_rng(0).standard_normal((CHANNELS, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["latent"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "kernel"], ["mixed"], pads=[1, 1, 1, 1], group=CHANNELS),
        helper.make_node("Transpose", ["mixed"], ["tokens"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["text_kv", "axis"], ["mean"], keepdims=1),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["shift"]),
        helper.make_node("Add", ["tokens", "shift"], ["shifted"]),
        helper.make_node("Unsqueeze", ["timestep", "axes"], ["time"]),
        helper.make_node("Mul", ["shifted", "time"], ["velocity"]),
    ]
    inputs = [
        helper.make_tensor_value_info(
            spec.name, TensorProto.FLOAT, [spec.dynamic_axes().get(i, size) for i, size in enumerate(spec.shape)]
        )
        for spec in SIGNATURE.inputs
    ]
    output = helper.make_tensor_value_info("velocity", TensorProto.FLOAT, None)
    weights = [
        numpy_helper.from_array(kernel, "kernel"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
    ]
    path = tmp_path_factory.mktemp("graphs") / "transformer.onnx"
    body = helper.make_graph(nodes, "main", inputs, [output], weights)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def feeds(batch, height, width, rows):
    return SIGNATURE.example_feeds(batch=batch, height=height, width=width, rows=rows)


def test_answers_do_not_depend_on_the_sizes_that_came_before(graph):
    fitted, plain = (
        OpenVinoSession(graph, SessionOptions(signature=SIGNATURE)),
        OpenVinoSession(graph, SessionOptions()),
    )
    for sizes in ((1, 4, 6, 3), (2, 4, 6, 9), (2, 5, 3, 9), (1, 4, 6, 1), (1, 4, 6, 3)):
        given = feeds(*sizes)
        actual, expected = (session.run(given)["velocity"] for session in (fitted, plain))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_another_length_of_text_compiles_nothing_anew_and_old_sizes_are_dropped(graph):
    session = OpenVinoSession(graph, SessionOptions(signature=SIGNATURE))
    session.run(feeds(1, 4, 6, 3))
    first = next(iter(session._requests.values()))
    session.run(feeds(1, 4, 6, 7))
    assert list(session._requests.values()) == [first]
    for width in range(1, KEPT + 2):
        session.run(feeds(1, 4, width, 3))
    assert len(session._requests) == KEPT
    assert first not in session._requests.values()


def test_sizes_that_the_part_does_not_allow_are_refused_before_anything_is_compiled(graph):
    with pytest.raises(UsageError, match="height"):
        OpenVinoSession(graph, SessionOptions(signature=SIGNATURE)).run(feeds(1, 17, 4, 1))


def test_a_part_that_runs_once_a_picture_is_compiled_once_for_all_sizes(tmp_path):
    path = tmp_path / "caption.onnx"
    shape = ["batch", "rows", CHANNELS]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("text", "text_kv")]
    body = helper.make_graph([helper.make_node("Neg", ["text"], ["text_kv"])], "main", values[:1], values[1:])
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    text = TensorSpec("text", "float32", (BATCH, ROWS, CHANNELS))
    signature = Signature("caption", (text,), (TensorSpec("text_kv", "float32", text.shape),))
    session = OpenVinoSession(path, SessionOptions(signature=signature))
    for rows in (1, 5):
        given = signature.example_feeds(rows=rows)
        np.testing.assert_array_equal(session.run(given)["text_kv"], -given["text"])
    assert len(session._requests) == 1
