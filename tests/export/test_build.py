"""A checkpoint's folder becomes a bundle that paints diffusers' pictures, and damage to it is noticed."""

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from sana_reference.checkpoint import load_checkpoint
from sana_runtime.bundle import open_bundle, seal
from sana_runtime.errors import BundleError, CheckpointError, MemoryLimitError
from sana_runtime.manifest import dump, parse
from sana_runtime.pipeline import Pipeline
from sana_runtime.progress import Preview
from sana_runtime.prompt import PromptRules
from sana_runtime.signature import PARTS
from sana_runtime.tokenizer import Tokenizer

from sana_export import build as building
from sana_export import plan as planning
from sana_export.build import GOLDEN, build
from sana_export.cli.main import main
from sana_export.precision import Precision
from sana_export.quantising import Int8Settings
from sana_export.replay import replay, verify
from sana_export.tracing.golden import GoldenRequest, paint_golden

DEVICES = ["cpu", "onnxruntime"]
PROMPT = "A red circle, 一只猫 above two squares"
BLOCKED = ["torch", "transformers", "onnx", "onnx_ir", "onnxscript", "diffusers", "safetensors", "triton"]


def psnr(actual, expected):
    error = np.mean((actual.astype(float) - expected.astype(float)) ** 2)
    return 10 * math.log10(255**2 / max(error, 1e-6))


def diffusers_picture(pipeline, latents, **arguments):
    height, width = (32 * size for size in latents.shape[2:])
    sized = {"height": height, "width": width, "use_resolution_binning": False, "output_type": "np"}
    image = pipeline(PROMPT, latents=torch.from_numpy(latents), **sized, **arguments).images
    return np.round(image * 255).astype(np.uint8)[0]


def unit_noise(seed, height=4, width=4):
    return np.random.default_rng(seed).standard_normal((1, 32, height, width)).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 6)])
def test_a_sana_bundle_paints_the_picture_of_diffusers(built, device, height, width):
    sana = built("sana")
    latents = unit_noise(height, height, width)
    theirs = diffusers_picture(
        sana.pipeline, latents, negative_prompt="blurry", num_inference_steps=5, guidance_scale=4.5
    )
    with Pipeline.open(sana.path, device=device) as pipeline:
        ours = pipeline.generate(
            PROMPT, negative="blurry", size=(32 * height, 32 * width), steps=5, guidance=4.5, latents=latents
        )
    assert theirs.std() > 10
    assert psnr(ours.pixels, theirs) >= 55


@pytest.mark.parametrize("device", DEVICES)
def test_a_sprint_bundle_paints_the_picture_of_diffusers(built, device):
    sprint = built("sprint")
    latents = unit_noise(3)
    # One step, because a second one would need the same fresh noise on both sides.
    arguments = {"num_inference_steps": 1, "intermediate_timesteps": None, "guidance_scale": 4.5}
    theirs = diffusers_picture(sprint.pipeline, latents, **arguments)
    with Pipeline.open(sprint.path, device=device) as pipeline:
        ours = pipeline.generate(PROMPT, size=(128, 128), steps=1, guidance=4.5, latents=latents)
    assert theirs.std() > 10
    assert psnr(ours.pixels, theirs) >= 55


@pytest.mark.parametrize("kind", ["sana", "sprint"])
@pytest.mark.parametrize("device", DEVICES)
def test_the_golden_record_is_painted_again_on_every_engine(built, kind, device):
    replays = verify(built(kind).path, device)
    assert len(replays) == 2
    assert min(done.psnr for done in replays) >= 50


def test_a_changed_byte_is_found_by_its_digest(built, tmp_path):
    copy = shutil.copytree(built("sana").path, tmp_path / "copy")
    data = bytearray((copy / "transformer.data").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "transformer.data").write_bytes(data)
    with pytest.raises(BundleError, match=r"transformer\.data changed"):
        verify(copy)


