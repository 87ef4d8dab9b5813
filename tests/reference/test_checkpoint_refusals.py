"""A checkpoint that is damaged, hostile or unsupported is refused in one line that names the culprit and the remedy."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sana_reference.checkpoint import load, load_checkpoint
from sana_runtime.errors import CheckpointError, UsageError

WEIGHTS = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
PATCH = "patch_embed.proj.weight"


def refused(path: Any, **options: Any) -> str:
    """The one line that says why, of a checkpoint whose parts are all asked for."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint = load_checkpoint(path, **options)
        checkpoint.transformer()
        checkpoint.autoencoder()
        checkpoint.text_encoder()
    line = str(caught.value)
    assert "\n" not in line
    return line


def change(file: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replace, add or (None) remove tensors of a file."""
    tensors = {**load_file(file), **changes}
    file.unlink()
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_safetensors(sana_copy, part, share):
    file = sana_copy / WEIGHTS[part]
    os.truncate(file, int(share * file.stat().st_size))
    line = refused(sana_copy)
    assert line.startswith(f"{file} is damaged or cut short")
    assert line.endswith("download it again")


def test_truncated_pickle(tiny_pth, tmp_path):
    file = tmp_path / "cut.pth"
    file.write_bytes(tiny_pth.read_bytes()[:-2000])
    line = refused(file)
    assert line.startswith(f"{file} cannot be read")
    assert "download it again" in line


def test_a_renamed_tensor(sana_copy):
    file = sana_copy / WEIGHTS["transformer"]
    change(file, {PATCH: None, "patch.weight": load_file(file)[PATCH]})
    assert refused(sana_copy) == (
        f"{sana_copy}/transformer as tiny: tensor {PATCH} (64, 32) is missing, but the unknown patch.weight has that "
        "shape: was it renamed? (and 1 more like it); use files and a preset that belong together"
    )


def test_a_missing_piece_of_a_joined_tensor(sana_copy):
    change(sana_copy / WEIGHTS["transformer"], {"transformer_blocks.1.attn1.to_k.weight": None})
    assert "tensor transformer_blocks.1.attn1.to_k.weight (64, 64) is missing;" in refused(sana_copy)


def test_an_extra_tensor(sana_copy):
    change(sana_copy / WEIGHTS["vae"], {"encoder.surprise": torch.zeros(3)})
    assert f"{sana_copy}/vae as tiny: tensor encoder.surprise (3,) is not part of this model" in refused(sana_copy)


def test_a_misshapen_tensor(sana_copy):
    change(sana_copy / WEIGHTS["text_encoder"], {"norm.weight": torch.zeros(47)})
    assert "tensor norm.weight has shape (47,), expected (48,)" in refused(sana_copy)


def test_a_json_that_promises_other_sizes(sana_copy):
    edit(sana_copy / "transformer" / "config.json", num_layers=3)
    assert "transformer as custom: tensor transformer_blocks.2." in refused(sana_copy)


def test_a_folder_of_another_preset(tiny_sana):
    line = refused(tiny_sana, preset="sana-600m")
    assert (
        line
        == f"{tiny_sana} is tiny, not sana-600m: its depth is 2, not 28; leave preset= out, or give another checkpoint"
    )


def test_a_file_of_another_preset(tiny_pth):
    line = refused(tiny_pth, preset="sprint-600m")
    assert line.startswith(f"{tiny_pth} as sprint-600m: tensor cfg_embedder.mlp.0.weight (1152, 256) is missing")


def test_a_file_of_no_preset(nvlabs_state, written, tmp_path):
    torch.save(nvlabs_state(written("sana-1.5")[0]), tmp_path / "odd.pth")
    line = refused(tmp_path / "odd.pth")
    assert "no preset has depth 3, dim 64, hidden 192" in line
    assert line.endswith("pass the right SanaConfig as preset=")


def test_a_file_of_another_model(tmp_path):
    torch.save({"unet.weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert "so it is no Sana transformer" in refused(tmp_path / "other.pth")


def test_an_autoencoder_file_of_another_model(tiny_pth, tmp_path):
    save_file({"unet.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    line = refused(tiny_pth, autoencoder=tmp_path / "other.safetensors")
    assert "other.safetensors as dc-ae-f32c32: tensor encoder.project_in.conv.weight (128, 3, 3, 3) is missing" in line


class Malice:
    """Unpickled without care, it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("kind", ["torch", "plain"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_a_pickle_with_code_in_it_is_not_run(tmp_path, suffix, kind):
    trace, file = tmp_path / "trace", tmp_path / f"evil{suffix}"
    content = {"state_dict": {"x_embedder.proj.weight": Malice(trace)}}
    if kind == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content))
    line = refused(file)
    assert line.startswith(f"{file} ")
    assert "safetensors" in line
    assert not trace.exists()


def test_a_pickle_is_read_by_torch_2_10_or_later_only(tiny_pth, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    line = refused(tiny_pth)
    assert line == (
        f"{tiny_pth}: torch 2.9.1+cpu does not read pickles safely; upgrade to 2.10 or later, or use safetensors"
    )


def test_a_pickle_is_never_read_in_any_other_way(tiny_pth, monkeypatch):
    calls = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: calls.append(options) or real(*args, **options))
    load_checkpoint(tiny_pth).transformer()
    assert calls
    assert all(options["weights_only"] is True and options["mmap"] is True for options in calls)


def test_a_pickle_without_tensors(tmp_path):
    torch.save({"state_dict": {"epoch": 3}}, tmp_path / "empty.pth")
    assert "holds no state dict" in refused(tmp_path / "empty.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("part", "name"), [("transformer", PATCH), ("vae", "decoder.norm_out.bias"), ("text_encoder", "norm.weight")]
)
def test_weights_that_are_not_numbers(sana_copy, part, name, value):
    file = sana_copy / WEIGHTS[part]
    tensor = load_file(file)[name]
    tensor.view(-1)[-1] = value
    change(file, {name: tensor})
    assert refused(sana_copy) == (
        f"{file}: tensor {name} holds NaN or infinity; the file is damaged, download it again"
    )


def test_weights_too_large_for_half_precision(sana_copy):
    file = sana_copy / WEIGHTS["transformer"]
    change(file, {PATCH: torch.full((64, 32, 1, 1), 1e5)})
    checkpoint = load_checkpoint(sana_copy)
    checkpoint.transformer(torch.bfloat16)
    with pytest.raises(CheckpointError, match=f"{PATCH} does not fit into float16; .* bfloat16 or float32"):
        checkpoint.transformer(torch.float16)


def test_quantised_weights(sana_copy):
    change(sana_copy / WEIGHTS["transformer"], {PATCH: torch.zeros(64, 32, 1, 1, dtype=torch.int8)})
    assert f"tensor {PATCH} is stored as int8; give the float checkpoint" in refused(sana_copy)


def test_a_text_encoder_in_half_precision(tiny_sana):
    with pytest.raises(UsageError, match="overflows in float16"):
        load_checkpoint(tiny_sana).text_encoder(torch.float16)


def test_a_missing_tokenizer(sana_copy):
    (sana_copy / "tokenizer" / "tokenizer.json").unlink()
    assert refused(sana_copy).startswith(f"{sana_copy}/tokenizer/tokenizer.json is missing; copy")


@pytest.mark.parametrize(
    "file",
    ["transformer/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"],
)
def test_a_missing_or_damaged_json(sana_copy, file):
    (sana_copy / file).write_text('{"a": [')
    assert f"{sana_copy}/{file} is not readable JSON" in refused(sana_copy)
    (sana_copy / file).write_text("[1]")
    assert f"{sana_copy}/{file} is not a JSON object" in refused(sana_copy)
    (sana_copy / file).unlink()
    assert f"{sana_copy}/{file} is missing" in refused(sana_copy)


def write_shards(folder: Path, pipeline: Any) -> Path:
    """Replace a transformer by shards, and give their index."""
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="200KB")
    return folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"


