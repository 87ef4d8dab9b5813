"""The transformer against diffusers' SanaTransformer2DModel, which has the last word on every number."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from diffusers import SanaTransformer2DModel
from sana_reference.attention import relu_linear_attention
from sana_reference.config import PRESETS, SanaConfig
from sana_reference.initialise import initialise
from sana_reference.renames import Row
from sana_reference.renames import transformer as renames
from sana_reference.transformer import SanaTransformer
from sana_runtime.errors import BackendError, UsageError
from torch import Tensor, nn

TINY = PRESETS["tiny"]
TINY_2K = replace(TINY, name="tiny-2k", position_base=8)
TINY_15 = replace(TINY, name="tiny-1.5", qk_norm=True)
TINY_SPRINT = replace(TINY, name="tiny-sprint", qk_norm=True, guidance_embedding=True, integer_timesteps=False)
VARIANTS = {config.name: config for config in (TINY, TINY_2K, TINY_15, TINY_SPRINT)}

every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


class Inputs(NamedTuple):
    """What one call of the transformer is given, text not yet projected."""

    latent: Tensor
    timestep: Tensor
    text: Tensor
    text_mask: Tensor
    guidance: Tensor | None


def draw_config(seed: int) -> SanaConfig:
    """One configuration out of the whole space the presets span, small."""
    draw = random.Random(seed)
    head_dim = draw.choice((16, 32))
    dim = head_dim * draw.randint(1, 4)
    positions = draw.random() < 0.5
    guided = draw.random() < 0.4
    return SanaConfig(
        name=f"random-{seed}",
        depth=draw.randint(1, 4),
        dim=dim,
        cross_heads=draw.choice([heads for heads in (1, 2, 3, 4) if dim % heads == 0]),
        head_dim=head_dim,
        ffn_hidden=draw.choice((0, dim, 3 * dim)),
        text_dim=draw.choice((8, 24, 40)),
        qk_norm=draw.random() < 0.5,
        guidance_embedding=guided,
        position_base=draw.choice((4, 8, 64, 128)) if positions else None,
        position_scale=draw.choice((1.0, 2.0)),
        integer_timesteps=not guided,
    )


def draw_inputs(config: SanaConfig, seed: int, shape: Sequence[int] = ()) -> Inputs:
    """Noise, text and a mask; `shape` is (batch, height, width, text length), drawn when not given."""
    draw, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    batch, height, width, length = shape or (
        draw.randint(1, 3),
        draw.randint(1, 9),
        draw.randint(1, 9),
        draw.randint(1, 20),
    )
    valid = torch.tensor([draw.choice((1, length, draw.randint(1, length))) for _ in range(batch)])
    timestep = torch.rand(batch, generator=noise)
    return Inputs(
        latent=torch.randn(batch, config.latent_channels, height, width, generator=noise),
        timestep=(timestep * 1000).floor() if config.integer_timesteps else timestep,
        text=torch.randn(batch, length, config.text_dim, generator=noise) * 3,
        text_mask=(torch.arange(length) < valid[:, None]).long(),
        guidance=1 + 5 * torch.rand(batch, generator=noise) if config.guidance_embedding else None,
    )


def oracle(config: SanaConfig) -> SanaTransformer2DModel:
    """diffusers' model of the same sizes."""
    return SanaTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        num_layers=config.depth,
        num_cross_attention_heads=config.cross_heads,
        cross_attention_head_dim=config.dim // config.cross_heads,
        cross_attention_dim=config.dim,
        caption_channels=config.text_dim,
        mlp_ratio=config.hidden / config.dim,
        sample_size=config.position_base or config.sample_size,
        interpolation_scale=None if config.position_base is None else config.position_scale,
        guidance_embeds=config.guidance_embedding,
        qk_norm="rms_norm_across_heads" if config.qk_norm else None,
    ).eval()


def ask_oracle(model: SanaTransformer2DModel, inputs: Inputs) -> Tensor:
    """The oracle's velocity; its caller multiplies the guidance, ours does not."""
    guidance = None if inputs.guidance is None else inputs.guidance * model.config.guidance_embeds_scale
    with torch.no_grad():
        (velocity,) = model(inputs.latent, inputs.text, inputs.timestep, guidance, inputs.text_mask, return_dict=False)
    return velocity