@pytest.mark.parametrize("part", ["text_encoder", "caption", "transformer", "decoder"])
def test_one_weight_tensor_changed_by_one_percent_is_found_by_the_golden_record_alone(built, tmp_path, part):
    copy = shutil.copytree(built("sana").path, tmp_path / "copy")
    model = onnx.load(copy / f"{part}.onnx", load_external_data=False)
    largest = max(
        (t for t in model.graph.initializer if t.external_data and t.data_type == onnx.TensorProto.FLOAT),
        key=lambda t: math.prod(t.dims) if "embed" not in t.name else 0,
    )
    offset = next((int(entry.value) for entry in largest.external_data if entry.key == "offset"), 0)
    onnx.external_data_helper.load_external_data_for_tensor(largest, str(copy))
    scaled = (numpy_helper.to_array(largest) * np.float32(1.01)).astype(np.float32)
    with (copy / f"{part}.data").open("r+b") as file:
        file.seek(offset)
        file.write(scaled.tobytes())
    manifest = open_bundle(copy).manifest
    (copy / "manifest.json").unlink()
    seal(copy, manifest)  # the digests are those of the changed files
    open_bundle(copy).verify()
    with pytest.raises(BundleError, match="golden picture"):
        verify(copy)


AGAIN = """
import json, sys
from pathlib import Path
from sana_export.build import build
from sana_export.precision import Precision

class Killed(Exception):
    pass

def kill_at_decoder(step):
    if step.stage == "decoder":
        raise Killed

source, target, stages = Path(sys.argv[1]), Path(sys.argv[2]), []
try:
    build(source, target, Precision.FP32, on_step=kill_at_decoder)
    raise SystemExit("nobody killed the build")
except Killed:
    assert not target.exists()
build(source, target, Precision.FP32, resume=True, on_step=lambda step: stages.append(step.stage))
print(json.dumps(stages))
"""


def test_building_again_in_another_process_gives_the_same_bytes_also_after_an_interruption(built, tmp_path):
    sana, target = built("sana"), tmp_path / "again"
    command = [sys.executable, "-c", AGAIN, sana.folder, target]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    stages = json.loads(done.stdout.splitlines()[-1])
    assert open_bundle(target).digest == open_bundle(sana.path).digest
    for name in (f"{part}.{kind}" for part in PARTS for kind in ("onnx", "data")):
        again, before = (hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (target, sana.path))
        assert again == before, name
    assert "transformer" not in stages
    assert "decoder" in stages
    assert sorted(path.name for path in tmp_path.iterdir() if "lock" not in path.name) == ["again"]


def cut_short(folder):
    (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:99])


def not_judged(folder):
    manifest = parse((folder / "manifest.json").read_bytes())
    unsure = tuple(replace(record, least_psnr=10.0) for record in manifest.golden)
    (folder / "manifest.json").write_bytes(dump(replace(manifest, golden=unsure)))


def emptied(folder):
    (folder / "decoder.data").write_bytes(bytes((folder / "decoder.data").stat().st_size))


def removed(folder):
    (folder / "caption.onnx").unlink()


@pytest.mark.parametrize("damage", [cut_short, not_judged, emptied, removed])
def test_half_a_float_bundle_that_a_killed_build_for_int8_left_is_not_taken_for_whole(damage, built, tmp_path):
    folder = shutil.copytree(built("sana").path, tmp_path / "work")
    assert building._is_finished(folder)
    damage(folder)
    assert not building._is_finished(folder)


def test_the_folder_of_a_half_written_part_is_gone_when_a_killed_build_goes_on(built, tmp_path):
    """In the folder of a bundle, which it becomes at INT8, it would be refused for ever."""
    checkpoint, output = load_checkpoint(built("sana").folder), tmp_path / "bundle"
    work = building._work_folder(output, checkpoint, Precision.INT8, keep=True)
    (work / ".decoder.onnx.partial").mkdir()
    (work / "caption.onnx").write_bytes(b"whole")
    assert building._work_folder(output, checkpoint, Precision.INT8, keep=True) == work
    assert [path.name for path in work.iterdir()] == ["caption.onnx"]


def test_a_bundle_opens_and_paints_where_no_build_library_can_be_imported(built, tmp_path):
    program = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked")
