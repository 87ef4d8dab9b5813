"""Every part, run by onnxruntime, computes what the reference computes, at sizes that were not traced."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sana_plugins.custom_op import attach, turing_body
from sana_reference.config import AUTOENCODERS, PRESETS, AutoencoderConfig, TextConfig
from sana_reference.text_encoder import mask_scores

_spec = importlib.util.spec_from_file_location("rtx_builds", Path(__file__).parents[1] / "rtx_builds.py")
rtx_builds = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rtx_builds)

TINY = PRESETS["tiny"]
SHAPES = {  # what the released models differ in, at a fraction of their size
    "0.6b": replace(TINY, depth=1, dim=288, cross_heads=4),  # heads of 32, cross-attention heads of 72
    "1.6b": replace(TINY, depth=1, dim=224, cross_heads=2, ffn_hidden=563),  # cross-attention heads of 112
    "1.5": replace(TINY, depth=1, dim=96, qk_norm=True),
    "2k": replace(TINY, depth=1, sample_size=8, position_base=8),
    "4k": replace(TINY, depth=1, dim=96, cross_heads=3, sample_size=8, position_base=16, position_scale=2.0),
    "sprint": replace(TINY, depth=1, qk_norm=True, guidance_embedding=True, integer_timesteps=False),
}
STRIDED = AutoencoderConfig(
    "strided", (8, 8, 8, 16, 16, 32), (0, 1, 1, 1, 1, 1), (0, 1, 1, 1, 1, 1), attention_stages=1, kernel=3
)
TEXTS = {
    "grouped": TextConfig(64, 48, 2, 4, 2, 16, 96, query_scalar=16.0, attention_softcap=5.0),
    "one key head": TextConfig(64, 32, 1, 3, 1, 32, 80, query_scalar=20.0, rope_theta=500.0),
}
SIZES = ({"batch": 1, "height": 1, "width": 8, "rows": 1}, {"batch": 2, "height": 7, "width": 5, "rows": 13})


def error(actual, expected):
    """Largest difference, in units of the largest expected number."""
    return np.abs(actual.astype(np.float64) - expected).max() / np.abs(expected).max()


@torch.no_grad()
def reference(network, feeds):
    return network(*(torch.from_numpy(array) for array in feeds.values())).float().numpy()


def transformer_feeds(part, sizes, integer_timesteps):
    feeds = part.signature.example_feeds(seed=3, **sizes)
    feeds["timestep"] = np.linspace(0.3, 1, sizes["batch"], dtype=np.float32) * (999 if integer_timesteps else 1)
    feeds["text_mask"][-1, sizes["rows"] // 2 + 1 :] = False
    if "guidance" in feeds:
        feeds["guidance"] = np.linspace(1, 5, sizes["batch"], dtype=np.float32)
    return feeds


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_agree_at_sizes_that_were_not_traced(shape, random_model, export, run_part):
    model = random_model(SHAPES[shape])
    part = export(model, "fp32", ("transformer",))["transformer"]
    network = model.transformer()
    for sizes in SIZES:
        feeds = transformer_feeds(part, sizes | {"height": max(2, sizes["height"])}, model.config.integer_timesteps)
        assert error(run_part(part, feeds), reference(network, feeds)) <= 1e-4


def test_a_half_precision_transformer_agrees_within_half_precision(random_model, export, run_part):
    model = random_model(SHAPES["0.6b"])
    parts = export(model, "fp16", ("caption", "transformer"))
    feeds = transformer_feeds(parts["transformer"], SIZES[1], integer_timesteps=True)
    assert feeds["text_kv"].dtype == np.float16
    actual = run_part(parts["transformer"], feeds)
    assert actual.dtype == np.float32
    wide = {**feeds, "text_kv": feeds["text_kv"].astype(np.float32)}
    assert 1e-6 < error(actual, reference(model.transformer(), wide)) <= 1e-2


def test_tensorrt_rtx_builds_a_half_precision_transformer_for_turing_with_the_turing_body(random_model, export):
    part = export(random_model(SHAPES["0.6b"]), "fp16", ("caption", "transformer"))["transformer"]
    turing = part.graph.with_name("turing.onnx")
    onnx.save(attach(onnx.load(part.graph, load_external_data=False), turing_body()), turing)
    jobs = [rtx_builds.Job(str(graph), "SM75", part.signature.profiles()) for graph in (turing, part.graph)]
    built, refused = rtx_builds.build_all(jobs)
    assert built.engine_bytes, built.errors
    assert not refused.engine_bytes


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_captions_agree(precision, random_model, export, run_part):
    model = random_model(SHAPES["1.5" if precision == "fp32" else "0.6b"])
    parts = ("caption",) if precision == "fp32" else ("caption", "transformer")
    part = export(model, precision, parts)["caption"]
    for rows, batch in ((1, 1), (31, 3)):
        feeds = part.signature.example_feeds(batch=batch, rows=rows)
        with torch.no_grad():
            expected = model.transformer().caption(torch.from_numpy(feeds["text"])).numpy()
        assert error(run_part(part, feeds), expected) <= (1e-5 if precision == "fp32" else 5e-3)


@pytest.mark.parametrize("config", [AUTOENCODERS["tiny"], STRIDED], ids=lambda config: config.name)
def test_decoders_give_the_bytes_of_the_reference(config, random_model, export, run_part):
    model = random_model(autoencoder_config=config)
    part = export(model, "fp32", ("decoder",))["decoder"]
    for batch, height, width in ((1, 1, 3), (2, 5, 2)):
        feeds = part.signature.example_feeds(batch=batch, height=height, width=width)
        with torch.no_grad():
            pixels = model.autoencoder().decode(torch.from_numpy(feeds["latent"])).permute(0, 2, 3, 1).numpy()
        expected = np.clip(pixels * 127.5 + 127.5, 0, 255)
        actual = run_part(part, feeds)
        assert actual.shape == (batch, 32 * height, 32 * width, 3)
        assert np.abs(actual - expected).max() <= 0.5 + 255e-5  # to the nearest byte


def test_encoders_agree(random_model, export, run_part):
    model = random_model(autoencoder_config=STRIDED)
    part = export(model, "fp32", ("encoder",))["encoder"]
    generator = np.random.default_rng(0)
    for batch, height, width in ((1, 32, 96), (2, 128, 64)):
        feeds = {"image": generator.integers(0, 256, (batch, height, width, 3), np.uint8)}
        pixels = torch.from_numpy(feeds["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            expected = model.autoencoder().encode(pixels).numpy()
        assert error(run_part(part, feeds), expected) <= 1e-4


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoders_agree_with_the_whole_text_at_any_length(name, random_model, export, run_part):
    config = replace(TINY, text_dim=TEXTS[name].dim)
    model = random_model(config, text_config=TEXTS[name])
    part = export(model, "fp32", ("text_encoder",))["text_encoder"]
    network = model.text_encoder()
    for batch, tokens in ((1, 1), (3, 17)):
        feeds = part.signature.example_feeds(batch=batch, tokens=tokens)
        feeds["instructed"][1:] = [False, True][: batch - 1]
        feeds["text_mask"][-1, max(1, tokens - 4) :] = False
        actual = run_part(part, feeds)
        for row in range(batch):
            expected, count = whole_text(network, feeds, row)
            assert error(actual[row, :count], expected) <= 1e-4


@torch.no_grad()
def whole_text(network, feeds, row):
    """States of BOS and of the row's tokens, computed without any memory: by an encoder that knows no prefix."""
    ids = feeds["input_ids"][row, feeds["text_mask"][row]].tolist()
    before = [2, 5, 6, 7] if feeds["instructed"][row] else [2]
    states, _ = network.walk(*whole(network, [*before, *ids]))
    return torch.cat((states[:, :1], states[:, len(before) :]), dim=1)[0].numpy(), 1 + len(ids)


def whole(network, ids):
    """What `TextEncoder.walk` takes for a text of its own."""
    config, every = network.config, torch.ones(1, len(ids), dtype=torch.bool)
    nothing = torch.empty(config.depth, 2, 1, config.kv_heads, 0, config.head_dim)
    return (
        torch.tensor([ids]),
        nothing,
        network.rotation(torch.arange(len(ids))[None]),
        mask_scores(every, every[:, 0], 0),
    )
