"""How many numbers each part holds, from sizes alone: no weight is read."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from sana_calibration.products import NARROWEST
from sana_reference.autoencoder import Autoencoder
from sana_reference.config import AutoencoderConfig, SanaConfig, TextConfig
from sana_reference.positions import GridPositions, Sinusoid
from sana_reference.text_encoder import TextEncoder
from sana_reference.transformer import SanaTransformer
from torch import nn

from sana_export.passes.narrow_weights import SMALLEST
from sana_export.tracing.modules import LONGEST_TEXT
from sana_export.tracing.tables import LAST_TIMESTEP, GridTable
from sana_export.tracing.upsampling import upsample_in_phases

__all__ = [
    "Described",
    "Tables",
    "count_looked_up",
    "count_narrowed",
    "count_numbers",
    "count_operations",
    "count_products",
    "count_tables",
    "count_text_steps",
]

ONCE_A_PROMPT = ("caption_projection.", ".cross_attention.kv.", ".cross_attention.norm_k.")


class Described(Protocol):
    """A checkpoint whose sizes are known."""

    @property
    def config(self) -> SanaConfig:
        """Sizes of the transformer."""

    @property
    def autoencoder_config(self) -> AutoencoderConfig:
        """Sizes of the autoencoder."""

    @property
    def text_config(self) -> TextConfig:
        """Sizes of the text encoder."""


def count_numbers(sizes: Described, prefix_tokens: int) -> dict[str, int]:
    """Weights and remembered states of every part."""
    networks = _networks(sizes)
    transformer = {name: tensor.numel() for name, tensor in networks["transformer"].named_parameters()}
    caption = sum(count for name, count in transformer.items() if any(mark in name for mark in ONCE_A_PROMPT))
    text = sizes.text_config
    memory = text.depth * 2 * text.kv_heads * prefix_tokens * text.head_dim + text.dim
    return {
        "text_encoder": _count(networks["text_encoder"]) + memory,
        "caption": caption,
        "transformer": sum(transformer.values()) - caption,
        "decoder": _count(networks["decoder_in_phases"]),
        "encoder": _count(networks["encoder"]),
    }


@dataclass(frozen=True)
class Tables:
    """Numbers in a part's tables of angles, which no network counts among its weights."""

    exact: int = 0  # in fp32 whatever the part is in
    alike: int = 0  # in the part's own type

    def bytes(self, width: int) -> int:
        """What they take where the part's numbers have `width` bytes."""
        return 4 * self.exact + width * self.alike


def count_tables(sizes: Described, prefix_tokens: int) -> dict[str, Tables]:
    """The tables of every part."""
    config, text = sizes.config, sizes.text_config
    times = (LAST_TIMESTEP + 1) * 2 * len(Sinusoid().frequencies) if config.integer_timesteps else 0
    places = 0
    if config.position_base is not None:
        grid = GridTable(GridPositions(config.dim, config.position_base, config.position_scale))
        places = grid.sines.numel() + grid.cosines.numel()
    rotations = 2 * (prefix_tokens + LONGEST_TEXT + 1) * text.head_dim
    return {
        "text_encoder": Tables(alike=rotations),
        "caption": Tables(),
        "transformer": Tables(exact=times + places),
        "decoder": Tables(),
        "encoder": Tables(),
    }


def count_narrowed(sizes: Described) -> dict[str, int]:
    """Of every part, the numbers that `narrow_weights` stores in fewer bits where it is asked to."""
    networks = _networks(sizes)
    modules = {"text_encoder": "text_encoder", "decoder": "decoder_in_phases", "encoder": "encoder"}
    return {
        part: sum(w.numel() for w in networks[name].parameters() if w.dim() >= 2 and w.numel() >= SMALLEST)
        for part, name in modules.items()
    }


def count_text_steps(sizes: Described) -> int:
    """Steps of the text encoder's weights where those are INT8: one a column of a product, one a row of its table."""
    encoder = _networks(sizes)["text_encoder"]
    return sum(w.shape[0] for w in encoder.parameters() if w.dim() >= 2 and w.numel() >= SMALLEST)


def count_products(sizes: Described) -> dict[str, tuple[int, int]]:
    """Rows and columns of the weights that are INT8 at most: those of the transformer's wide products."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in _networks(sizes)["transformer"].named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith("blocks.")
        and not any(mark in f".{name}." for mark in ONCE_A_PROMPT)
        and min(module.in_features, module.out_features) >= NARROWEST
    }


def count_looked_up(sizes: Described) -> int:
    """Numbers in the text encoder's table of tokens, of which a prompt reads a few rows."""
    return sizes.text_config.vocabulary * sizes.text_config.dim


def count_operations(sizes: Described) -> dict[str, int]:
    """Layers of every part, which the time to trace it grows with."""
    networks = _networks(sizes)
    return {
        "text_encoder": _leaves(networks["text_encoder"]),
        "caption": 3 + 2 * sizes.config.depth,
        "transformer": _leaves(networks["transformer"]),
        "decoder": _leaves(networks["decoder"]),
        "encoder": _leaves(networks["encoder"]),
    }


def _networks(sizes: Described) -> dict[str, nn.Module]:
    return _without_weights(sizes.config, sizes.autoencoder_config, sizes.text_config)


@lru_cache(maxsize=2)  # a plan counts a dozen times; making the modules of full size takes longer than all its counts
def _without_weights(config: SanaConfig, halves: AutoencoderConfig, text: TextConfig) -> dict[str, nn.Module]:
    with torch.device("meta"):
        autoencoder = Autoencoder(halves)
        return {
            "text_encoder": TextEncoder(text),
            "transformer": SanaTransformer(config),
            "encoder": autoencoder.encoder,
            "decoder": autoencoder.decoder,
            "decoder_in_phases": upsample_in_phases(Autoencoder(halves).decoder),
        }


def _count(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.parameters())


def _leaves(module: nn.Module) -> int:
    return sum(not any(True for _ in each.children()) for each in module.modules())
