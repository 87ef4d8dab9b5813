"""The plugin for the middle of an INT8 Mix-FFN: where it is put, and that it computes what the graph computes there."""

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from onnx.utils import Extractor
from sana_calibration.quantise import quantise
from sana_runtime.bundle import open_bundle
from sana_runtime.engine_cache import EngineCache
from sana_runtime.errors import BackendError, UsageError

from sana_export.engines.bundle import EngineRequest, build_engines
from sana_export.engines.fused import fuse_mix_ffn
from sana_export.saving import save_graph

pytest.importorskip("triton")
from sana_plugins.kernels import mix_ffn as kernels
from sana_plugins.tensorrt.mix_ffn import GATED_DEPTHWISE, gate_launches
from sana_plugins.tensorrt.operators import Memory
from sana_plugins.tensorrt.shipped import kernel_for

DTYPES = {"fp16": np.float16, "fp32": np.float32}
# Of a step's size: what rounding to the graph's type between its nodes, which the kernel does not do, may change.
STEP_ERROR = {"fp16": 2e-3, "fp32": 1e-6}
MIDDLE, ADDRESSES = "blocks.1.feed_forward", (16, 32, 48, 64, 80)


@pytest.fixture(scope="module")
def rounded(random_model, export, tmp_path_factory):
    """A transformer with INT8 products, as a file, in each float type that INT8 graphs keep."""

    def written(element):
        model = ir.load(export(random_model(), element, ("transformer",))["transformer"].graph)
        quantise(model)
        path = tmp_path_factory.mktemp(element) / "transformer.onnx"
        save_graph(model, path)
        return path

    return {element: written(element) for element in DTYPES}


def loaded(path):
    return onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("element", DTYPES)
def test_every_int8_mix_ffn_gets_one_plugin_and_nothing_else_changes(element, rounded):
    model, before = loaded(rounded[element]), loaded(rounded[element])
    assert fuse_mix_ffn(model) == 2 and fuse_mix_ffn(model) == 0
    added = [node for node in model.graph.node if node not in before.graph.node]
    gone = [node for node in before.graph.node if node not in model.graph.node]
    assert [node.op_type for node in added] == ["Reshape", "Transpose", GATED_DEPTHWISE.name] * 2
    assert [node.op_type for node in gone].count("Conv") == [node.op_type for node in gone].count("QuantizeLinear") == 2
    assert all(".feed_forward." in node.name for node in gone)
    makers = {name: node for node in model.graph.node for name in node.output}
    for block in range(2):
        plugin = makers[f"blocks.{block}.feed_forward.contract.int8.codes"]
        assert plugin is makers[f"blocks.{block}.feed_forward.contract.int8.step"]
        assert plugin.name == f"blocks.{block}.feed_forward.GatedDepthwiseInt8"
    known = {*makers, "", *(value.name for value in (*model.graph.input, *model.graph.initializer))}
    assert all(name in known for node in model.graph.node for name in node.input)


def node_of(model, ending):
    return next(node for node in model.graph.node if node.name == f"{MIDDLE}.{ending}")


def read_elsewhere(model):
    model.graph.output.append(onnx.helper.make_tensor_value_info(node_of(model, "Mul_2").output[0], 10, None))


def other_smallest(model):
    tensor = numpy_helper.from_array(np.float32(1e-6), "other")
    model.graph.initializer.append(tensor)
    node_of(model, "contract.int8.positive").input[1] = "other"


def other_padding(model):
    convolution = node_of(model, "depthwise.Conv")
    next(each for each in convolution.attribute if each.name == "pads").ints[:] = [0, 2, 0, 2]


def other_gate(model):
    node_of(model, "Sigmoid_1").op_type = "Tanh"


def other_order(model):
    node = node_of(model, "Split")
    node.output[:] = reversed(node.output)


@pytest.mark.parametrize("change", [read_elsewhere, other_smallest, other_padding, other_gate, other_order])
def test_what_is_no_such_middle_is_left_alone(change, rounded):
    model = loaded(rounded["fp16"])
    change(model)
    assert fuse_mix_ffn(model) == 1  # the other block's
    assert node_of(model, "depthwise.Conv")


def test_a_float_graph_has_none(random_model, export):
    part = export(random_model(), "fp16", ("transformer",))["transformer"]
    assert fuse_mix_ffn(loaded(part.graph)) == 0


@pytest.fixture(scope="module")
def middle(rounded):
    """A function that cuts the middle out of a graph: a session, and its convolution's weight and bias."""

    def cut(element, biased=True):
        model = onnx.load(rounded[element])
        codes, step = (f"{MIDDLE}.contract.int8.{name}" for name in ("codes", "step"))
        model.graph.value_info.extend(
            onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in ((codes, 3), (step, 1))
        )
        part = Extractor(model).extract_model([f"{MIDDLE}.Reshape"], [codes, step])
        constants = {tensor.name: tensor for tensor in part.graph.initializer}
        convolution = next(node for node in part.graph.node if node.op_type == "Conv")
        weight, bias = (constants[name] for name in convolution.input[1:])
        if not biased:
            bias.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(bias), bias.name))
        session = onnxruntime.InferenceSession(part.SerializeToString())
        return session, numpy_helper.to_array(weight), numpy_helper.to_array(bias)

    return cut


