"""Checkpoints of every kind are found, recognised by what is in them, and read tensor by tensor."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SCMScheduler
from safetensors.torch import load_file, save_file
from sana_reference.checkpoint import load_checkpoint
from sana_reference.checkpoint.configs import autoencoder_config, text_config, transformer_config
from sana_reference.checkpoint.defaults import SolverDefaults
from sana_reference.checkpoint.fields import Fields
from sana_reference.checkpoint.shapes import recognise_transformer
from sana_reference.config import AUTOENCODERS, PRESETS, SanaConfig, TextConfig
from sana_reference.renames.transformer import NVLABS
from sana_reference.transformer import SanaTransformer
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

FULL_SIZE = [name for name in PRESETS if name.startswith(("sana", "sprint"))]


def same_tensors(first: nn.Module, second: nn.Module) -> bool:
    ours, others = first.state_dict(), second.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def published_json(config: SanaConfig) -> dict[str, Any]:
    """The fields of a released transformer's config.json."""
    fields: dict[str, Any] = {
        "_class_name": "SanaTransformer2DModel",
        "_diffusers_version": "0.32.0.dev0",
        "attention_bias": False,
        "attention_head_dim": 32,
        "caption_channels": 2304,
        "cross_attention_dim": config.dim,
        "cross_attention_head_dim": config.dim // config.cross_heads,
        "dropout": 0.0,
        "in_channels": 32,
        "mlp_ratio": 2.5,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "num_attention_heads": config.dim // 32,
        "num_cross_attention_heads": config.cross_heads,
        "num_layers": config.depth,
        "out_channels": 32,
        "patch_size": 1,
        "sample_size": config.sample_size,
    }
    if config.position_base is not None:
        fields["interpolation_scale"] = config.position_scale
    if config.qk_norm:
        fields |= {"qk_norm": "rms_norm_across_heads", "guidance_embeds": config.guidance_embedding}
        fields |= {"guidance_embeds_scale": 0.1, "timestep_scale": 1.0}
    return fields


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_preset_is_recognised_by_its_json(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published_json(PRESETS[name])))
    config = transformer_config(Fields(tmp_path / "config.json"))
    assert config == PRESETS[name]


def test_the_variant_with_a_wider_feed_forward_is_read_as_it_is(tmp_path):
    fields = published_json(PRESETS["sana-1600m"]) | {"mlp_ratio": 2.5145}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = transformer_config(Fields(tmp_path / "config.json"))
    assert config.hidden == 5632
    assert config == replace(PRESETS["sana-1600m"], name="custom", ffn_hidden=5632)


def test_the_released_autoencoder_is_recognised_by_its_json(tmp_path):
    stages = [[], [], [], [5], [5], [5]]
    blocks, channels = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, [128, 256, 512, 512, 1024, 1024]
    fields = {
        "_class_name": "AutoencoderDC",
        "_name_or_path": "mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers",
        "attention_head_dim": 32,
        "decoder_act_fns": "silu",
        "decoder_block_out_channels": channels,
        "decoder_block_types": blocks,
        "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        "decoder_norm_types": "rms_norm",
        "decoder_qkv_multiscales": stages,
        "downsample_block_type": "Conv",
        "encoder_block_out_channels": channels,
        "encoder_block_types": blocks,
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "encoder_qkv_multiscales": stages,
        "in_channels": 3,
        "latent_channels": 32,
        "scaling_factor": 0.41407,
        "upsample_block_type": "interpolate",
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert autoencoder_config(Fields(tmp_path / "config.json")) == AUTOENCODERS["dc-ae-f32c32"]


def test_the_released_text_encoder_is_recognised_by_its_json(tmp_path):
    fields = {
        "architectures": ["Gemma2Model"],
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 107],
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "model_type": "gemma2",
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "torch_dtype": "bfloat16",
        "vocab_size": 256000,
    }
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert text_config(Fields(tmp_path / "config.json")) == TextConfig()


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_preset_is_recognised_by_the_shapes_in_an_nvlabs_file(name, nvlabs_name):
    config = PRESETS[name]
    with torch.device("meta"):
        tensors = SanaTransformer(config).state_dict()
    shapes = {nvlabs_name(ours, NVLABS): tuple(tensor.shape) for ours, tensor in tensors.items()}
    shapes["pos_embed"] = (1, config.sample_size**2, config.dim)
    assert recognise_transformer(shapes, "file.pth") == config
    del shapes["pos_embed"]
    usual = next(name.removesuffix(end) for end in ("-512", "-2k", "-4k", "") if name.endswith(end))
    assert recognise_transformer(shapes, "file.pth") == PRESETS[usual]


