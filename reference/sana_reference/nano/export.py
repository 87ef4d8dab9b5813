"""Write the trained parts as a diffusers folder: what `SanaPipeline.from_pretrained` and `load_checkpoint` read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sana_reference.autoencoder import Autoencoder
from sana_reference.config import AutoencoderConfig, SanaConfig, TextConfig
from sana_reference.renames import Row
from sana_reference.renames.autoencoder import DIFFUSERS as AUTOENCODER_ROWS
from sana_reference.renames.text_encoder import TEXT_ENCODER as TEXT_ROWS
from sana_reference.renames.transformer import DIFFUSERS as TRANSFORMER_ROWS
from sana_reference.text_encoder import TextEncoder
from sana_reference.transformer import SanaTransformer

__all__ = ["write_autoencoder", "write_index", "write_text_encoder", "write_transformer"]

POINTWISE = re.compile(r"(patch_embed\.proj|\.conv_inverted|\.conv_point)\.weight$")  # our Linear, their 1×1 Conv2d
VERSION = "0.36.0"  # of diffusers, the first that reads every field written here


def write_transformer(model: SanaTransformer, folder: Path) -> None:
    """The transformer's two files."""
    _write(model, TRANSFORMER_ROWS, folder, "diffusion_pytorch_model")
    _write_json(folder / "config.json", _transformer_fields(model.config))


def write_autoencoder(model: Autoencoder, config: AutoencoderConfig, folder: Path) -> None:
    """The autoencoder's two files."""
    _write(model, AUTOENCODER_ROWS, folder, "diffusion_pytorch_model")
    _write_json(folder / "config.json", _autoencoder_fields(config))


def write_text_encoder(model: TextEncoder, folder: Path) -> None:
    """The text encoder's two files."""
    config = model.config
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    _write(model, TEXT_ROWS, folder, "model", {"attention.qkv.weight": (queries, keys, keys)})
    _write_json(folder / "config.json", _text_fields(config))


def write_index(config: SanaConfig, guidance: float, folder: Path) -> None:
    """The files that name the parts and the solver; diffusers passes over the field of the guidance."""
    parts = {
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizer"],
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    _write_json(folder / "model_index.json", {"_class_name": "SanaPipeline", "_diffusers_version": VERSION, **parts})
    scheduler = {
        "_class_name": "DPMSolverMultistepScheduler",
        "_diffusers_version": VERSION,
        "_guidance_scale": guidance,
        "algorithm_type": "dpmsolver++",
        "final_sigmas_type": "zero",
        "flow_shift": config.flow_shift,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_type": "midpoint",
        "use_flow_sigmas": True,
    }
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)


def _write(
    model: nn.Module, rows: tuple[Row, ...], folder: Path, stem: str, pieces: dict[str, tuple[int, ...]] | None = None
) -> None:
    """A module's tensors under their names elsewhere, in fp16; `pieces` are sizes where a split is uneven."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.state_dict().items():
        names = _elsewhere(name, rows)
        uneven = next((sizes for suffix, sizes in (pieces or {}).items() if name.endswith(suffix)), None)
        parts = tensor.split(uneven or len(tensor) // len(names))
        tensors.update({other: _shaped(other, part) for other, part in zip(names, parts, strict=True)})
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def _elsewhere(name: str, rows: tuple[Row, ...]) -> tuple[str, ...]:
    """The names a tensor is split into; of two rows the later one, which is about autoencoders with a strided stem."""
    return list(_fitting(name, rows))[-1]


def _fitting(name: str, rows: tuple[Row, ...]) -> Iterator[tuple[str, ...]]:
    for ours, *theirs in rows:
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(ours))
        if match := re.fullmatch(pattern, name):
            yield tuple(each.format(**match.groupdict()) for each in theirs)


def _shaped(name: str, tensor: Tensor) -> Tensor:
    half = tensor.detach().to(torch.float16)
    assert torch.isfinite(half).all(), f"{name} does not fit into fp16"
    if POINTWISE.search(name):
        half = half[:, :, None, None]
    return half.contiguous()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _transformer_fields(config: SanaConfig) -> dict[str, Any]:
    return {
        "_class_name": "SanaTransformer2DModel",
        "_diffusers_version": VERSION,
        "attention_bias": False,
        "attention_head_dim": config.head_dim,
        "caption_channels": config.text_dim,
        "cross_attention_dim": config.dim,
        "cross_attention_head_dim": config.dim // config.cross_heads,
        "dropout": 0.0,
        "in_channels": config.latent_channels,
        "mlp_ratio": config.hidden / config.dim,
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "num_attention_heads": config.heads,
        "num_cross_attention_heads": config.cross_heads,
        "num_layers": config.depth,
        "out_channels": config.latent_channels,
        "patch_size": 1,
        "sample_size": config.sample_size,
    }


def _autoencoder_fields(config: AutoencoderConfig) -> dict[str, Any]:
    stages, attending = len(config.channels), config.attention_stages
    fields: dict[str, Any] = {
        "_class_name": "AutoencoderDC",
        "_diffusers_version": VERSION,
        "attention_head_dim": config.head_dim,
        "decoder_act_fns": "silu",
        "decoder_norm_types": "rms_norm",
        "downsample_block_type": "Conv",
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "scaling_factor": config.scaling_factor,
        "upsample_block_type": "interpolate",
    }
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        fields[f"{side}_block_out_channels"] = config.channels
        fields[f"{side}_block_types"] = ["ResBlock"] * (stages - attending) + ["EfficientViTBlock"] * attending
        fields[f"{side}_layers_per_block"] = layers
        fields[f"{side}_qkv_multiscales"] = [[]] * (stages - attending) + [[config.kernel]] * attending
    return fields


def _text_fields(config: TextConfig) -> dict[str, Any]:
    return {
        "architectures": ["Gemma2Model"],
        "attn_logit_softcapping": config.attention_softcap,
        "attention_bias": False,
        "bos_token_id": 2,
        "dtype": "float16",
        "eos_token_id": 1,
        "final_logit_softcapping": 30.0,
        "head_dim": config.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.depth,
        "num_key_value_heads": config.kv_heads,
        "pad_token_id": 0,
        "query_pre_attn_scalar": int(config.query_scalar),
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "sliding_window": 4096,
        "vocab_size": config.vocabulary,
    }