def ask(model: SanaTransformer, inputs: Inputs) -> Tensor:
    """Our velocity."""
    latent, timestep, text, mask, guidance = inputs
    with torch.no_grad():
        return model(latent, timestep, model.caption(text), mask, guidance)


def random_model(config: SanaConfig, seed: int = 0) -> SanaTransformer:
    model = SanaTransformer(config).eval()
    initialise(model, seed)
    return model


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def diffusers_rows(config: SanaConfig) -> tuple[Row, ...]:
    return renames.DIFFUSERS_GUIDED if config.guidance_embedding else renames.DIFFUSERS


def sources(name: str, rows: tuple[Row, ...]) -> list[str]:
    """Their names of our tensor."""
    number = "".join(re.findall(r"\d+", name))
    (row,) = (row for row in rows if row[0].replace("{i}", number) == name)
    return [theirs.replace("{i}", number) for theirs in row[1:]]


def move(state: dict[str, Tensor], model: nn.Module, rows: tuple[Row, ...]) -> None:
    """Load their tensors under our names; each must be used exactly once."""
    left = dict(state)
    renamed = {}
    for name, tensor in model.state_dict().items():
        renamed[name] = torch.cat([left.pop(theirs) for theirs in sources(name, rows)]).reshape(tensor.shape)
    assert not left
    model.load_state_dict(renamed)


@pytest.mark.parametrize("seed", range(24))
def test_equals_diffusers_for_random_configurations(seed: int) -> None:
    config = draw_config(seed)
    theirs, ours = oracle(config), SanaTransformer(config).eval()
    initialise(theirs, seed)
    move(theirs.state_dict(), ours, diffusers_rows(config))
    inputs = draw_inputs(config, seed)
    assert difference(ask(ours, inputs), ask_oracle(theirs, inputs)) <= 2e-6


def test_the_random_configurations_cover_the_whole_space() -> None:
    configs = [draw_config(seed) for seed in range(24)]
    kinds = {(c.qk_norm, c.guidance_embedding, c.position_base is not None) for c in configs}
    inputs = [draw_inputs(c, seed) for seed, c in enumerate(configs)]
    assert len(kinds) == 8
    assert {c.head_dim for c in configs} == {16, 32}
    assert {c.cross_heads for c in configs} == {1, 2, 3, 4}
    assert {len(i.latent) for i in inputs} == {1, 2, 3}
    assert any(i.text_mask.sum(1).min() == 1 < i.text_mask.shape[1] for i in inputs)
    assert any(i.latent.shape[2] != i.latent.shape[3] for i in inputs)


