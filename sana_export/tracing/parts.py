"""From a checkpoint's networks to the modules that parts are traced from."""

from collections.abc import Sequence
from typing import Protocol

import torch
from sana_reference.autoencoder import Autoencoder
from sana_reference.config import SanaConfig
from sana_reference.text_encoder import TextEncoder
from sana_reference.transformer import SanaTransformer
from torch import nn

from sana_export.tracing.modules import CaptionPart, DecoderPart, EncoderPart, TextEncoderPart, TransformerPart

__all__ = ["NETWORKS", "Source", "load_network", "part_module"]

NETWORKS = {
    "text_encoder": ("text_encoder",),
    "transformer": ("caption", "transformer"),
    "autoencoder": ("decoder", "encoder"),
}
"""Which parts each network of a checkpoint gives; it is read once for all of them."""


class Source(Protocol):
    """What parts are made from: a loaded checkpoint, or anything else that can build the networks."""

    @property
    def config(self) -> SanaConfig:
        """Sizes of the transformer."""

    def transformer(self, dtype: torch.dtype) -> SanaTransformer:
        """The transformer, read now."""

    def autoencoder(self, dtype: torch.dtype) -> Autoencoder:
        """The autoencoder, read now."""

    def text_encoder(self, dtype: torch.dtype) -> TextEncoder:
        """The text encoder, read now."""


def load_network(source: Source, network: str, dtype: str) -> nn.Module:
    """Read one of the three networks."""
    assert network in NETWORKS, network
    loaded: nn.Module = getattr(source, network)(getattr(torch, dtype))
    return loaded.requires_grad_(False)


def part_module(part: str, network: nn.Module, prefix: Sequence[int], text_kv: str) -> nn.Module:
    """The module of one part, around the network that it needs."""
    if isinstance(network, TextEncoder):
        return TextEncoderPart(network, network.prefix(prefix))
    if isinstance(network, Autoencoder):
        return {"decoder": DecoderPart, "encoder": EncoderPart}[part](network)
    assert isinstance(network, SanaTransformer)
    return CaptionPart(network, getattr(torch, text_kv)) if part == "caption" else TransformerPart(network)