sys.meta_path.insert(0, Block())
from sana_runtime import Pipeline
with Pipeline.open({str(built("sana").path)!r}) as pipeline:
    pipeline.generate("a red circle", steps=2).save({str(tmp_path / "out.png")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_a_checkpoint_that_is_refused_leaves_the_old_bundle(built, tmp_path):
    target = shutil.copytree(built("sana").path, tmp_path / "bundle")
    before = hashlib.sha256((target / "manifest.json").read_bytes()).hexdigest()
    with pytest.raises(CheckpointError):
        build(tmp_path / "nothing", target, Precision.FP32)
    assert hashlib.sha256((target / "manifest.json").read_bytes()).hexdigest() == before


class Stopped(Exception):
    """What a test ends a build with that goes too far."""


def stop_at_text_encoder(step):
    if step.stage == "text_encoder":
        raise Stopped


def left_behind(folder):
    return sorted(path.name for path in folder.rglob("*") if "lock" not in path.name)


@pytest.mark.parametrize("scarce", ["memory", "disk"])
def test_what_cannot_fit_is_refused_before_anything_is_touched_unless_forced(built, tmp_path, monkeypatch, scarce):
    folder, target = built("sana").folder, tmp_path / "bundle"
    for kept in (target, tmp_path / ".bundle.parts-0123456789ab"):  # a bundle, and what a killed build left
        kept.mkdir()
        (kept / "manifest.json").write_text('{"parts": {}}')
    before = left_behind(tmp_path)
    if scarce == "memory":
        monkeypatch.setattr(planning, "available_memory", lambda: 100_000_000)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    told = r"needs about 0\.7 GB of memory, 0\.1 GB|writes about \d+\.\d MB, 0\.0 MB"
    with pytest.raises(MemoryLimitError, match=told):
        build(folder, target, Precision.FP32, resume=True, on_step=stop_at_text_encoder)
    assert left_behind(tmp_path) == before
    messages = []

    def tell(step):
        messages.append(step.message)
        stop_at_text_encoder(step)

    with pytest.raises(Stopped):
        build(folder, target, Precision.FP32, resume=True, int8=Int8Settings(force=True), on_step=tell)
    assert any(message.startswith("forced: the build ") for message in messages)


def test_what_an_interrupted_build_left_counts_as_free(built, tmp_path, monkeypatch):
    left = tmp_path / ".bundle.parts-0123456789ab"
    left.mkdir()
    (left / "transformer.data").write_bytes(bytes(50_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(Stopped):
        build(built("sana").folder, tmp_path / "bundle", Precision.FP32, on_step=stop_at_text_encoder)


def test_the_command_says_in_one_line_what_is_needed_and_what_is_there(built, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "available_memory", lambda: 100_000_000)
    with pytest.raises(SystemExit) as left:
        main(["build", str(built("sana").folder), "-o", str(tmp_path / "bundle"), "--precision", "bf16"])
    assert left.value.code == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(r"needs about 0\.7 GB of memory, 0\.1 GB are free; close .* --force$", line)
    assert not (tmp_path / "bundle").exists()


def test_every_step_of_painting_has_a_preview(built):
    seen = []
    with Pipeline.open(built("sana").path) as pipeline:
        pipeline.generate(PROMPT, steps=2, size=(64, 96), on_step=lambda step: seen.append(step.preview()))
    assert seen[0] is None  # while the text is encoded there is nothing to see
    assert [preview.shape for preview in seen[1:]] == [(1, 2, 3, 3)] * 3


def test_the_fitted_preview_tells_more_of_a_picture_than_the_mean_colour_of_all():
    checkpoint = load_checkpoint("nano")  # random weights decode to nothing that a linear map could follow
    rules = PromptRules.derive(Tokenizer(checkpoint.tokenizer))
    side = checkpoint.config.sample_size * 32
    _, fitted = paint_golden(checkpoint, [request(prompt, seed, side) for prompt, seed in GOLDEN], rules)
    prompts = (  # on backgrounds that differ, or the mean colour of all would be nearly right everywhere
        "two green triangles on a dark background",
        "a large blue square on a white background",
        "four orange circles on a gray background",
        "a red ring below a yellow star",
    )
    requests = [request(prompt, 500 + i, side) for i, prompt in enumerate(4 * prompts)]
    pictures, _ = paint_golden(checkpoint, requests, rules)
    preview = Preview(np.array(fitted.weight, np.float32), np.array(fitted.bias, np.float32))
    shown = preview(np.stack([picture.latent for picture in pictures])).astype(float)
    pixels = np.stack([picture.pixels for picture in pictures])
    small = pixels.reshape(len(pixels), side // 32, 32, side // 32, 32, 3).mean(axis=(2, 4))
    assert np.abs(shown - small).mean() < 0.8 * np.abs(small - small.mean(axis=(0, 1, 2))).mean()


def request(prompt, seed, side):
    return GoldenRequest(prompt, seed, (side, side), steps=6, guidance=2.0)


def test_the_record_is_held_to_what_its_own_replay_reached(built):
    bundle = open_bundle(built("sana").path)
    reached = min(done.psnr for done in replay(bundle.path))
    assert all(50 <= record.least_psnr < reached for record in bundle.manifest.golden)
