"""A latent decoded in tiles gives the picture that one decode gives, without seams."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC
from numpy.typing import NDArray
from sana_reference.autoencoder import Autoencoder
from sana_reference.config import AutoencoderConfig
from sana_reference.initialise import initialise
from sana_runtime.errors import UsageError
from sana_runtime.tiling import decode_tiled, tiles

Floats = NDArray[np.float32]


def enlarge(latent: Floats) -> Floats:
    """A decoder without context: each position becomes a square of its first three channels."""
    return latent[:, :3].repeat(32, axis=2).repeat(32, axis=3).transpose(0, 2, 3, 1)


def smooth(height: int, width: int, batch: int = 1) -> Floats:
    down, across = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(down / 5), np.cos(across / 7), (down + across) / (height + width)]
    return np.tile(np.stack(waves)[None], (batch, 1, 1, 1)).astype(np.float32)


@pytest.mark.parametrize("size", range(1, 60, 3))
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 1), (8, 4), (9, 8), (32, 4)])
def test_tiles_cover_the_picture_and_share_at_least_the_overlap(size: int, tile: int, overlap: int) -> None:
    starts, _ = tiles(size, 1, tile, overlap)
    ends = [min(start + tile, size) for start in starts]
    assert starts[0] == 0
    assert ends[-1] == size
    assert all(end - start == min(tile, size) for start, end in zip(starts, ends, strict=True))
    assert all(end - start >= overlap for start, end in zip(starts[1:], ends[:-1], strict=True))


@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 4), (9, 4), (4, 11), (13, 17), (8, 7)])
@pytest.mark.parametrize("overlap", [0, 32, 96])
def test_a_decoder_without_context_is_not_changed_by_tiles(height: int, width: int, overlap: int) -> None:
    latent = np.random.default_rng(0).standard_normal((2, 3, height, width), dtype=np.float32)
    tiled = decode_tiled(enlarge, latent, tile=128, overlap=overlap)
    np.testing.assert_allclose(tiled, enlarge(latent), atol=1e-6)


def test_a_picture_of_one_tile_is_decoded_once_and_as_it_is() -> None:
    calls = []

    def decode(latent: Floats) -> Floats:
        calls.append(latent.shape)
        return enlarge(latent)

    latent = smooth(20, 32)
    np.testing.assert_array_equal(decode_tiled(decode, latent), enlarge(latent))
    assert calls == [(1, 3, 20, 32)]


def test_bytes_stay_bytes_and_are_rounded() -> None:
    def shade(latent: Floats) -> NDArray[np.uint8]:
        shade.level += 101  # type: ignore[attr-defined]
        return np.full((1, 32 * latent.shape[2], 32 * latent.shape[3], 3), shade.level, np.uint8)

    shade.level = 0  # type: ignore[attr-defined]
    tiled = decode_tiled(shade, smooth(2, 3), tile=64, overlap=32)
    assert tiled.dtype == np.uint8
    np.testing.assert_array_equal(tiled[0, 0, 32:64, 0], np.rint(101 + 101 * np.arange(32) / 32))


def test_tiles_that_disagree_are_joined_without_a_step() -> None:
    """Tiles that are each off by their own constant: the picture may drift, but never jumps."""
    offsets = iter(np.random.default_rng(1).uniform(-1, 1, 9).tolist())
    tiled = decode_tiled(
        lambda z: np.full((1, 32 * z.shape[2], 32 * z.shape[3], 3), next(offsets)), smooth(20, 20), 256, 64
    )
    for axis in (1, 2):
        assert np.abs(np.diff(tiled, axis=axis)).max() <= 2 / 64 + 1e-6  # the largest quarrel over the narrowest fade


@pytest.mark.parametrize(("tile", "overlap"), [(100, 32), (128, 20), (128, 128), (0, 0), (128, -32)])
def test_impossible_tiles_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(UsageError, match="tile"):
        decode_tiled(enlarge, smooth(4, 4), tile, overlap)


CONFIG = AutoencoderConfig("tiles", (8, 8, 8, 8, 32, 32), (1,) * 6, (1,) * 6, attention_stages=2, scaling_factor=1.0)


@torch.no_grad()
def test_blending_agrees_with_diffusers_along_each_axis() -> None:
    """Away from corners, where diffusers fades twice, and from the last overlap, which it decodes once more."""
    ours = Autoencoder(CONFIG)
    initialise(ours, 0)

    def decode(latent: NDArray[np.float32]) -> NDArray[np.float32]:
        return ours.decode(torch.from_numpy(latent)).permute(0, 2, 3, 1).numpy()

    theirs = AutoencoderDC(encoder_layers_per_block=(0,) * 6, decoder_layers_per_block=(0,) * 6)
    theirs.decoder = ours.decoder
    theirs.enable_tiling(128, 128, 96, 96)
    for shape in ((3, 13), (13, 3)):
        latent = torch.randn(1, 32, *shape, generator=torch.Generator().manual_seed(0))
        expected = theirs.tiled_decode(latent).sample.permute(0, 2, 3, 1).numpy()
        tiled = decode_tiled(decode, latent.numpy(), tile=128, overlap=32)
        assert np.abs(tiled - decode(latent.numpy())).max() > 0.01, "tiles should differ from one decode"
        kept = tuple(slice(None, 32 * size - (32 if size > 3 else 0)) for size in shape)
        np.testing.assert_allclose(tiled[0][kept], expected[0][kept], atol=1e-5)
