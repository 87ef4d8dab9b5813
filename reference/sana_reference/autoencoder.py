"""DC-AE: pictures to latents 32 times smaller each way, and back."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sana_reference.autoencoder_blocks import (
    AttentionBlock,
    ChannelNorm,
    Downsample,
    HalvingConv,
    ResidualBlock,
    Upsample,
    average_groups,
    convolve_doubled,
    repeat_groups,
)
from sana_reference.config import AutoencoderConfig

__all__ = ["Autoencoder", "Decoder", "Encoder"]


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to the unscaled latent (B, latent channels, H/32, W/32)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        depths, last = config.encoder_layers, len(config.channels) - 1
        self.latent_channels = config.latent_channels
        width = _width(config, depths)
        self.stem = nn.Conv2d(3, width, 3, padding=1) if depths[0] else HalvingConv(3, width)
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            stage = nn.Sequential(*_blocks(config, i, depth))
            if i < last and depth:  # a stage of no layers was skipped by the strided stem
                stage.append(Downsample(config.channels[i], config.channels[i + 1]))
            self.stages.append(stage)
        self.head = nn.Conv2d(config.channels[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        latent: Tensor = self.head(x)
        return latent + average_groups(x, self.latent_channels)


class Decoder(nn.Module):
    """The unscaled latent (B, latent channels, h, w) to pixels (B, 3, 32h, 32w), about [-1, 1]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        depths, last = config.decoder_layers, len(config.channels) - 1
        self.channels = config.channels[-1]
        self.stem = nn.Conv2d(config.latent_channels, self.channels, 3, padding=1)
        self.stages = nn.ModuleList()  # numbered from full resolution like the encoder's, run in reverse
        for i, depth in enumerate(depths):
            up = [Upsample(config.channels[i + 1], config.channels[i])] if i < last and depth else []
            self.stages.append(nn.Sequential(*up, *_blocks(config, i, depth)))
        self.doubles = not depths[0]
        self.norm = ChannelNorm(_width(config, depths))
        self.head = nn.Conv2d(_width(config, depths), 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.stem(latent) + repeat_groups(latent, self.channels)
        for stage in reversed(self.stages):
            x = stage(x)
        x = F.relu(self.norm(x))
        pixels: Tensor = F.pixel_shuffle(convolve_doubled(x, self.head), 2) if self.doubles else self.head(x)
        return pixels


class Autoencoder(nn.Module):
    """Both halves, speaking the transformer's scaled latents; whatever the weights' type, float32 in and out."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.scaling_factor = config.scaling_factor
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] to the scaled latent (B, latent channels, H/32, W/32)."""
        latent: Tensor = self.encoder(pixels.to(self.encoder.stem.weight.dtype))
        return latent.float() * self.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """The scaled latent (B, latent channels, h, w) to pixels (B, 3, 32h, 32w), about [-1, 1]."""
        unscaled = latent / self.scaling_factor
        pixels: Tensor = self.decoder(unscaled.to(self.decoder.stem.weight.dtype))
        return pixels.float()

    def encode_picture(self, image: Tensor) -> Tensor:
        """A picture of bytes (B, H, W, 3) to the scaled latent."""
        return self.encode(image.permute(0, 3, 1, 2).float() / 127.5 - 1)

    def decode_picture(self, latent: Tensor) -> Tensor:
        """The scaled latent to a picture of bytes (B, 32h, 32w, 3)."""
        levels = (self.decode(latent) * 127.5 + 127.5).clamp(0, 255).round()
        return levels.to(torch.uint8).permute(0, 2, 3, 1)


def _width(config: AutoencoderConfig, depths: tuple[int, ...]) -> int:
    """Channels of the largest picture that blocks see: a first stage of no layers is skipped."""
    return config.channels[0 if depths[0] else 1]


def _blocks(config: AutoencoderConfig, stage: int, depth: int) -> Iterator[nn.Module]:
    channels = config.channels[stage]
    for _ in range(depth):
        if stage < len(config.channels) - config.attention_stages:
            yield ResidualBlock(channels)
        else:
            yield AttentionBlock(channels, config.head_dim, config.kernel)