def test_a_diffusers_folder_gives_sizes_solver_and_tokenizer(tiny_sana):
    checkpoint = load_checkpoint(tiny_sana)
    assert checkpoint.config == PRESETS["tiny"]
    assert checkpoint.autoencoder_config == AUTOENCODERS["tiny"]
    assert (checkpoint.text_config.dim, checkpoint.text_config.depth, checkpoint.text_config.query_scalar) == (
        48,
        2,
        16,
    )
    assert checkpoint.solver == SolverDefaults("flow-dpm", 20, 3.0, 4.5)
    assert checkpoint.tokenizer == tiny_sana / "tokenizer" / "tokenizer.json"
    assert checkpoint.revision is None


def test_the_scheduler_json_with_minus_infinity_is_read(tiny_sana):
    text = (tiny_sana / "scheduler" / "scheduler_config.json").read_text()
    assert "-Infinity" in text
    assert load_checkpoint(tiny_sana).solver.shift == 3.0


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (FlowMatchEulerDiscreteScheduler(shift=4.0), SolverDefaults("flow-euler", 28, 4.0)),
        (SCMScheduler(), SolverDefaults("scm", 2)),
    ],
    ids=["euler", "scm"],
)
def test_the_other_schedulers_are_known(sana_copy, scheduler, expected):
    scheduler.save_pretrained(sana_copy / "scheduler")
    assert load_checkpoint(sana_copy).solver == expected


def test_a_folders_flow_shift_outweighs_the_presets(sana_copy):
    edit(sana_copy / "scheduler" / "scheduler_config.json", flow_shift=5.5)
    checkpoint = load_checkpoint(sana_copy)
    assert (checkpoint.config.name, checkpoint.config.flow_shift, checkpoint.solver.shift) == ("tiny", 5.5, 5.5)


def test_nothing_is_read_before_a_part_is_asked_for(sana_copy):
    checkpoint = load_checkpoint(sana_copy)
    shutil.rmtree(sana_copy / "vae")
    checkpoint.transformer()
    with pytest.raises(Exception, match="vae"):
        checkpoint.autoencoder()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_tensor_comes_in_the_type_that_was_asked_for(tiny_sana, dtype):
    checkpoint = load_checkpoint(tiny_sana)
    exact, model = checkpoint.transformer(), checkpoint.transformer(dtype)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact.state_dict()[name].to(dtype)), name
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_nvlabs_file_holds_the_same_transformer(tiny_sana, tiny_pth):
    folder, file = load_checkpoint(tiny_sana), load_checkpoint(tiny_pth)
    assert file.config == folder.config
    assert file.solver == folder.solver
    assert same_tensors(file.transformer(), folder.transformer())


def test_an_nvlabs_file_may_be_a_bare_state_dict_or_safetensors(tiny_sana, nvlabs_state, tmp_path):
    state, folder = nvlabs_state(tiny_sana), load_checkpoint(tiny_sana)
    torch.save(state, tmp_path / "bare.pth")
    save_file(state, tmp_path / "bare.safetensors")
    for file in (tmp_path / "bare.pth", tmp_path / "bare.safetensors"):
        assert same_tensors(load_checkpoint(file).transformer(), folder.transformer())


