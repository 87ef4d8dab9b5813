"""The weights that ship with the package: their size, their licence, their pictures, and diffusers' opinion of them."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from sana_reference.checkpoint import load_checkpoint
from sana_reference.config import AUTOENCODERS, PRESETS
from sana_reference.nano.drawn import scene_list
from sana_reference.nano.evaluation import evaluate, questions
from sana_reference.nano.scenes import draw
from sana_reference.pipeline import ReferencePipeline

FOLDER = Path(str(files("sana_reference") / "nano" / "weights"))
SIZE = (128, 128)
PROMPTS = ("a red circle above a blue square", "two green stars", "a pink heart in the top left corner")


def psnr(a, b):
    error = np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean()
    return 10 * np.log10(255**2 / max(error, 1e-12))


@pytest.fixture(scope="module")
def pipeline():
    return ReferencePipeline.open("nano")


def test_the_folder_takes_at_most_12_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 12_000_000


def test_they_are_the_presets_and_say_how_to_paint():
    checkpoint = load_checkpoint("nano")
    assert checkpoint.config == PRESETS["nano"]
    assert checkpoint.autoencoder_config == AUTOENCODERS["nano"]
    assert checkpoint.licence.fields["license"] == "apache-2.0"
    assert (checkpoint.solver.name, checkpoint.solver.steps) == ("flow-dpm", 20)
    assert f"guidance {checkpoint.solver.guidance:g}" in (FOLDER / "README.md").read_text()


def test_scenes_survive_the_autoencoder_at_28_decibels_or_more(pipeline):
    pictures = np.stack([draw(scene) for scene in scene_list(24, seed=21, held_out=True)])
    with torch.inference_mode():
        latents = pipeline.autoencoder.encode_picture(torch.from_numpy(pictures))
        painted = pipeline.autoencoder.decode_picture(latents).numpy()
    assert np.mean([psnr(a, b) for a, b in zip(pictures, painted, strict=True)]) >= 28
    assert abs(float(latents.std()) - 1) < 0.1


def test_pictures_show_what_held_out_prompts_say(pipeline):
    asked = questions(8)
    answers = evaluate(lambda prompts, seeds: pipeline.generate(prompts, size=SIZE, seed=seeds[0]), asked)
    assert np.mean(answers) >= 0.75  # 48 prompts; these weights reach nine tenths of 1,008, and chance nearly none


def test_diffusers_paints_the_same_pictures(pipeline):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.SanaPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(0).standard_normal((len(PROMPTS), 32, 4, 4)).astype(np.float32)
    guidance = pipeline.defaults.guidance
    images = theirs(
        list(PROMPTS),
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=20,
        guidance_scale=guidance,
        latents=torch.from_numpy(noise),
        use_resolution_binning=False,
        output_type="np",
    ).images
    ours = pipeline.generate(PROMPTS, size=SIZE, latents=noise)
    assert psnr(images * 255, ours) >= 55
