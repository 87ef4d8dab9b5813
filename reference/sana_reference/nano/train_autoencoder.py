"""Train nano's autoencoder on drawn scenes."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sana_reference.autoencoder import Autoencoder
from sana_reference.nano.drawn import drawn, scene_list
from sana_reference.nano.loop import learn
from sana_reference.nano.parallel import rank, workers
from sana_reference.nano.progress import Diary, save_grid
from sana_reference.nano.recipe import (
    AUTOENCODER,
    AUTOENCODER_RUN,
    HARDENING_RUN,
    SCENES,
    SIDE,
    VALIDATION,
    Run,
    workplace,
)

__all__ = [
    "harden_autoencoder",
    "psnr",
    "train_autoencoder",
    "training_pictures",
    "validation_pictures",
]

NOISE = 0.1  # added to latents, as a share of their spread
HARDENING_NOISE = 0.6  # most of the noise added while hardening; every picture gets its own share of it


def training_pictures() -> NDArray[np.uint8]:
    """The scenes that both trainings see."""
    return drawn(scene_list(SCENES, seed=1, held_out=False), SIDE, workplace() / "training.npy")


def validation_pictures() -> NDArray[np.uint8]:
    """Scenes of combinations that no training sees."""
    return drawn(scene_list(VALIDATION, seed=2, held_out=True), SIDE, workplace() / "validation.npy")


def as_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """Bytes (B, H, W, 3) to (B, 3, H, W) in [-1, 1], channels last in memory."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, down and across."""
    return picture.diff(dim=2), picture.diff(dim=3)


def picture_loss(painted: Tensor, pixels: Tensor) -> Tensor:
    """Distance of pixels and of edges."""
    pixel = F.l1_loss(painted, pixels) + 16 * F.mse_loss(painted, pixels)
    down, across = (F.l1_loss(ours, true) for ours, true in zip(edges(painted), edges(pixels), strict=True))
    return pixel + down + across


def loss_of(model: Autoencoder, pixels: Tensor, noise: Tensor) -> Tensor:
    """The loss of pictures painted from noisy latents, and how far these are from zero mean and unit spread."""
    latent = model.encode(pixels)
    spread, centre = torch.std_mean(latent, dim=(0, 2, 3))
    noisy = latent + noise[:, None, None, None] * spread.detach()[:, None, None] * torch.randn_like(latent)
    straying = centre.square().mean() + (spread - 1).square().mean()
    return picture_loss(model.decode(noisy), pixels) + 0.01 * straying


def chosen(run: Run, step: int, count: int) -> NDArray[np.int64]:
    """This worker's share of a batch out of `count` scenes, in the order in which they are stored."""
    rng = np.random.default_rng((run.seed, step, rank()))
    return np.sort(rng.integers(count, size=run.batch // workers()))


@torch.no_grad()
def reconstruct(model: Autoencoder, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures through the latent and back."""
    parts = [model.decode_picture(model.encode(as_pixels(pictures[i : i + 32]))) for i in range(0, len(pictures), 32)]
    return torch.cat(parts).numpy()


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in decibels."""
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-3))))


def report(model: Autoencoder, pictures: NDArray[np.uint8], diary: Diary, step: int) -> float:
    """Measure on unseen scenes and leave a grid of originals and reconstructions."""
    painted = reconstruct(model, pictures)
    rows = [half[i : i + 12] for i in (0, 12, 24) for half in (pictures, painted)]
    save_grid(np.concatenate(rows), 12, diary.folder / f"grid-{step:05d}.png")
    return psnr(pictures, painted)


def train_autoencoder(run: Run = AUTOENCODER_RUN, every: int = 250) -> None:
    """Train both halves from scratch to the end of `run`."""
    torch.manual_seed(run.seed)
    _train(
        Autoencoder(AUTOENCODER),
        run,
        Diary(workplace() / "autoencoder"),
        lambda count: torch.full((count,), NOISE),
        every,
    )


def harden_autoencoder(model: Autoencoder, run: Run = HARDENING_RUN, every: int = 250) -> None:
    """Train both halves on, with much noise: the latents learn to say what matters so that errors do not hurt it."""
    _train(model, run, Diary(workplace() / "hardened"), lambda count: HARDENING_NOISE * torch.rand(count), every)


def _train(model: Autoencoder, run: Run, diary: Diary, noise: Callable[[int], Tensor], every: int) -> None:
    model = model.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures, unseen = training_pictures(), validation_pictures()

    def loss(step: int) -> Tensor:
        pixels = as_pixels(pictures[chosen(run, step, len(pictures))])
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(model, pixels, noise(len(pixels)))

    def measure(averaged: Autoencoder, step: int) -> dict[str, float]:
        return {"psnr": report(averaged, unseen[:128], diary, step)}

    learn(model, run, diary, loss, measure, every)
