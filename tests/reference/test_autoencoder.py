"""The autoencoder computes what diffusers' AutoencoderDC computes."""

import random
import re
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderDC
from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers
from sana_reference.autoencoder import Autoencoder
from sana_reference.config import AUTOENCODERS, DC_AE_F32C32, AutoencoderConfig
from sana_reference.renames import Row
from sana_reference.renames.autoencoder import DIFFUSERS, EFFICIENTVIT
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


@torch.no_grad()
def test_pictures_too_small_for_diffusers_linear_branch_agree() -> None:
    ours, theirs = pair(TINY)  # a 1×1 latent attends over 1, 4 and 16 positions, where diffusers goes quadratic
    latent = torch.randn(2, 32, 1, 1)
    assert relative_error(ours.decode(latent), theirs.decode(latent / TINY.scaling_factor).sample) <= 1e-5


def test_the_released_model_has_as_many_parameters_as_diffusers() -> None:
    with torch.device("meta"):
        ours = Autoencoder(DC_AE_F32C32)
        theirs = diffusers_model(DC_AE_F32C32)
    assert [parameters(m) for m in (ours, ours.encoder, ours.decoder)] == [312_250_275, 153_027_104, 159_223_171]
    assert [parameters(m) for m in (theirs.encoder, theirs.decoder)] == [153_027_104, 159_223_171]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY, replace(TINY, encoder_layers=(0, 2, 1, 1, 2, 1))], ids=["full", "strided"])
def test_original_files_hold_the_same_tensors(config: AutoencoderConfig) -> None:
    """Our tensors under their original names, then through diffusers' converter, are diffusers' own."""
    ours, theirs = pair(config)
    original = {their_names(EFFICIENTVIT, name)[0][0]: as_convolution(name, t) for name, t in ours.state_dict().items()}
    assert len(original) == len(ours.state_dict())

    back = ours_from(original, EFFICIENTVIT, ours)
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())
    if config.encoder_layers[0]:  # diffusers' converter takes a strided stem for another family's
        converted = convert_autoencoder_dc_checkpoint_to_diffusers(dict(original))
        assert converted.keys() == theirs.state_dict().keys()
        assert all(torch.equal(converted[name], tensor) for name, tensor in theirs.state_dict().items())


def as_convolution(name: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if tensor.dim() == 2 else tensor


@pytest.mark.parametrize("first", [0, 1])
def test_every_diffusers_tensor_is_used(first: int) -> None:
    layers = (first, 1, 1, 1, 1, 1)
    config = replace(TINY, encoder_layers=layers, decoder_layers=layers)
    ours, theirs = Autoencoder(config), diffusers_model(config).state_dict()
    used = {n for name in ours.state_dict() for names in their_names(DIFFUSERS, name) for n in names}
    assert theirs.keys() <= used


@torch.no_grad()
def test_bfloat16_weights_stay_close_to_float32() -> None:
    ours, _ = pair(TINY)
    pixels, latent = torch.rand(1, 3, 96, 64) * 2 - 1, torch.randn(1, 32, 3, 2)
    exact = ours.encode(pixels), ours.decode(latent)
    ours.bfloat16()
    for rounded, expected in zip((ours.encode(pixels), ours.decode(latent)), exact, strict=True):
        assert rounded.dtype == torch.float32
        assert 1e-4 < relative_error(rounded, expected) < 0.05


@torch.no_grad()
def test_pictures_are_rounded_bytes_in_rows() -> None:
    ours, theirs = pair(TINY)
    for head in (ours.decoder.head, theirs.decoder.conv_out):
        head.weight.mul_(9)  # so that some pixels are clamped
    latent = torch.randn(2, 32, 2, 3)
    picture = ours.decode_picture(latent)
    expected = (theirs.decode(latent / TINY.scaling_factor).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255
    assert picture.shape == (2, 64, 96, 3)
    assert picture.dtype == torch.uint8
    assert (picture == 0).any()
    assert (picture == 255).any()
    assert (picture - expected).abs().max() <= 0.5 + 1e-3
    pixels = picture.permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(ours.encode_picture(picture), ours.encode(pixels), rtol=0, atol=1e-6)


class Part(nn.Module):
    """One method of the autoencoder as a module, which is what exporters take."""

    def __init__(self, model: Autoencoder, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = getattr(self.model, self.method)(x)
        return result


@torch.no_grad()
def test_a_program_exported_at_one_size_runs_at_others() -> None:
    """At any size from 2×2 positions; torch.export itself treats a dimension of one as a constant."""
    layers = (0, 1, 1, 1, 1, 1)
    ours = Autoencoder(replace(TINY, encoder_layers=layers, decoder_layers=layers, attention_stages=1)).eval()
    initialise(ours, 0)
    batch, height, width = (torch.export.Dim(name, max=64) for name in ("batch", "height", "width"))
    latent_axes, picture_axes = {0: batch, 2: height, 3: width}, {0: batch, 1: 32 * height, 2: 32 * width}
    decoder = torch.export.export(
        Part(ours, "decode_picture"), (torch.zeros(2, 32, 2, 3),), dynamic_shapes=(latent_axes,)
    )
    picture = torch.zeros(2, 64, 96, 3, dtype=torch.uint8)
    encoder = torch.export.export(Part(ours, "encode_picture"), (picture,), dynamic_shapes=(picture_axes,))
    for shape in ((1, 32, 5, 2), (3, 32, 2, 4)):
        picture = ours.decode_picture(torch.randn(shape))
        expected = ours.encode_picture(picture)
        assert relative_error(encoder.module()(picture), expected) < 1e-5
        difference = decoder.module()(expected).int() - ours.decode_picture(expected).int()
        assert difference.abs().max() <= 1
