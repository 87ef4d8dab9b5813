"""Products of INT8 weights straight from their file, held against the float graph that they stand for."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_runtime.errors import BackendError
from sana_runtime.in_place import LEVELS, in_place
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.session import Device, SessionOptions, open_session

STRAIGHT = SessionOptions(threads=1, in_place=True)
ZEROS = {"none": None, "all zero": 0, "others": 3}


def save(path, weights, steps, zeros=None, *, axis=1, keep=False, dims=2):
    """answer = tokens · (weights - zeros) · steps, weights beside the graph; with `keep` the float weights come out."""
    held = {"codes": weights, "steps": steps}
    if zeros is not None:
        held["zeros"] = np.full(steps.shape, zeros, np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", list(held), ["weight"], axis=axis),
        helper.make_node("MatMul", ["tokens", "weight"], ["answer"]),
    ]
    outputs = [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [None] * dims)]
    if keep:
        nodes.append(helper.make_node("Identity", ["weight"], ["kept"]))
        outputs.append(helper.make_tensor_value_info("kept", TensorProto.FLOAT, None))
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, [None] * dims)]
    tensors = [numpy_helper.from_array(array, name) for name, array in held.items()]
    body = helper.make_graph(nodes, "product", inputs, outputs, tensors)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)
    return path


def random_product(seed, shape, columns, outliers=1.0):
    rng = np.random.default_rng(seed)
    weights = rng.integers(-128, 128, (shape[-1], columns), dtype=np.int8)
    tokens = rng.standard_normal(shape).astype(np.float32)
    tokens[..., 0] *= outliers
    return tokens, weights, rng.uniform(1e-3, 1e-1, columns).astype(np.float32)


def farthest(tokens, exact_weights):
    """How far rounding tokens to two digits can take each answer, at most."""
    step = np.abs(tokens).max(-1, keepdims=True) / LEVELS / (2 * LEVELS)
    return step / 2 * np.abs(exact_weights).sum(0) * 1.001 + 1e-6


@pytest.mark.parametrize("zeros", ZEROS.values(), ids=list(ZEROS))
@pytest.mark.parametrize(
    ("shape", "columns", "outliers"),
    [((1, 26, 96), 64, 1), ((2, 3, 200), 130, 300), ((5, 33), 7, 1), ((1, 1, 64), 1, 50)],
)
def test_answers_are_as_near_as_two_digits_can_be(tmp_path, zeros, shape, columns, outliers):
    tokens, weights, steps = random_product(columns, shape, columns, outliers)
    graph = save(tmp_path / "product.onnx", weights, steps, zeros, dims=tokens.ndim)
    exact = (weights.astype(np.float64) - (zeros or 0)) * steps
    expected = tokens.astype(np.float64) @ exact
    answer = open_session(graph, Device.CPU, STRAIGHT).run({"tokens": tokens})["answer"]
    assert answer.shape == expected.shape
    slack = 1e-5 * np.abs(expected).max()  # sums of fp32
    assert (np.abs(answer - expected) <= farthest(tokens, exact) + slack).all()
    plain = ort.SessionOptions()
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # or it rounds tokens to 8 bits
    floats = ort.InferenceSession(graph, plain).run(None, {"tokens": tokens})[0]
    np.testing.assert_allclose(floats, expected, atol=slack)  # what it is held against is what the file says


def test_it_is_nearer_than_bfloat16(tmp_path):
    tokens, weights, steps = random_product(0, (1, 40, 2304), 256, 20)
    graph = save(tmp_path / "product.onnx", weights, steps, dims=3)
    expected = tokens.astype(np.float64) @ (weights * steps.astype(np.float64))
    ours, half = (
        open_session(graph, Device.CPU, options).run({"tokens": tokens})["answer"] - expected
        for options in (STRAIGHT, SessionOptions(half_products=True, threads=1))
    )
    assert np.square(ours).mean() < np.square(half).mean()


def test_the_largest_digits_do_not_overflow_where_two_products_are_added_in_16_bits(tmp_path):
    tokens = np.full((1, 4, 64), 1e3, np.float32)
    weights = np.full((64, 8), -128, np.int8)
    graph = save(tmp_path / "product.onnx", weights, np.ones(8, np.float32), dims=3)
    answer = open_session(graph, Device.CPU, STRAIGHT).run({"tokens": tokens})["answer"]
    np.testing.assert_allclose(answer, np.full((1, 4, 8), -128 * 64e3), rtol=1e-6)
    assert 2 * (2 * LEVELS + 1) * 128 < 1 << 15


def test_tokens_of_nothing_but_zeros_give_zeros_and_what_is_not_finite_stays_so(tmp_path):
    tokens, weights, steps = random_product(1, (1, 4, 32), 16)
    tokens[0, 1], tokens[0, 2, 3], tokens[0, 3, 3] = 0, np.inf, np.nan
    graph = save(tmp_path / "product.onnx", weights, steps, dims=3)
    answer = open_session(graph, Device.CPU, STRAIGHT).run({"tokens": tokens})["answer"][0]
    assert not answer[1].any()
    assert np.isfinite(answer[:2]).all()
    assert not np.isfinite(answer[2:]).any()


def test_float_weights_that_are_read_elsewhere_stay(tmp_path):
    tokens, weights, steps = random_product(2, (3, 16), 8)
    graph = save(tmp_path / "product.onnx", weights, steps, keep=True)
    found = open_session(graph, Device.CPU, STRAIGHT).run({"tokens": tokens})
    np.testing.assert_array_equal(found["kept"], weights * steps)
    model = onnx.load_from_string(in_place(graph))
    assert [node.op_type for node in model.graph.node].count("MatMulIntegerToFloat") == 1


def test_steps_by_row_are_left_as_they_are(tmp_path):
    tokens, weights, _ = random_product(3, (3, 16), 8)
    graph = save(tmp_path / "product.onnx", weights, np.full(16, 0.5, np.float32), axis=0)
    assert in_place(graph) is None
    answer = open_session(graph, Device.CPU, STRAIGHT).run({"tokens": tokens})["answer"]
    np.testing.assert_allclose(answer, tokens @ (weights * np.float32(0.5)), rtol=1e-4, atol=1e-3)


def test_what_is_written_is_a_graph_by_the_checker(tmp_path):
    _, weights, steps = random_product(4, (3, 16), 8)
    model = onnx.load_from_string(in_place(save(tmp_path / "product.onnx", weights, steps)))
    nodes = model.graph.node
    assert [node.op_type for node in nodes if node.domain] == ["MatMulIntegerToFloat"]
    assert not any(node.op_type == "DequantizeLinear" and "codes" in node.input for node in nodes)
    onnx.load_external_data_for_model(model, str(tmp_path))
    onnx.checker.check_model(model)


def test_weights_take_no_memory_a_second_time(tmp_path):
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (4096, 16384), dtype=np.int8)  # 64 MiB
    graph = save(tmp_path / "wide.onnx", weights, np.ones(16384, np.float32), dims=3)
    del weights

    def anonymous():
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) << 10

    before = anonymous()
    session = open_session(graph, Device.CPU, STRAIGHT)
    session.run({"tokens": np.ones((1, 4, 4096), np.float32)})
    assert anonymous() - before < 24 << 20


def test_only_parts_that_are_read_in_place_leave_openvino(tmp_path):
    _, weights, steps = random_product(5, (3, 16), 8)
    graph = save(tmp_path / "product.onnx", weights, steps)
    assert isinstance(open_session(graph, Device.CPU, SessionOptions()), OpenVinoSession)
    assert not isinstance(open_session(graph, Device.CPU, STRAIGHT), OpenVinoSession)


def test_a_data_file_that_is_gone_is_a_backend_error(tmp_path):
    _, weights, steps = random_product(6, (3, 16), 8)
    graph = save(tmp_path / "product.onnx", weights, steps)
    graph.with_suffix(".data").unlink()
    with pytest.raises(BackendError, match=r"product\.onnx: onnxruntime does not load it"):
        open_session(graph, Device.CPU, STRAIGHT)
