"""Train nano's autoencoder on drawn scenes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sana_reference.autoencoder import Autoencoder
from sana_reference.nano.drawn import drawn, scene_list
from sana_reference.nano.optimiser import Average, Optimiser
from sana_reference.nano.parallel import average_gradients, rank, workers
from sana_reference.nano.progress import Diary, save_grid
from sana_reference.nano.recipe import AUTOENCODER, AUTOENCODER_RUN, SCENES, SIDE, VALIDATION, Run, workplace

__all__ = ["psnr", "train_autoencoder", "training_pictures", "validation_pictures"]

NOISE = 0.1  # added to latents, as a share of their spread: the decoder learns to bear the sampler's errors


def training_pictures() -> NDArray[np.uint8]:
    """The scenes that both trainings see."""
    return drawn(scene_list(SCENES, seed=1, held_out=False), SIDE, workplace() / "training.npy")


def validation_pictures() -> NDArray[np.uint8]:
    """Scenes of combinations that no training sees."""
    return drawn(scene_list(VALIDATION, seed=2, held_out=True), SIDE, workplace() / "validation.npy")


def as_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """Bytes (B, H, W, 3) to (B, 3, H, W) in [-1, 1], channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, down and across."""
    return picture.diff(dim=2), picture.diff(dim=3)


def loss_of(model: Autoencoder, pixels: Tensor) -> Tensor:
    """Distance of pixels and of edges, and how far the latents are from zero mean and unit spread."""
    latent = model.encode(pixels)
    spread, centre = torch.std_mean(latent, dim=(0, 2, 3))
    noisy = latent + NOISE * spread.detach()[:, None, None] * torch.randn_like(latent)
    painted = model.decode(noisy)
    pixel = F.l1_loss(painted, pixels) + 16 * F.mse_loss(painted, pixels)
    edge = sum(F.l1_loss(ours, true) for ours, true in zip(edges(painted), edges(pixels), strict=True))
    return pixel + edge + 0.01 * (centre.square().mean() + (spread - 1).square().mean())


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


def train_autoencoder(run: Run = AUTOENCODER_RUN, every: int = 250) -> Autoencoder:
    """Train to the end of `run`, resuming what an earlier call left; returns the averaged model."""
    torch.manual_seed(run.seed)
    diary = Diary(workplace() / "autoencoder")
    model: Autoencoder = Autoencoder(AUTOENCODER).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average, optimiser, start = Average(model, run.ema), Optimiser([model], run), 0
    if state := diary.kept():
        model.load_state_dict(state["model"])
        average.model.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    pictures, unseen = training_pictures(), validation_pictures()
    for step in range(start, run.steps):
        chosen = np.random.default_rng((run.seed, step, rank())).integers(len(pictures), size=run.batch // workers())
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, as_pixels(pictures[np.sort(chosen)]))
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients([model])
        optimiser.step(step)
        average.follow(model, step)
        if rank():
            continue
        if (step + 1) % 25 == 0:
            diary.note(step=step + 1, loss=loss.item(), seconds=diary.seconds())
        if (step + 1) % every == 0 or step + 1 == run.steps:
            diary.note(step=step + 1, psnr=report(average.model, unseen[:128], diary, step + 1))
            diary.keep(
                {
                    "model": model.state_dict(),
                    "average": average.model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step + 1,
                }
            )
    return average.model
