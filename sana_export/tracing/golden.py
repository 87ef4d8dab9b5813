"""Paint a checkpoint's golden pictures with the reference, and fit the preview to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from sana_reference.pipeline import COMPRESSION, ReferencePipeline
from sana_runtime.guidance import Guidance
from sana_runtime.manifest import PreviewMap
from sana_runtime.noise import Noise
from sana_runtime.solver import Latent, make_solver, walk

if TYPE_CHECKING:
    from sana_reference.checkpoint import Checkpoint

__all__ = ["GoldenPicture", "GoldenRequest", "fit_preview", "paint_golden"]

RIDGE = 1e-3  # keeps the fit sane when there are few positions to fit it to


@dataclass(frozen=True)
class GoldenRequest:
    """One picture that the reference is to paint."""

    prompt: str
    seed: int
    size: tuple[int, int]  # height, width
    steps: int
    guidance: float
    negative: str = ""


@dataclass(frozen=True)
class GoldenPicture:
    """What the reference made of a request."""

    request: GoldenRequest
    latent: NDArray[np.float32]  # (C, h, w)
    pixels: NDArray[np.uint8]  # (H, W, 3)


def paint_golden(checkpoint: "Checkpoint", requests: Sequence[GoldenRequest]) -> list[GoldenPicture]:
    """Paint every request in float32."""
    pipeline = ReferencePipeline.open(checkpoint)
    return [_paint(pipeline, request) for request in requests]


@torch.inference_mode()
def _paint(pipeline: ReferencePipeline, request: GoldenRequest) -> GoldenPicture:
    height, width = request.size
    channels = pipeline.transformer.config.latent_channels
    noise = Noise(request.seed, 1, (channels, height // COMPRESSION, width // COMPRESSION))
    text = pipeline.encode([request.prompt], request.negative)
    solver = make_solver(pipeline.defaults.name, request.steps, pipeline.defaults.shift)

    def velocity(latent: Latent, timestep: float) -> Latent:
        return pipeline.velocity(torch.from_numpy(latent), timestep, text, Guidance(request.guidance))

    latent = solver.start(noise.draw())
    for step in walk(solver, latent, velocity, fresh=noise.draw):
        latent = step.latent
    pixels = pipeline.autoencoder.decode_picture(torch.from_numpy(latent)).numpy()
    return GoldenPicture(request, latent[0], pixels[0])


def fit_preview(pictures: Sequence[GoldenPicture]) -> PreviewMap:
    """The linear map that best gives the mean colour of 32 × 32 pixels from the channels of their latent position."""
    latents = np.concatenate([picture.latent.reshape(len(picture.latent), -1).T for picture in pictures])
    colours = np.concatenate([_mean_colours(picture.pixels) for picture in pictures])
    inputs = np.column_stack([latents, np.ones(len(latents))]).astype(np.float64)
    penalty = RIDGE * len(inputs) * np.eye(inputs.shape[1])
    penalty[-1, -1] = 0  # the mean colour is free
    fitted = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ colours).round(4)
    rows = [tuple(map(float, row)) for row in fitted]
    return PreviewMap(weight=tuple(rows[:-1]), bias=rows[-1])  # type: ignore[arg-type]


def _mean_colours(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    height, width = pixels.shape[0] // COMPRESSION, pixels.shape[1] // COMPRESSION
    blocks = pixels.reshape(height, COMPRESSION, width, COMPRESSION, 3).astype(np.float64)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3)).reshape(-1, 3)
    return means
