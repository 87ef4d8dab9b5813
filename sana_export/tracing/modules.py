"""The parts of a bundle as modules: what is inside each graph, apart from the networks themselves."""

from dataclasses import replace
from typing import cast

import torch
from sana_plugins.custom_op import ATTRIBUTES, DOMAIN, NAME, VERSION
from sana_reference.attention import CrossAttention
from sana_reference.autoencoder import Autoencoder
from sana_reference.text_encoder import Prefix, TextEncoder
from sana_reference.transformer import Block, SanaTransformer
from torch import Tensor, nn

from sana_export.tracing.tables import RotationTable, look_up_angles
from sana_export.tracing.upsampling import upsample_in_phases

__all__ = ["CaptionPart", "DecoderPart", "EncoderPart", "TextEncoderPart", "TransformerPart"]

LONGEST_TEXT = 512  # tokens after the prefix, as the signature allows


class TextEncoderPart(nn.Module):
    """Prompts' own tokens to text states; the prefix is remembered, layer by layer, as constants."""

    prefix: Tensor
    bos: Tensor

    def __init__(self, encoder: TextEncoder, prefix: Prefix) -> None:
        super().__init__()
        self.text_encoder = encoder
        last = prefix.keys_values.shape[-2] + LONGEST_TEXT
        encoder.rotation = RotationTable(encoder, last, prefix.bos.dtype)  # type: ignore[method-assign]
        self.register_buffer("prefix", prefix.keys_values)
        self.register_buffer("bos", prefix.bos)

    def forward(self, input_ids: Tensor, text_mask: Tensor, instructed: Tensor) -> Tensor:
        """States (B, L+1, D) in fp32."""
        states: Tensor = self.text_encoder(input_ids, text_mask, instructed, Prefix(self.prefix, self.bos))
        return states.float()


class CaptionPart(nn.Module):
    """Text states to every block's keys and values."""

    def __init__(self, transformer: SanaTransformer, result: torch.dtype) -> None:
        super().__init__()
        self.caption_projection = transformer.caption_projection
        self.blocks = nn.ModuleList(cast(Block, block).cross_attention for block in transformer.blocks)
        self.result = result

    def forward(self, text: Tensor) -> Tensor:
        """Keys and values (depth, 2, B, L, C) for (B, L, D)."""
        text = self.caption_projection(text)
        pairs = [torch.stack(cast(CrossAttention, block).keys_and_values(text)) for block in self.blocks]
        return torch.stack(pairs).to(self.result)


class TransformerPart(nn.Module):
    """One step's velocity; linear attention is the custom operator."""

    def __init__(self, transformer: SanaTransformer) -> None:
        super().__init__()
        self.transformer = transformer
        self.whole_timesteps = transformer.config.integer_timesteps
        look_up_angles(transformer)
        transformer.config = replace(transformer.config, integer_timesteps=False)  # they are made whole here
        transformer.use_attention(custom_operator)

    def forward(
        self, latent: Tensor, timestep: Tensor, text_kv: Tensor, text_mask: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """The velocity (B, channels, h, w) in fp32."""
        keys_values = text_kv.to(self.transformer.patch.weight.dtype)
        time = timestep.to(torch.int64) if self.whole_timesteps else timestep
        velocity: Tensor = self.transformer(latent, time, keys_values, text_mask, guidance)
        return velocity


class DecoderPart(nn.Module):
    """Scaled latents to pictures of bytes."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.scaling_factor = autoencoder.scaling_factor
        self.decoder = upsample_in_phases(autoencoder.decoder)

    def forward(self, latent: Tensor) -> Tensor:
        """Pictures (B, 32h, 32w, 3), rounded to the nearest byte."""
        unscaled = (latent / self.scaling_factor).to(self.decoder.stem.weight.dtype)
        pixels = self.decoder(unscaled).float().permute(0, 2, 3, 1)
        shades: Tensor = (pixels * 0.5 + 0.5).clamp(0, 1) * 255
        return shades.round().to(torch.uint8)


class EncoderPart(nn.Module):
    """Pictures of bytes to scaled latents."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.scaling_factor = autoencoder.scaling_factor
        self.encoder = autoencoder.encoder

    def forward(self, image: Tensor) -> Tensor:
        """Latents (B, channels, h, w) in fp32 for (B, 32h, 32w, 3)."""
        pixels = image.float().permute(0, 3, 1, 2) / 127.5 - 1  # in this order: TensorRT does not transpose bytes
        latent: Tensor = self.encoder(pixels.to(self.encoder.stem.weight.dtype))
        return latent.float() * self.scaling_factor


def custom_operator(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention as one node; for tracing only, it computes nothing."""
    result: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}", (q, k, v), dict(ATTRIBUTES), dtype=q.dtype, shape=q.shape, version=VERSION
    )
    return result