def test_a_folder_laid_out_as_nvlabs_does_gives_its_one_file(tiny_pth, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(tiny_pth, tmp_path / "checkpoints" / "Sana.pth")
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\n")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.where == tmp_path / "checkpoints" / "Sana.pth"
    assert checkpoint.licence.fields == {"license": "other"}


def test_an_original_autoencoder_holds_the_same_tensors(tiny_sana, tiny_pth, tiny_efficientvit, tmp_path):
    expected = load_checkpoint(tiny_sana).autoencoder()
    tensors = torch.load(tiny_efficientvit, weights_only=True)["state_dict"]
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_name": "dc-ae-f32c32-sana-1.0"}')
    for path in (tiny_efficientvit, tmp_path / "model.safetensors", tmp_path, tiny_sana, tiny_sana / "vae"):
        checkpoint = load_checkpoint(tiny_pth, autoencoder=path)
        assert checkpoint.autoencoder_config == AUTOENCODERS["tiny"]
        assert same_tensors(checkpoint.autoencoder(), expected), path


def test_gemma_as_a_language_model_holds_the_same_text_encoder(tiny_sana, tiny_pth, tmp_path):
    bare = load_file(tiny_sana / "text_encoder" / "model.safetensors")
    config = Gemma2Config.from_pretrained(tiny_sana / "text_encoder")
    whole = Gemma2ForCausalLM(config)
    whole.model.load_state_dict(bare)
    whole.save_pretrained(tmp_path / "gemma")
    shutil.copy(tiny_sana / "tokenizer" / "tokenizer.json", tmp_path / "gemma")
    checkpoint = load_checkpoint(tiny_pth, text_encoder=tmp_path / "gemma")
    assert checkpoint.tokenizer == tmp_path / "gemma" / "tokenizer.json"
    assert same_tensors(checkpoint.text_encoder(), load_checkpoint(tiny_sana).text_encoder())


def test_shards_are_put_together(tiny_sana, written, tmp_path):
    folder = Path(shutil.copytree(tiny_sana, tmp_path / "sana"))
    shutil.rmtree(folder / "transformer")
    written("sana")[1].transformer.save_pretrained(folder / "transformer", max_shard_size="200KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    assert same_tensors(load_checkpoint(folder).transformer(), load_checkpoint(tiny_sana).transformer())


def test_a_variant_is_taken_where_there_is_one(sana_copy, written):
    written("sana")[1].transformer.save_pretrained(sana_copy / "transformer", variant="fp16", max_shard_size="200KB")
    plain = sana_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    assert load_checkpoint(sana_copy).transformer_part.files == (plain,)
    chosen = load_checkpoint(sana_copy, variant="fp16")
    assert all(".fp16-" in file.name for file in chosen.transformer_part.files)
    assert chosen.autoencoder_part.files == (sana_copy / "vae" / "diffusion_pytorch_model.safetensors",)
    plain.unlink()
    assert load_checkpoint(sana_copy).transformer_part.files == chosen.transformer_part.files


def test_licences_are_kept(sana_copy):
    card = '---\nlicense: other\nlicense_name: "nscl"\nlicense_link: https://example.org\ntags: [a]\n---\nlicense: x\n'
    (sana_copy / "README.md").write_text(card)
    (sana_copy / "LICENSE.txt").write_text("Do as you please.")
    licence = load_checkpoint(sana_copy).licence
    assert licence.fields == {"license": "other", "license_name": "nscl", "license_link": "https://example.org"}
    assert licence.texts == {"LICENSE.txt": "Do as you please."}


GROWTH = """
import sys, torch
from pathlib import Path
from sana_reference.checkpoint import load_checkpoint
from sana_reference.config import SanaConfig

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

for path in sys.argv[1:]:
    checkpoint = load_checkpoint(path, preset=SanaConfig("x", depth=10, dim=704, cross_heads=4, text_dim=64))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident("VmRSS")
    model = checkpoint.transformer(torch.float16)
    print((resident("VmHWM") - before) / sum(parameter.nbytes for parameter in model.parameters()))
    del model
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_loading_needs_little_more_memory_than_the_weights(nvlabs_name, tmp_path):
    config = SanaConfig("x", depth=10, dim=704, cross_heads=4, text_dim=64)
    with torch.device("meta"):
        shapes = SanaTransformer(config).state_dict()
    tensors = {nvlabs_name(name, NVLABS): torch.zeros(like.shape).half() for name, like in shapes.items()}
    assert sum(tensor.nbytes for tensor in tensors.values()) > 90e6
    files = [str(tmp_path / name) for name in ("model.safetensors", "model.pth")]
    save_file(tensors, files[0])
    torch.save(tensors, files[1])
    growth = subprocess.run([sys.executable, "-c", GROWTH, *files], capture_output=True, text=True, check=True)
    for ratio in map(float, growth.stdout.split()):
        assert 0.5 < ratio < 1.3  # some of it may fit into memory that is already there