def launched(tokens, weight, bias, element):
    """What the plugin's launch gives, through Triton's interpreter: codes and steps."""
    batch, height, width, wide = tokens.shape
    out = torch.full((batch, height * width, wide // 2), 99, dtype=torch.int8)
    step = torch.full((batch, height * width, 1), torch.nan)
    taps = np.ascontiguousarray(weight.reshape(wide, 9).T)
    memory = dict(zip(ADDRESSES, (*map(torch.tensor, (tokens, taps, bias)), out, step), strict=True))
    lies = Memory(ADDRESSES[:3], ADDRESSES[3:])
    kernel = kernel_for("depthwise_gate_int8", element, 89)
    (launch,) = gate_launches((kernel,), tokens.shape, tokens.itemsize, lies)
    sizes = kernels.GATE_INT8_LAUNCH.sizes | {"ACTIVATED": True}
    assert sizes["BLOCK_T"] == kernel.block
    tensors = [memory[pointer] for pointer in launch.pointers]
    kernels.depthwise_gate_int8[launch.grid](*tensors, *launch.numbers, **sizes)
    return out.numpy(), step.numpy()


@pytest.mark.parametrize(
    ("element", "shape"),
    [("fp16", (2, 3, 5)), ("fp32", (2, 3, 5)), ("fp32", (1, 1, 1)), ("fp16", (1, 4, 1)), ("fp32", (1, 1, 7))],
)
def test_the_plugin_computes_what_the_graph_does(element, shape, middle):
    if not kernels.triton.knobs.runtime.interpret:
        pytest.skip("a GPU is here; kernels are launched there, not interpreted")
    session, weight, bias = middle(element)
    generator = np.random.default_rng(sum(shape))
    tokens = generator.standard_normal((*shape, len(bias)))
    tokens[0, 0, 0] *= 30  # one loud token must not take its neighbours' resolution
    tokens = tokens.astype(DTYPES[element])
    expected, steps = session.run(None, {session.get_inputs()[0].name: tokens})
    codes, step = launched(tokens, weight, bias, element)
    assert (step.shape, step.dtype, codes.shape) == (steps.shape, steps.dtype, expected.shape)
    np.testing.assert_allclose(step, steps, rtol=STEP_ERROR[element])
    apart = np.abs(codes.astype(int) - expected)
    assert apart.max() <= 1  # where a value lies between two codes
    assert np.mean(apart > 0) <= (0.02 if element == "fp16" else 0.001)


@pytest.mark.parametrize("element", DTYPES)
def test_a_token_of_zeros_gets_the_graphs_step_and_no_codes(element, middle):
    if not kernels.triton.knobs.runtime.interpret:
        pytest.skip("a GPU is here; kernels are launched there, not interpreted")
    session, weight, bias = middle(element, biased=False)
    tokens = np.zeros((1, 2, 5, len(bias)), DTYPES[element])
    tokens[0, :, 4] = 1  # the first three columns have no neighbour but zeros
    expected, steps = session.run(None, {session.get_inputs()[0].name: tokens})
    codes, step = launched(tokens, weight, bias, element)
    zeros = [0, 1, 2, 5, 6, 7]
    assert not codes[0, zeros].any() and not expected[0, zeros].any()
    assert (np.abs(codes[0, [3, 4, 8, 9]]).max(-1) == 127).all()
    np.testing.assert_array_equal(step[0, zeros], steps[0, zeros])
    assert (step > 0).all()


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines", tmp_path / "key")


def test_what_has_no_int8_mix_ffn_is_refused_in_one_sentence(built, cache):
    bundle = open_bundle(built("sana").path)
    request = EngineRequest((89,), fused_mix_ffn=True)
    for wanted in (request, replace(request, parts=("caption",))):
        with pytest.raises(UsageError, match="--fused-mix-ffn needs an INT8 transformer, and the plugin"):
            build_engines(bundle, wanted, cache)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_a_transformer_whose_mix_ffn_all_stayed_float_is_refused_in_one_sentence(built, cache):
    bundle = open_bundle(built("sana").path)
    parts = dict(bundle.manifest.parts)
    parts["transformer"] = replace(parts["transformer"], precision="int8")  # says so, and is not
    said = replace(bundle, manifest=replace(bundle.manifest, parts=parts))
    with pytest.raises(BackendError, match=r"transformer has no INT8 Mix-FFN .*; leave out --fused-mix-ffn"):
        build_engines(said, EngineRequest((89,), parts=("transformer",), fused_mix_ffn=True), cache)
    with pytest.raises(UsageError, match="and the plugin"):
        build_engines(said, EngineRequest((89,), parts=("transformer",), plugin=False, fused_mix_ffn=True), cache)