def test_a_missing_shard(sana_copy, written):
    index = write_shards(sana_copy, written("sana")[1])
    shard = sorted(index.parent.glob("*.safetensors"))[1]
    shard.unlink()
    assert refused(sana_copy) == f"{shard} is missing, though {index.name} names it; download the part again"


def test_a_missing_index(sana_copy, written):
    write_shards(sana_copy, written("sana")[1]).unlink()
    assert "transformer: the index of its shards is missing" in refused(sana_copy)


@pytest.mark.parametrize("name", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "model.bin"])
def test_a_shard_outside_of_its_folder(sana_copy, written, name):
    index = write_shards(sana_copy, written("sana")[1])
    edit(index, weight_map={PATCH: name})
    assert "which is no shard beside it" in refused(sana_copy)


def test_a_part_without_weights_or_folder(sana_copy):
    file = sana_copy / WEIGHTS["vae"]
    file.rename(file.with_suffix(".bin"))
    assert refused(sana_copy).startswith(f"{sana_copy}/vae holds no .safetensors weights")


def test_a_variant_that_is_not_there(sana_copy):
    file = sana_copy / WEIGHTS["vae"]
    file.rename(file.with_suffix(".fp16.safetensors"))
    assert "vae has no bf16 weights, only fp16; choose one with variant=" in refused(sana_copy, variant="bf16")


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("transformer", "patch_size", 2),
        ("transformer", "qk_norm", "layer_norm"),
        ("transformer", "norm_eps", 1e-5),
        ("transformer", "out_channels", 64),
        ("transformer", "attention_bias", True),
        ("transformer", "timestep_scale", 0.001),
        ("transformer", "num_layers", 10**9),
        ("transformer", "num_layers", True),
        ("transformer", "num_layers", "2"),
        ("transformer", "mlp_ratio", -1),
        ("transformer", "cross_attention_dim", 128),
        ("transformer", "_class_name", "SanaVideoTransformer3DModel"),
        ("transformer", "rotary_everything", 3),
        ("vae", "downsample_block_type", "pixel_unshuffle"),
        ("vae", "decoder_norm_types", "batch_norm"),
        ("vae", "encoder_block_types", ["EfficientViTBlock"] * 3 + ["ResBlock"] * 3),
        ("vae", "decoder_qkv_multiscales", [[], [], [], [3], [5], [5]]),
        ("vae", "decoder_block_out_channels", [8, 16, 16, 32, 32, 64]),
        ("vae", "encoder_layers_per_block", [1, 1]),
        ("vae", "encoder_layers_per_block", "many"),
        ("vae", "scaling_factor", float("-inf")),
        ("vae", "shift_factor", 0.1),
        ("text_encoder", "model_type", "gemma3"),
        ("text_encoder", "hidden_activation", "relu"),
        ("text_encoder", "sliding_window", 128),
        ("text_encoder", "use_bidirectional_attention", True),
        ("text_encoder", "rope_parameters", {"rope_type": "yarn"}),
        ("text_encoder", "attn_logit_softcapping", None),
        ("text_encoder", "quantization_config", {"bits": 4}),
    ],
)
def test_a_setting_that_we_do_not_compute(sana_copy, file, name, value):
    edit(sana_copy / file / "config.json", **{name: value})
    line = refused(sana_copy)
    assert line.startswith(f"{sana_copy}/{file}/config.json: {name} = ")
    assert "is not supported, only " in line or "is not a setting we know" in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_class_name", "EulerDiscreteScheduler"),
        ("prediction_type", "epsilon"),
        ("use_flow_sigmas", False),
        ("algorithm_type", "sde-dpmsolver++"),
        ("solver_order", 3),
        ("final_sigmas_type", "sigma_min"),
        ("use_karras_sigmas", True),
        ("thresholding", True),
        ("num_train_timesteps", 500),
    ],
)
def test_a_scheduler_that_we_do_not_compute(sana_copy, name, value):
    file = sana_copy / "scheduler" / "scheduler_config.json"
    edit(file, **{name: value})
    assert refused(sana_copy).startswith(f"{file}: {name} = {value!r} is not supported, only ")


