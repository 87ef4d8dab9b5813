"""INT8 products compute what INT8 products should, and every engine runs each of them as one."""

import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from sana_calibration.quantise import Variant, quantise
from sana_calibration.rounding import column_codes, column_steps, rounded_columns, rounded_tokens
from sana_plugins.custom_op import attach, turing_body
from sana_runtime.errors import UsageError
from sana_runtime.session import Device, SessionOptions, open_session
from sana_runtime.signature import Sizes, signatures

from sana_export.plan_reader import products_in
from sana_export.precision import Precision

_spec = importlib.util.spec_from_file_location("rtx_builds", Path(__file__).parents[1] / "rtx_builds.py")
assert _spec is not None and _spec.loader is not None
rtx_builds = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = rtx_builds  # dataclasses look their module up there
_spec.loader.exec_module(rtx_builds)

ENGINES = (Device.ONNXRUNTIME, Device.CPU)
KINDS = ("attention.qkv", "attention.out", "cross_attention.q", "cross_attention.out", "expand", "contract")
NAMES = [f"blocks.{i}.{'feed_forward.' if kind in KINDS[4:] else ''}{kind}" for i in (0, 1) for kind in KINDS]


def layer(weight: np.ndarray, bias: np.ndarray) -> ir.Model:
    """x (B, N, rows) times a weight, plus a bias."""
    shape = ["B", "N"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "layer.weight"], ["m"], "m"), helper.make_node("Add", ["m", "b"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*shape, weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape, weight.shape[1]])],
        [numpy_helper.from_array(weight, "layer.weight"), numpy_helper.from_array(bias, "b")],
    )
    typed = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )
    return ir.from_proto(typed)


