"""Paint a checkpoint's golden pictures with the reference, and fit the preview to them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from sana_reference.text_encoder import TextEncoder
from sana_reference.transformer import SanaTransformer
from sana_runtime.guidance import Guidance
from sana_runtime.manifest import PreviewMap
from sana_runtime.noise import Noise
from sana_runtime.prompt import PromptRules, TextInputs, batch
from sana_runtime.signature import COMPRESSION
from sana_runtime.solver import Latent, Solver, make_solver, walk
from sana_runtime.tokenizer import Tokenizer
from torch import Tensor

if TYPE_CHECKING:
    from sana_reference.checkpoint import Checkpoint

__all__ = ["GoldenPicture", "GoldenRequest", "fit_preview", "paint_golden"]

POSITIONS = 256  # of latents that the preview is fitted to: several for each channel
FIRST_SKETCH = 100  # a seed that no golden picture has
SKETCH_STEPS = 4
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


@torch.inference_mode()
def paint_golden(
    checkpoint: "Checkpoint", requests: Sequence[GoldenRequest], rules: PromptRules
) -> tuple[list[GoldenPicture], PreviewMap]:
    """Every request in float32, and the preview fitted to them and to sketches of their prompts with other seeds.

    One network is in memory at a time: the text encoder alone takes 10 GB.
    """
    tokenizer = Tokenizer(checkpoint.tokenizer)
    wanted = [*requests, *_sketches(requests)]
    tokens = [_tokens(checkpoint, tokenizer, request, rules) for request in wanted]
    states = _states(checkpoint.text_encoder(), rules, tokens)
    latents = np.concatenate(_latents(checkpoint, wanted, states, tokens))
    autoencoder = checkpoint.autoencoder()
    pixels = np.concatenate([autoencoder.decode_picture(torch.from_numpy(each[None])).numpy() for each in latents])
    pictures = [GoldenPicture(*made) for made in zip(requests, latents, pixels, strict=False)]
    return pictures, fit_preview(latents, pixels)


def _sketches(requests: Sequence[GoldenRequest]) -> list[GoldenRequest]:
    """Requests for further pictures, in few steps, until there are enough positions for a fit."""
    height, width = requests[0].size
    count = max(4, POSITIONS * COMPRESSION**2 // (height * width))
    return [
        replace(requests[i % len(requests)], seed=FIRST_SKETCH + i, steps=min(SKETCH_STEPS, requests[0].steps))
        for i in range(count)
    ]


def _tokens(checkpoint: "Checkpoint", tokenizer: Tokenizer, request: GoldenRequest, rules: PromptRules) -> TextInputs:
    """The negative prompt, where the model is run for one, and the prompt."""
    positive = rules.instruct(tokenizer, request.prompt)
    if checkpoint.config.guidance_embedding:
        return batch([positive])
    return batch([rules.plain(tokenizer, request.negative), positive])


def _states(encoder: TextEncoder, rules: PromptRules, tokens: Sequence[TextInputs]) -> list[Tensor]:
    prefix = encoder.prefix(rules.prefix)
    return [
        encoder(*map(torch.from_numpy, (each.input_ids, each.text_mask, each.instructed)), prefix) for each in tokens
    ]


def _latents(
    checkpoint: "Checkpoint", requests: Sequence[GoldenRequest], states: Sequence[Tensor], tokens: Sequence[TextInputs]
) -> list[Latent]:
    """The final latent (1, C, h, w) of every request."""
    transformer, usual = checkpoint.transformer(), checkpoint.solver
    return [
        _walk(
            Painter(
                transformer, transformer.caption(text), torch.from_numpy(each.row_mask), Guidance(request.guidance)
            ),
            make_solver(usual.name, request.steps, usual.shift),
            request,
        )
        for request, text, each in zip(requests, states, tokens, strict=True)
    ]


@dataclass(frozen=True)
class Painter:
    """What stays the same from step to step: the model, the negative prompt's keys and values, and the prompt's."""

    transformer: SanaTransformer
    text_kv: Tensor
    mask: Tensor
    guidance: Guidance

    def velocity(self, latent: Latent, timestep: float) -> Latent:
        """The guided velocity; a model that takes guidance as an input has one row of text."""
        rows = len(self.mask)
        scale = torch.full((rows,), self.guidance.scale) if self.transformer.config.guidance_embedding else None
        latents = torch.from_numpy(latent).expand(rows, -1, -1, -1)
        answer: Latent = self.transformer(
            latents, torch.full((rows,), timestep), self.text_kv, self.mask, scale
        ).numpy()
        return answer if rows == 1 else self.guidance.combine(*np.split(answer, 2))


def _walk(painter: Painter, solver: Solver, request: GoldenRequest) -> Latent:
    height, width = request.size
    channels = painter.transformer.config.latent_channels
    noise = Noise(request.seed, 1, (channels, height // COMPRESSION, width // COMPRESSION))
    latent = solver.start(noise.draw())
    for step in walk(solver, latent, painter.velocity, fresh=noise.draw):
        latent = step.latent
    return latent


def fit_preview(latents: Latent, pixels: NDArray[np.uint8]) -> PreviewMap:
    """The linear map that best gives the mean colour of 32 × 32 pixels from the channels of their latent position."""
    rows = np.moveaxis(latents, 1, -1).reshape(-1, latents.shape[1])
    colours = np.concatenate([_mean_colours(picture) for picture in pixels])
    inputs = np.column_stack([rows, np.ones(len(rows))]).astype(np.float64)
    penalty = RIDGE * len(inputs) * np.eye(inputs.shape[1])
    penalty[-1, -1] = 0  # the mean colour is free
    fitted = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ colours).round(4)
    *weight, bias = ((float(red), float(green), float(blue)) for red, green, blue in fitted)
    return PreviewMap(tuple(weight), bias)


def _mean_colours(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    height, width = pixels.shape[0] // COMPRESSION, pixels.shape[1] // COMPRESSION
    blocks = pixels.reshape(height, COMPRESSION, width, COMPRESSION, 3).astype(np.float64)
    means: NDArray[np.float64] = blocks.mean(axis=(1, 3)).reshape(-1, 3)
    return means
