"""Our pictures are diffusers' pictures, from the same folder, prompts and noise."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sana_transformer_to_diffusers
from numpy.typing import NDArray
from sana_reference.checkpoint import load_checkpoint
from sana_reference.pipeline import ReferencePipeline
from sana_runtime.errors import UsageError

PROMPTS = ("a red circle above two red squares", "Ein grünes Haus, 一只猫 🙂")
Pixels = NDArray[np.uint8]


def draw_latents(seed: int, size: tuple[int, int], count: int = len(PROMPTS)) -> NDArray[np.float32]:
    shape = (count, 32, size[0] // 32, size[1] // 32)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def theirs(pipeline: Any, size: tuple[int, int], latents: NDArray[np.float32], **settings: Any) -> Pixels:
    """diffusers' pictures as bytes."""
    images = pipeline(
        list(PROMPTS[: len(latents)]),
        height=size[0],
        width=size[1],
        latents=torch.from_numpy(latents),
        use_resolution_binning=False,
        output_type="np",
        **settings,
    ).images
    return np.round(images * 255).astype(np.uint8)


def psnr(actual: Pixels, expected: Pixels) -> float:
    """Decibels; the pictures must show something to be comparable at all."""
    assert actual.shape == expected.shape
    assert actual.dtype == np.uint8
    assert expected.std() > 15
    assert np.isin(expected, (0, 255)).mean() < 0.2
    error = np.mean((actual.astype(float) - expected.astype(float)) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-6))


@pytest.mark.parametrize(
    ("name", "size", "steps", "guidance", "negative"),
    [
        ("sana", (64, 96), 20, 4.5, ""),
        ("sana", (96, 64), 5, 1.0, ""),
        ("sana-1.5", (96, 160), 7, 3.0, "blurry, ugly"),
        ("sana-2k", (128, 192), 4, 4.5, ""),
        ("strided", (160, 64), 6, 2.0, "x"),
        ("euler", (64, 96), 6, 4.5, ""),
    ],
)
def test_pictures_equal_those_of_sana_pipeline(written, name, size, steps, guidance, negative):
    folder, pipeline = written(name)
    latents = draw_latents(steps, size)
    expected = theirs(
        pipeline, size, latents, num_inference_steps=steps, guidance_scale=guidance, negative_prompt=negative
    )
    ours = ReferencePipeline.open(folder)
    actual = ours.generate(PROMPTS, size=size, steps=steps, guidance=guidance, negative=negative, latents=latents)
    assert psnr(actual, expected) >= 60


@pytest.mark.parametrize(
    ("name", "steps", "seed"), [("sprint", 2, 0), ("sprint-deep", 2, 3), ("sprint", 4, 1), ("sprint", 1, 2)]
)
def test_pictures_equal_those_of_sana_sprint_pipeline(written, name, steps, seed):
    folder, pipeline = written(name)
    size = (64, 160)
    latents = draw_latents(seed, size)
    middle = {} if steps == 2 else {"intermediate_timesteps": None}
    expected = theirs(
        pipeline,
        size,
        latents,
        num_inference_steps=steps,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(seed),
        **middle,
    )
    generator = torch.Generator().manual_seed(seed)
    ours = ReferencePipeline.open(folder)
    actual = ours.generate(
        PROMPTS,
        size=size,
        steps=steps,
        guidance=3.5,
        latents=latents,
        fresh=lambda: torch.randn(latents.shape, generator=generator).numpy(),
    )
    assert psnr(actual, expected) >= 60


def test_pictures_of_an_nvlabs_file_equal_those_of_the_folder_it_came_from(written, tiny_pth):
    folder, pipeline = written("sana")
    size = (96, 128)
    latents = draw_latents(1, size)
    expected = theirs(pipeline, size, latents, num_inference_steps=6, guidance_scale=4.5)
    ours = ReferencePipeline.open(load_checkpoint(tiny_pth, autoencoder=folder, text_encoder=folder))
    assert psnr(ours.generate(PROMPTS, size=size, steps=6, latents=latents), expected) >= 60


