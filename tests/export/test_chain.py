"""A pipeline's folder, exported: its parts, driven by numpy alone, paint diffusers' picture in every engine."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sana_runtime.guidance import Guidance
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.prompt import batch
from sana_runtime.session import SessionOptions
from sana_runtime.signature import PARTS, signatures
from sana_runtime.solver import FlowDpm, walk

from sana_export.export import ExportedPart, export_parts, sizes_of
from sana_export.plan import plan
from sana_export.precision import Precision

_spec = importlib.util.spec_from_file_location("rtx_builds", Path(__file__).parents[1] / "rtx_builds.py")
rtx_builds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rtx_builds)

PROMPT, NEGATIVE = "A red circle, 一只猫 above two squares", "blurry"
STEPS, SCALE = 6, 4.5


@pytest.fixture(scope="module")
def parts(written, built):
    """Every part of the folder in fp32, as the build left it in the bundle."""
    known, bundle = signatures(sizes_of(written.checkpoint.config)), built("sana").path
    return {name: ExportedPart(name, bundle / f"{name}.onnx", known[name], "float32", ()) for name in PARTS}


@pytest.fixture(scope="module")
def half_parts(written, tmp_path_factory):
    """The parts that paint, with fp16 asked for."""
    folder = tmp_path_factory.mktemp("fp16")
    return export_parts(written.checkpoint, folder, Precision.FP16, parts=PARTS[:-1], prefix=written.rules.prefix)


def psnr(actual, expected):
    assert expected.std() > 15  # the picture must show something to be comparable at all
    error = np.mean((actual.astype(float) - expected.astype(float)) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-6))


def diffusers_picture(pipeline, latents):
    height, width = (32 * size for size in latents.shape[2:])
    image = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        height=height,
        width=width,
        latents=torch.from_numpy(latents),
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        use_resolution_binning=False,
        output_type="np",
    ).images
    return np.round(image * 255).astype(np.uint8)


def paint(run, written, latents):
    """Our picture: `run` computes a part's output from its feeds; all the rest is numpy."""
    rules, tokenizer = written.rules, written.tokenizer
    inputs = batch([rules.plain(tokenizer, NEGATIVE), rules.instruct(tokenizer, PROMPT)])
    text = run("text_encoder", input_ids=inputs.input_ids, text_mask=inputs.text_mask, instructed=inputs.instructed)
    text_kv = run("caption", text=text)

    def velocity(latent, timestep):
        both = {"latent": np.repeat(latent, 2, axis=0), "timestep": np.full(2, timestep, np.float32)}
        answers = run("transformer", **both, text_kv=text_kv, text_mask=inputs.row_mask)
        return Guidance(SCALE).combine(*np.split(answers, 2))

    *_, last = walk(FlowDpm(STEPS, 3.0), latents, velocity)
    return run("decoder", latent=last.latent)


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(0).standard_normal((1, 32, 3, 2)).astype(np.float32)


def test_the_parts_paint_the_picture_of_diffusers(written, parts, run_part, latents):
    picture = paint(lambda name, **feeds: run_part(parts[name], feeds), written, latents)
    assert psnr(picture, diffusers_picture(written.pipeline, latents)) >= 55


def open_in_openvino(exported, half_products=False):
    sessions = {name: OpenVinoSession(part.graph, SessionOptions(half_products)) for name, part in exported.items()}
    return lambda name, **feeds: sessions[name].run(feeds)[exported[name].signature.outputs[0].name]


def test_openvino_paints_the_same_picture(written, parts, latents):
    picture = paint(open_in_openvino(parts), written, latents)
    assert psnr(picture, diffusers_picture(written.pipeline, latents)) >= 55


def test_openvino_encodes_pictures_alike(parts, run_part):
    encoder = {"encoder": parts["encoder"]}
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    expected = run_part(parts["encoder"], {"image": image})
    actual = open_in_openvino(encoder)("encoder", image=image)
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_half_precision_parts_paint_nearly_the_same_picture(written, half_parts, latents):
    assert {name: part.dtype for name, part in half_parts.items()} == {
        "text_encoder": "bfloat16",
        "caption": "float16",
        "transformer": "float16",
        "decoder": "bfloat16",
    }
    picture = paint(open_in_openvino(half_parts), written, latents)
    assert psnr(picture, diffusers_picture(written.pipeline, latents)) >= 30


