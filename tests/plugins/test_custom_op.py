"""The operator's bodies compute ReLU linear attention, and engines take them."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from sana_plugins.custom_op import ATTRIBUTES, DOMAIN, NAME, attach, body, turing_body

_spec = importlib.util.spec_from_file_location("rtx_builds", Path(__file__).parents[1] / "rtx_builds.py")
rtx_builds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rtx_builds)

BODIES = {"plain": body, "turing": turing_body}
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def lone_node(dtype, function):
    """A model of nothing but the operator."""
    shape = ["batch", "tokens", "heads", 32]
    tensors = {name: helper.make_tensor_value_info(name, TYPES[dtype], shape) for name in ("q", "k", "v", "out")}
    out = tensors.pop("out")
    node = helper.make_node(NAME, [*tensors], ["out"], domain=DOMAIN, **ATTRIBUTES)
    graph = helper.make_graph([node], "lone", [*tensors.values()], [out])
    return attach(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), function)


def run(model, **feeds):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]


def exact(q, k, v):
    q, k, v = (np.asarray(x, np.float64).transpose(0, 2, 1, 3) for x in (q, k, v))
    q, k = np.maximum(q, 0), np.maximum(k, 0)
    weights = q @ k.transpose(0, 1, 3, 2)  # the quadratic form, which no body uses
    return ((weights @ v) / (weights.sum(-1, keepdims=True) + 1e-15)).transpose(0, 2, 1, 3)


def draw(dtype, scale=1.0, tokens=77):
    generator = np.random.default_rng(tokens)
    return {name: (generator.standard_normal((2, tokens, 3, 32)) * scale).astype(dtype) for name in "qkv"}


@pytest.mark.parametrize("which", BODIES)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_body_is_valid_onnx(which, dtype):
    onnx.checker.check_model(lone_node(dtype, BODIES[which]()), full_check=True)


@pytest.mark.parametrize("tokens", [1, 77, 1000])
@pytest.mark.parametrize(("which", "tolerance"), [("plain", 1e-6), ("turing", 1e-3)])
def test_a_body_computes_linear_attention(which, tolerance, tokens):
    feeds = draw("float32", tokens=tokens)
    actual = run(lone_node("float32", BODIES[which]()), **feeds)
    expected = exact(**feeds)
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("which", BODIES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_half_precision_neither_overflows_nor_vanishes(which, scale):
    feeds = draw("float16", scale)
    feeds["v"] = draw("float16")["v"]
    actual = run(lone_node("float16", BODIES[which]()), **feeds)
    expected = exact(**feeds)
    assert np.abs(actual - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("which", BODIES)
def test_a_query_or_a_head_without_positive_numbers_gives_zero(which):
    feeds = draw("float16")
    feeds["q"][0, 5] = -1
    feeds["k"][1, :, 2] = -1
    actual = run(lone_node("float16", BODIES[which]()), **feeds)
    assert not actual[0, 5].any()
    assert not actual[1, :, 2].any()
    assert np.isfinite(actual).all()


def test_attaching_a_second_body_replaces_the_first():
    model = attach(lone_node("float16", body()), turing_body())
    assert [function.name for function in model.functions] == [NAME]
    assert len(model.functions[0].node) == len(turing_body().node)


def test_tensorrt_builds_the_plain_body_from_ada_on_and_the_turing_body_for_turing(tmp_path):
    smallest, usual, largest = ((b, n, 4, 32) for b, n in ((1, 1), (2, 64), (2, 256)))
    jobs = []
    for which, architecture in (("plain", "SM89"), ("turing", "SM75"), ("plain", "SM75")):
        path = tmp_path / f"{which}.onnx"
        model = lone_node("float16", BODIES[which]())
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[2].dim_value = 4
        onnx.save(model, path)
        jobs.append(rtx_builds.Job(str(path), architecture, dict.fromkeys("qkv", (smallest, usual, largest))))
    ada, turing, refused = rtx_builds.build_all(jobs)
    assert ada.engine_bytes and turing.engine_bytes, (ada.errors, turing.errors)
    assert not refused.engine_bytes  # the reason for the second body
    assert any("FP32 GEMM is not supported" in error for error in refused.errors)
