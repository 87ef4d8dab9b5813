"""The autoencoder computes what diffusers' AutoencoderDC computes."""

import random
import re

import pytest
import torch
from diffusers import AutoencoderDC
from sana_reference.autoencoder import Autoencoder
from sana_reference.config import AUTOENCODERS, AutoencoderConfig
from sana_reference.renames import Row
from sana_reference.renames.autoencoder import DIFFUSERS
from torch import Tensor, nn

TINY = AUTOENCODERS["tiny"]


def diffusers_model(config: AutoencoderConfig) -> AutoencoderDC:
    stages = len(config.channels)
    convolving = stages - config.attention_stages
    blocks = ("ResBlock",) * convolving + ("EfficientViTBlock",) * config.attention_stages
    scales = ((),) * convolving + ((config.kernel,),) * config.attention_stages
    return AutoencoderDC(
        latent_channels=config.latent_channels,
        attention_head_dim=config.head_dim,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=config.channels,
        decoder_block_out_channels=config.channels,
        encoder_layers_per_block=config.encoder_layers,
        decoder_layers_per_block=config.decoder_layers,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        downsample_block_type="Conv",
        upsample_block_type="interpolate",
        scaling_factor=config.scaling_factor,
    ).eval()


def initialise(model: nn.Module, seed: int) -> None:
    """Every tensor drawn anew, keeping activations near one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.3
        parameter.data.normal_(generator=generator).mul_(spread)


def ours_from(theirs: dict[str, Tensor], rows: tuple[Row, ...], model: nn.Module) -> dict[str, Tensor]:
    """Gather every tensor of `model` through the one row whose names are all there."""
    return {name: gathered(theirs, rows, name).reshape(tensor.shape) for name, tensor in model.state_dict().items()}


def gathered(theirs: dict[str, Tensor], rows: tuple[Row, ...], name: str) -> Tensor:
    matches = [[theirs[n] for n in names] for names in their_names(rows, name) if all(n in theirs for n in names)]
    assert len(matches) == 1, f"{name}: {len(matches)} rows"
    return torch.cat(matches[0])


def their_names(rows: tuple[Row, ...], name: str) -> list[tuple[str, ...]]:
    found = []
    for ours, *theirs in rows:
        pattern = re.escape(ours).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")
        if match := re.fullmatch(pattern, name):
            found.append(tuple(template.format(**match.groupdict()) for template in theirs))
    return found


def pair(config: AutoencoderConfig, seed: int = 0) -> tuple[Autoencoder, AutoencoderDC]:
    theirs, ours = diffusers_model(config), Autoencoder(config).eval()
    initialise(theirs, seed)
    ours.load_state_dict(ours_from(theirs.state_dict(), DIFFUSERS, ours))
    return ours, theirs


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    assert expected.isfinite().all()
    assert expected.std() > 1e-3
    return ((actual.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def drawn(seed: int) -> tuple[AutoencoderConfig, tuple[int, int, int]]:
    """A random configuration, and the batch, height and width of a latent for it."""
    draw = random.Random(seed)
    head_dim = draw.choice([8, 16, 32])
    attention = draw.randint(1, 4)
    narrow = [draw.choice([8, 16, 32]) for _ in range(6 - attention)]
    wide = [draw.choice([head_dim, 2 * head_dim] if head_dim >= 16 else [16, 32]) for _ in range(attention)]
    config = AutoencoderConfig(
        f"drawn-{seed}",
        channels=(*narrow, *wide[:-1], 32),
        encoder_layers=(seed % 3, *(draw.randint(1, 2) for _ in range(5))),
        decoder_layers=((seed // 3) % 3, *(draw.randint(1, 2) for _ in range(5))),
        attention_stages=attention,
        head_dim=head_dim,
        kernel=draw.choice([3, 5]),
        latent_channels=draw.choice([4, 8, 32]),
        scaling_factor=draw.uniform(0.3, 1.5),
    )
    return config, (draw.randint(1, 3), draw.randint(1, 4), draw.randint(1, 4))


@pytest.mark.parametrize("seed", range(14))
@torch.no_grad()
def test_both_ways_agree_with_diffusers(seed: int) -> None:
    config, (batch, height, width) = drawn(seed)
    ours, theirs = pair(config, seed)
    pixels = torch.rand(batch, 3, 32 * height, 32 * width) * 2 - 1
    latent = torch.randn(batch, config.latent_channels, height, width)
    factor = config.scaling_factor
    assert relative_error(ours.encode(pixels), theirs.encode(pixels).latent * factor) <= 1e-5
    assert relative_error(ours.decode(latent), theirs.decode(latent / factor).sample) <= 1e-5