def test_bfloat16_text_states_agree_within_bfloat16(written, half_parts):
    part, rules = half_parts["text_encoder"], written.rules
    inputs = batch([rules.plain(written.tokenizer, "x"), rules.instruct(written.tokenizer, PROMPT)])
    feeds = {"input_ids": inputs.input_ids, "text_mask": inputs.text_mask, "instructed": inputs.instructed}
    actual = open_in_openvino({"text_encoder": part})("text_encoder", **feeds)
    encoder = written.checkpoint.text_encoder()
    with torch.no_grad():
        states = encoder(*map(torch.from_numpy, feeds.values()), encoder.prefix(rules.prefix)).numpy()
    difference = np.abs(actual - states)[inputs.row_mask].max() / np.abs(states).max()
    assert 1e-6 < difference <= 5e-2


def test_the_plan_foresaw_the_size_of_every_part(written, parts):
    known = len(written.rules.prefix)
    foreseen = {part.name: part for part in plan(written.checkpoint, prefix_tokens=known).parts}
    rotations = 2 * (known + 513) * written.checkpoint.text_config.head_dim
    tables = {"transformer": 1001 * 256, "text_encoder": rotations}  # of angles, small in models of full size
    for name, part in parts.items():
        model = onnx.load(part.graph, load_external_data=False)
        floats = [weight for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT]
        held = sum(math.prod(weight.dims) for weight in floats)
        assert 0 <= held - foreseen[name].parameters - tables.get(name, 0) <= 300, name  # scalars and vectors of ones


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_valid_onnx_and_tidy(name, parts):
    path = parts[name].graph
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    named = [value.name for value in (*model.graph.input, *model.graph.output)]
    signature = parts[name].signature
    assert named == [spec.name for spec in (*signature.inputs, *signature.outputs)]
    read = {tensor for node in model.graph.node for tensor in node.input}
    assert {weight.name for weight in model.graph.initializer} <= read
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert not model.graph.metadata_props and not any(node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize("name", PARTS)
def test_small_tensors_are_inside_the_graph_and_large_ones_beside_it(name, parts):
    model = onnx.load(parts[name].graph, load_external_data=False)
    for weight in model.graph.initializer:
        outside = weight.data_location == onnx.TensorProto.EXTERNAL
        large = math.prod(weight.dims) * 4 > 1024 and weight.data_type == onnx.TensorProto.FLOAT
        assert outside == large, weight.name
        assert not outside or {entry.key: entry.value for entry in weight.external_data}["location"] == f"{name}.data"
    assert {path.name for path in parts[name].files} == {f"{name}.onnx", f"{name}.data"}


def test_linear_attention_is_one_node_a_block_and_travels_with_its_body(written, parts):
    model = onnx.load(parts["transformer"].graph, load_external_data=False)
    custom = [node for node in model.graph.node if node.domain == "sana"]
    assert len(custom) == written.checkpoint.config.depth
    for node in custom:
        attributes = {attribute.name: attribute.s.decode() for attribute in node.attribute}
        assert attributes == {"plugin_namespace": "sana", "plugin_version": "1"}
    assert [function.name for function in model.functions] == ["ReluLinearAttention"]


def test_weights_keep_the_names_of_the_reference_and_are_stored_as_products_read_them(written, parts):
    model = onnx.load(parts["transformer"].graph, load_external_data=False)
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    layers = written.checkpoint.transformer().state_dict()
    for name in ("blocks.1.attention.qkv.weight", "blocks.0.feed_forward.contract.weight", "out.weight"):
        assert shapes[name] == tuple(layers[name].shape)[::-1]
    readers = {node.name: node.op_type for node in model.graph.node if "blocks.1.attention.qkv.weight" in node.input}
    assert readers == {"blocks.1.attention.qkv.MatMul": "MatMul"}


def test_no_computation_on_constants_is_left(parts):
    for part in parts.values():
        model = onnx.load(part.graph, load_external_data=False)
        constants = {weight.name for weight in model.graph.initializer}
        for node in model.graph.node:
            assert node.op_type not in ("Constant", "Identity", "SplitToSequence", "SequenceAt"), node.name
            assert not set(node.input) <= constants, node.name


def test_every_pass_does_something_to_some_part(built):
    changes = built("sana").changes
    assert min(changes.values()) > 0, changes


def test_tensorrt_rtx_builds_every_part_for_ada(parts, half_parts):
    every = (*half_parts.values(), parts["encoder"])
    jobs = [rtx_builds.Job(str(part.graph), "SM89", part.signature.profiles()) for part in every]
    for job, build in zip(jobs, rtx_builds.build_all(jobs), strict=True):
        assert build.engine_bytes > 0, (job.graph, build.errors)