def test_the_nvlabs_names_are_those_that_diffusers_converts_from(written, tiny_pth):
    _, pipeline = written("sana")
    converted = convert_sana_transformer_to_diffusers(torch.load(tiny_pth, weights_only=True)["state_dict"])
    expected = pipeline.transformer.state_dict()
    assert converted.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(converted[name], tensor), name


def test_pictures_of_an_original_autoencoder_equal_those_of_the_folder_it_came_from(written, tiny_efficientvit):
    folder, pipeline = written("sana")
    size = (64, 64)
    latents = draw_latents(2, size, 1)
    expected = theirs(pipeline, size, latents, num_inference_steps=2)
    ours = ReferencePipeline.open(load_checkpoint(folder, autoencoder=tiny_efficientvit))
    assert psnr(ours.generate(PROMPTS[:1], size=size, steps=2, latents=latents), expected) >= 60


def test_pictures_with_gemmas_own_tokenizer_equal_those_of_sana_pipeline(recipes, gemma_tokenizer, tmp_path):
    pipeline = recipes["sana"].build(gemma_tokenizer)
    pipeline.save_pretrained(tmp_path / "sana")
    size = (64, 96)
    latents = draw_latents(4, size)
    expected = theirs(pipeline, size, latents, num_inference_steps=3)
    actual = ReferencePipeline.open(tmp_path / "sana").generate(PROMPTS, size=size, steps=3, latents=latents)
    assert psnr(actual, expected) >= 60


def test_the_checkpoints_own_settings_are_used_when_none_are_given(tiny_sana):
    ours = ReferencePipeline.open(tiny_sana)
    latents = draw_latents(5, (32, 32), 1)
    usual = ours.generate(PROMPTS[:1], size=(32, 32), latents=latents)
    spelled = ours.generate(PROMPTS[:1], size=(32, 32), latents=latents, steps=20, guidance=4.5, solver="flow-dpm")
    assert np.array_equal(usual, spelled)
    other = ours.generate(PROMPTS[:1], size=(32, 32), latents=latents, steps=20, solver="flow-euler")
    assert not np.array_equal(usual, other)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(tiny_sana):
    ours = ReferencePipeline.open(tiny_sana)
    first, again, other = (ours.generate(PROMPTS[:1], size=(64, 64), steps=2, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_second_picture_of_a_batch_is_the_single_picture_of_the_next_seed(tiny_sana):
    ours = ReferencePipeline.open(tiny_sana)
    both = ours.generate([PROMPTS[0]] * 2, size=(64, 64), steps=2, seed=8)
    single = ours.generate(PROMPTS[:1], size=(64, 64), steps=2, seed=9)
    assert np.abs(both[1].astype(int) - single[0].astype(int)).max() <= 1


@pytest.mark.parametrize("size", [(0, 32), (33, 32), (64, 100), (-32, -32)])
def test_a_size_that_no_latent_has_is_refused(tiny_sana, size):
    with pytest.raises(UsageError, match=f"size {size[0]}x{size[1]}: .* multiples of 32"):
        ReferencePipeline.open(tiny_sana).generate(PROMPTS, size=size, steps=1)


def test_half_precision_keeps_the_parts_that_overflow_wide(tiny_sana: Path):
    ours = ReferencePipeline.open(tiny_sana, torch.float16)
    kinds = [next(part.parameters()).dtype for part in (ours.transformer, ours.autoencoder, ours.text_encoder)]
    assert kinds == [torch.float16, torch.bfloat16, torch.bfloat16]
    wide = ReferencePipeline.open(tiny_sana)
    latents = draw_latents(6, (64, 64), 1)
    close, exact = (each.generate(PROMPTS[:1], size=(64, 64), steps=4, latents=latents) for each in (ours, wide))
    assert psnr(close, exact) >= 25