FULL_SIZE = {
    "sana-600m": 591_747_872,
    "sana-1600m": 1_604_462_752,
    "sana1.5-1600m": 1_604_641_952,
    "sana1.5-4800m": 4_721_825_952,
    "sprint-600m": 593_501_216,
    "sprint-1600m": 1_610_237_472,
}
FULL_SIZE |= {f"{name}-{size}": FULL_SIZE[name] for name in ("sana-600m", "sana-1600m") for size in ("512", "2k", "4k")}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_presets_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = SanaTransformer(PRESETS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == FULL_SIZE[name]


def test_every_full_size_preset_is_counted() -> None:
    assert {name for name in PRESETS if name.startswith(("sana", "sprint"))} == set(FULL_SIZE)


def nvlabs_state(model: SanaTransformer) -> dict[str, Tensor]:
    """What the tensors would be in a `.pth`: convolutions are stored as such."""
    state = {}
    for name, tensor in model.state_dict().items():
        (theirs,) = sources(name, renames.NVLABS)
        is_convolution = tensor.ndim == 2 and re.search(r"conv\.weight$|x_embedder\.proj\.weight$", theirs)
        state[theirs] = tensor[:, :, None, None] if is_convolution else tensor
    return state


@every_variant
def test_nvlabs_names_bring_every_tensor_there_and_back(config: SanaConfig) -> None:
    ours, copy = random_model(config, 1), random_model(config, 2)
    state = nvlabs_state(ours)
    assert len(state) == len(ours.state_dict())
    move(state, copy, renames.NVLABS)
    assert all(torch.equal(tensor, copy.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_nvlabs_names_are_those_of_the_original_repository() -> None:
    state = nvlabs_state(random_model(replace(TINY_SPRINT, depth=1)))
    dim, hidden = TINY.dim, TINY.hidden
    expected = {
        "x_embedder.proj.weight": (dim, 32, 1, 1),
        "t_embedder.mlp.2.weight": (dim, dim),
        "cfg_embedder.mlp.0.weight": (dim, 256),
        "t_block.1.weight": (6 * dim, dim),
        "y_embedder.y_proj.fc1.weight": (dim, TINY.text_dim),
        "attention_y_norm.weight": (dim,),
        "blocks.0.attn.qkv.weight": (3 * dim, dim),
        "blocks.0.attn.q_norm.weight": (dim,),
        "blocks.0.cross_attn.kv_linear.bias": (2 * dim,),
        "blocks.0.mlp.inverted_conv.conv.weight": (2 * hidden, dim, 1, 1),
        "blocks.0.mlp.depth_conv.conv.weight": (2 * hidden, 1, 3, 3),
        "blocks.0.mlp.point_conv.conv.weight": (dim, hidden, 1, 1),
        "final_layer.scale_shift_table": (2, dim),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert not set(renames.NVLABS_DROPPED) & set(state)


class Caption(nn.Module):
    """`SanaTransformer.caption` as a module, which is what torch exports."""

    def __init__(self, model: SanaTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, text: Tensor) -> Tensor:
        return self.model.caption(text)


@cache
def exported(name: str) -> tuple[nn.Module, nn.Module, SanaTransformer]:
    """Caption and transformer as exported programs with every size symbolic, and the model they came from."""
    model = random_model(VARIANTS[name])
    inputs = draw_inputs(model.config, 0, (2, 4, 6, 5))
    batch, height, width, length = (torch.export.Dim(axis) for axis in ("batch", "h", "w", "length"))
    text_axes = {0: batch, 1: length}
    caption = torch.export.export(Caption(model), (inputs.text,), dynamic_shapes=(text_axes,))
    arguments = (inputs.latent, inputs.timestep, model.caption(inputs.text).detach(), inputs.text_mask, inputs.guidance)
    axes = (
        {0: batch, 2: height, 3: width},
        {0: batch},
        {2: batch, 3: length},
        text_axes,
        None if inputs.guidance is None else {0: batch},
    )
    transformer = torch.export.export(model, arguments, dynamic_shapes=axes)
    return caption.module(), transformer.module(), model


@pytest.mark.parametrize("shape", [(1, 7, 3, 1), (3, 1, 9, 17), (1, 1, 1, 1), (2, 12, 12, 2)], ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_one_exported_program_runs_at_every_size(name: str, shape: tuple[int, ...]) -> None:
    caption, transformer, model = exported(name)
    inputs = draw_inputs(model.config, 1, shape)
    with torch.no_grad():
        velocity = transformer(inputs.latent, inputs.timestep, caption(inputs.text), inputs.text_mask, inputs.guidance)
    assert difference(velocity, ask(model, inputs)) <= 1e-6


@every_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_weights_stay_close_to_fp32(config: SanaConfig, dtype: torch.dtype) -> None:
    model, inputs = random_model(config), draw_inputs(config, 3, (2, 6, 5, 7))
    expected = ask(model, inputs)
    velocity = ask(model.to(dtype), inputs)
    assert velocity.dtype == torch.float32
    assert difference(velocity, expected) <= 3 * torch.finfo(dtype).eps


def test_half_precision_leaves_the_frequencies_alone() -> None:
    model = SanaTransformer(TINY_2K)
    expected = model.time.sinusoid(torch.tensor([999.0])), model.positions(5, 7)
    model.half()
    actual = model.time.sinusoid(torch.tensor([999.0])), model.positions(5, 7)
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


def test_a_model_made_on_the_meta_device_knows_its_frequencies_once_loaded() -> None:
    original, inputs = random_model(TINY_2K), draw_inputs(TINY_2K, 0)
    with torch.device("meta"):
        model = SanaTransformer(TINY_2K)
    model.load_state_dict(original.state_dict(), assign=True)
    assert torch.equal(ask(model, inputs), ask(original, inputs))


def test_whole_timesteps_are_taken_by_truncation() -> None:
    model, inputs = random_model(TINY), draw_inputs(TINY, 0, (2, 4, 4, 3))
    at = {t: ask(model, inputs._replace(timestep=torch.full((2,), t))) for t in (500.0, 500.9, 501.0)}
    assert torch.equal(at[500.9], at[500.0])
    assert not torch.equal(at[501.0], at[500.0])


def test_sprint_sees_fractions_of_a_timestep_and_the_guidance() -> None:
    model, inputs = random_model(TINY_SPRINT), draw_inputs(TINY_SPRINT, 0, (2, 4, 4, 3))
    expected = ask(model, inputs)
    assert difference(ask(model, inputs._replace(timestep=inputs.timestep + 0.25)), expected) > 1e-4
    assert difference(ask(model, inputs._replace(guidance=inputs.guidance + 1)), expected) > 1e-4


def test_masked_text_changes_nothing() -> None:
    model, inputs = random_model(TINY_15), draw_inputs(TINY_15, 0, (2, 4, 4, 9))
    mask = torch.tensor([[1] + [0] * 8, [1] * 4 + [0] * 5])
    padded = torch.where(mask[..., None].bool(), inputs.text, 100.0)
    outputs = [ask(model, inputs._replace(text=text, text_mask=mask)) for text in (inputs.text, padded)]
    assert torch.equal(*outputs)


def test_the_text_is_projected_once_for_every_block() -> None:
    model = random_model(TINY)
    assert model.caption(torch.randn(3, 5, TINY.text_dim)).shape == (TINY.depth, 2, 3, 5, TINY.dim)


def test_any_function_can_compute_the_linear_attention() -> None:
    model, inputs, calls = random_model(TINY), draw_inputs(TINY, 0), []

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape[2:])
        return relu_linear_attention(q, k, v)

    expected = ask(model, inputs)
    model.use_attention(spy)
    assert torch.equal(ask(model, inputs), expected)
    assert calls == [(TINY.heads, TINY.head_dim)] * TINY.depth


def test_triton_attention_is_the_operator_that_the_plugins_register(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = random_model(TINY), draw_inputs(TINY, 0)
    expected = ask(model, inputs)
    registered = SimpleNamespace(relu_linear_attention=lambda q, k, v: 2 * relu_linear_attention(q, k, v))
    monkeypatch.setattr(torch.ops, "sana", registered, raising=False)
    model.use_attention("triton")
    assert not torch.equal(ask(model, inputs), expected)
    model.use_attention("torch")
    assert torch.equal(ask(model, inputs), expected)


def test_triton_attention_that_nobody_registered_says_what_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "sana", SimpleNamespace(), raising=False)
    with pytest.raises(BackendError, match="import sana_plugins"):
        SanaTransformer(TINY).use_attention("triton")


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(UsageError, match="'flash' is unknown; choose torch, triton"):
        SanaTransformer(TINY).use_attention("flash")


@pytest.mark.parametrize(("config", "guidance"), [(TINY, torch.ones(1)), (TINY_SPRINT, None)], ids=["extra", "missing"])
def test_guidance_is_given_exactly_to_the_models_that_take_it(config: SanaConfig, guidance: Tensor | None) -> None:
    inputs = draw_inputs(config, 0, (1, 2, 2, 1))._replace(guidance=guidance)
    with pytest.raises(UsageError, match="guidance"):
        ask(SanaTransformer(config), inputs)


def test_random_weights_follow_from_the_seed_alone() -> None:
    one, same, other = (random_model(TINY_SPRINT, seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
