"""Sizes of a transformer or an autoencoder that comes without a JSON file, read off its tensors."""

import re
from collections.abc import Mapping
from math import isqrt

from sana_runtime.errors import CheckpointError

from sana_reference.checkpoint.sources import Shape
from sana_reference.config import PRESETS, SanaConfig

__all__ = ["recognise_transformer"]

BLOCK = re.compile(r"blocks\.(\d{1,6})\.")
DEFAULT_SIDE = 32  # of a checkpoint that does not keep the positions it was trained with


def recognise_transformer(shapes: Mapping[str, Shape], where: str) -> SanaConfig:
    """The preset whose sizes an NVlabs state dict has."""
    try:
        found = _sizes(shapes)
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{where} lacks {error}, so it is no Sana transformer as NVlabs keeps it; give its .pth, or name preset="
        ) from error
    fitting = [preset for preset in PRESETS.values() if _preset_sizes(preset) == found]
    side = _trained_side(shapes)
    for preset in fitting:
        if preset.sample_size == side or len(fitting) == 1:
            return preset
    numbers = ", ".join(f"{name} {value}" for name, value in found.items())
    raise CheckpointError(f"{where}: no preset has {numbers}, side {side}; pass the right SanaConfig as preset=")


def _sizes(shapes: Mapping[str, Shape]) -> dict[str, int | bool]:
    """What tells one preset from another, of an NVlabs state dict."""
    patch = shapes["x_embedder.proj.weight"]
    depth = 1 + max((int(match[1]) for name in shapes if (match := BLOCK.match(name))), default=-1)
    return {
        "depth": depth,
        "dim": patch[0],
        "hidden": shapes["blocks.0.mlp.point_conv.conv.weight"][1],
        "latent channels": patch[1],
        "text width": shapes["y_embedder.y_proj.fc1.weight"][1],
        "qk-norm": "blocks.0.attn.q_norm.weight" in shapes,
        "guidance embedding": "cfg_embedder.mlp.0.weight" in shapes,
    }


def _preset_sizes(config: SanaConfig) -> dict[str, int | bool]:
    """The same of a preset."""
    return {
        "depth": config.depth,
        "dim": config.dim,
        "hidden": config.hidden,
        "latent channels": config.latent_channels,
        "text width": config.text_dim,
        "qk-norm": config.qk_norm,
        "guidance embedding": config.guidance_embedding,
    }


def _trained_side(shapes: Mapping[str, Shape]) -> int:
    """Side of the latent that the model was trained at: NVlabs keeps one position for each of its tokens."""
    positions = shapes.get("pos_embed")
    return isqrt(positions[1]) if positions and len(positions) == 3 else DEFAULT_SIDE