def counted_in_whole_numbers(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The product by its definition: int64 sums of codes, then both step sizes, in float64."""
    steps = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-20)) * np.float32(1 / 127)
    codes = np.rint(x / steps).astype(np.int64)
    return (codes @ column_codes(weight).astype(np.int64)) * steps.astype(np.float64) * column_steps(weight)


@pytest.mark.parametrize("device", ENGINES)
@pytest.mark.parametrize("variant", Variant)
def test_a_layer_is_the_product_of_whole_numbers_and_two_step_sizes(tmp_path, device, variant, save):
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((288, 96)) * rng.lognormal(0, 2, 96)).astype(np.float32)
    weight[:, 5] = 0
    bias = rng.standard_normal(96).astype(np.float32)
    x = (rng.standard_normal((2, 33, 288)) * 10.0 ** rng.uniform(-6, 6, (2, 33, 1))).astype(np.float32)
    x[0, 3] = 0  # a token of zeros must not become 0 / 0
    x[1, 4] = 7.25  # nor a constant one anything but itself
    model = layer(weight, bias)
    quantise(model, variant=variant)
    actual = open_session(save(model, tmp_path / "layer.onnx"), device, SessionOptions()).run({"x": x})["y"]
    expected = counted_in_whole_numbers(x, weight) + bias
    loose = 2**-10 if variant is Variant.TURING and device is Device.ONNXRUNTIME else 1e-5  # sums rounded to fp16
    size = np.abs(expected).max(-1, keepdims=True)
    assert (np.abs(actual - expected) / size).max() < loose
    np.testing.assert_array_equal(actual[0, 3], bias)
    np.testing.assert_array_equal(actual[..., 5], np.broadcast_to(bias[5], (2, 33)))


def test_a_weight_is_off_by_half_a_step_of_its_own_column_at_most():
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((300, 40)) * rng.lognormal(0, 3, 40)).astype(np.float32)
    weight[:, 7] = 0
    weight[3, 8] = -np.abs(weight[:, 8]).max() * 2  # the largest magnitude may be a negative number
    off = np.abs(rounded_columns(weight) - weight)
    assert (off <= column_steps(weight) * 0.5001).all()
    assert np.abs(column_codes(weight)).max() == 127
    np.testing.assert_allclose(rounded_columns(weight)[3, 8], weight[3, 8], rtol=1e-6)


def test_tokens_rounded_for_measuring_are_the_tokens_that_graphs_round():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 64)).astype(np.float32)
    weight = np.eye(64, dtype=np.float32)
    np.testing.assert_allclose(rounded_tokens(x), counted_in_whole_numbers(x, weight), atol=1e-6)


@pytest.mark.parametrize("device", ENGINES)
def test_the_transformer_in_int8_is_within_one_percent_of_itself_in_float(
    tiny, tmp_path, feeds, device, save, velocity, distance
):
    model = ir.load(tiny / "transformer.onnx")
    done = quantise(model)
    assert list(done.products) == NAMES
    assert done.left == ("patch", "out")
    assert done.share > 0.95
    expected = velocity(tiny / "transformer.onnx", feeds())
    assert 1e-5 < distance(velocity(save(model, tmp_path / "int8.onnx"), feeds(), device), expected) < 1e-2


def test_layers_that_are_not_named_stay_as_they_are(tiny, tmp_path, feeds, save, velocity, distance):
    model = ir.load(tiny / "transformer.onnx")
    done = quantise(model, NAMES[:1])
    assert done.products == ("blocks.0.attention.qkv",)
    assert "blocks.1.attention.qkv" in done.left
    everything = ir.load(tiny / "transformer.onnx")
    quantise(everything)
    expected = velocity(tiny / "transformer.onnx", feeds())
    one = distance(velocity(save(model, tmp_path / "one.onnx"), feeds()), expected)
    assert 0 < one < distance(velocity(save(everything, tmp_path / "all.onnx"), feeds()), expected)


def test_a_name_that_is_no_product_is_refused_with_those_that_are(tiny):
    with pytest.raises(UsageError, match=r"blocks\.9\.qkv is not a product.*blocks\.0\.attention\.qkv"):
        quantise(ir.load(tiny / "transformer.onnx"), ["blocks.9.qkv"])


def test_the_file_holds_one_byte_for_each_weight_and_the_same_bytes_every_time(tiny, tmp_path, save):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        model = ir.load(tiny / "transformer.onnx")
        quantise(model)
        save(model, tmp_path / name / "int8.onnx")
    for file in ("int8.onnx", "int8.onnx.data"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    stored = ir.load(tmp_path / "first" / "int8.onnx").graph.initializers
    assert not [name for name in NAMES if f"{name}.weight" in stored]
    assert all(stored[f"{name}.weight_int8"].dtype == ir.DataType.INT8 for name in NAMES)


def test_onnxruntime_runs_every_chosen_product_in_int8(tiny, tmp_path, feeds, save):
    model = ir.load(tiny / "transformer.onnx")
    quantise(model)
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    graph = save(model, tmp_path / "int8.onnx")
    session = ort.InferenceSession(graph, options, disabled_optimizers=["MatMulAddFusion"])
    session.run(None, feeds())
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    kinds = Counter(event["args"]["op_name"] for event in ran)
    names = {event["name"] for event in ran if event["args"]["op_name"] == "MatMulIntegerToFloat"}
    assert names == {f"{name}.int8.MatMul_kernel_time" for name in NAMES}
    assert kinds["DequantizeLinear"] == 0


def test_openvino_runs_every_chosen_product_in_int8(tiny, tmp_path, save):
    model = ir.load(tiny / "transformer.onnx")
    quantise(model)
    session = open_session(save(model, tmp_path / "int8.onnx"), Device.CPU, SessionOptions())
    ((request,),) = session._requests.values()
    compiled = request.get_compiled_model()
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    ran = Counter(
        (node["primitiveType"].astype(str).rpartition("_")[2], node["runtimePrecision"].astype(str))
        for node in nodes
        if node["layerType"].astype(str) == "FullyConnected"
    )
    assert ran["i8", "i8"] == len(NAMES)
    assert sum(ran.values()) == len(NAMES) + 5  # time twice, modulation, patch and output projection


def test_tensorrt_rtx_compiles_every_chosen_product_to_int8_on_every_architecture(tiny_half, tmp_path, save):
    jobs = [
        rtx_builds.Job(
            str(_half_graph(save, tiny_half, tmp_path, variant)),
            architecture,
            _profiles(),
            str(tmp_path / architecture),
        )
        for variant, architectures in ((Variant.PORTABLE, ("SM86", "SM89", "SM120")), (Variant.TURING, ("SM75",)))
        for architecture in architectures
    ]
    builds = rtx_builds.build_all(jobs)
    assert [build.errors for build in builds] == [[]] * len(jobs)
    for job in jobs:
        _assert_int8(Path(job.engine).read_bytes(), "half" if job.architecture == "SM75" else "float")


def _half_graph(save: Callable[[ir.Model, Path], Path], tiny_half: Path, folder: Path, variant: Variant) -> Path:
    model = ir.load(tiny_half / "transformer.onnx")
    quantise(model, variant=variant)
    graph = save(model, folder / f"{variant.value}.onnx")
    if variant is Variant.TURING:
        onnx.save(attach(onnx.load(graph, load_external_data=False), turing_body(20)), graph)
    return graph


def _profiles() -> dict[str, tuple[tuple[int, ...], ...]]:
    sizes = Sizes(depth=1, dim=64, text_dim=48, sample_size=4, text_kv="float16")
    return signatures(sizes)["transformer"].profiles()


def _assert_int8(engine: bytes, result: str) -> None:
    """Every chosen product has int8 operands and this result; what is not chosen has none."""
    chosen = {f"{name}.int8.MatMul" for name in NAMES[: len(KINDS)]}
    products = products_in(engine)
    for product in products:
        is_chosen = bool(chosen & set(product.layers))
        assert product.operands == (("int8", "int8") if is_chosen else (product.operands[0],) * 2)
        assert is_chosen is ("int8" in product.operands)
        assert product.result == result or not is_chosen
    assert chosen <= {name for product in products for name in product.layers}


def test_turings_largest_sum_stays_in_fp16_and_a_longer_one_is_refused(tmp_path, save):
    ones = layer(np.ones((8317, 64), np.float32), np.zeros(64, np.float32))
    quantise(ones, variant=Variant.TURING)
    session = open_session(save(ones, tmp_path / "ones.onnx"), Device.ONNXRUNTIME, SessionOptions())
    np.testing.assert_allclose(session.run({"x": np.ones((1, 1, 8317), np.float32)})["y"], 8317, rtol=1e-3)
    with pytest.raises(UsageError, match="leave it float"):
        quantise(layer(np.ones((8318, 64), np.float32), np.zeros(64, np.float32)), variant=Variant.TURING)


def test_a_half_graph_rounds_what_it_had_before_narrowing(tiny_half, tmp_path, feeds, save, velocity, distance):
    expected = velocity(tiny_half / "transformer.onnx", feeds(1, Precision.FP16))
    graph = _half_graph(save, tiny_half, tmp_path, Variant.PORTABLE)
    for device in ENGINES:
        assert distance(velocity(graph, feeds(1, Precision.FP16), device), expected) < 1e-2
    inputs = {node.inputs[0].dtype for node in ir.load(graph).graph if node.op_type == "Abs"}
    assert inputs == {ir.DataType.FLOAT}


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_a_16_bit_weight_rounds_as_the_same_numbers_in_fp32_do(dtype):
    narrow = np.random.default_rng(0).standard_normal((300, 24)).astype(dtype.numpy())
    wide = narrow.astype(np.float32)
    np.testing.assert_array_equal(column_codes(narrow), column_codes(wide))
    np.testing.assert_array_equal(column_steps(narrow), column_steps(wide))