def test_a_pipeline_of_another_kind(sana_copy):
    edit(sana_copy / "model_index.json", _class_name="SanaVideoPipeline")
    assert "_class_name = 'SanaVideoPipeline' is not supported" in refused(sana_copy)


def test_parts_of_different_models(sana_copy, tiny_pth, recipes, tiny_tokenizer, tmp_path):
    wide = type(recipes["sana"])(text_encoder={"hidden_size": 32}).build(tiny_tokenizer)
    wide.save_pretrained(tmp_path / "wide")
    line = refused(tiny_pth, autoencoder=sana_copy, text_encoder=tmp_path / "wide")
    assert "gives 32 numbers a token, the transformer takes 48" in line


@pytest.mark.parametrize("part", ["autoencoder", "text_encoder"])
def test_an_nvlabs_file_without_the_part_that_is_asked_for(tiny_pth, part):
    with pytest.raises(CheckpointError, match=f"{tiny_pth} holds the transformer alone, .* with {part}="):
        getattr(load_checkpoint(tiny_pth), part)()


def test_a_folder_that_is_no_checkpoint(tmp_path):
    assert refused(tmp_path) == f"{tmp_path} is not a checkpoint: it has no model_index.json; give a diffusers folder"


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "is not a checkpoint; give a diffusers folder or a file ending in .pth" in refused(tmp_path / "notes.txt")


def test_a_path_that_does_not_exist(tmp_path):
    assert refused(tmp_path / "nowhere") == (
        f"{tmp_path}/nowhere does not exist; give a folder, a .pth file, or a hub id like owner/model"
    )
    assert "models/sana.pth does not exist" in refused("models/sana.pth")


def test_the_nano_model_of_an_install_that_lacks_it(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "NANO", tmp_path / "weights")
    assert (
        refused("nano")
        == f"{tmp_path}/weights is missing, so this install has no nano model; install sana-export again"
    )


def test_the_nano_model_is_a_folder_inside_the_package(monkeypatch, tiny_sana):
    monkeypatch.setattr(load, "NANO", tiny_sana)
    assert load_checkpoint("nano").where == tiny_sana


def test_a_preset_that_does_not_exist(tiny_pth):
    with pytest.raises(UsageError, match="'sana-9b' is not a preset; choose from sana-600m, "):
        load_checkpoint(tiny_pth, preset="sana-9b")
