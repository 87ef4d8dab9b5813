"""Paint a checkpoint's golden pictures with the reference, and fit the preview to them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sana_reference.transformer import SanaTransformer
from sana_runtime.guidance import Guidance
from sana_runtime.manifest import PreviewMap
from sana_runtime.noise import Noise
from sana_runtime.prompt import PromptRules, TextInputs, batch
from sana_runtime.signature import COMPRESSION
from sana_runtime.solver import Latent, Solver, make_solver, walk
from sana_runtime.tokenizer import Tokenizer
from torch import Tensor, nn

if TYPE_CHECKING:
    from sana_reference.checkpoint import Checkpoint

__all__ = ["GoldenPicture", "GoldenRequest", "fit_preview", "paint_golden"]

POSITIONS = 512  # of latents that the preview is fitted to: many for each channel
FIRST_SKETCH = 100  # a seed that no golden picture has
SKETCH_STEPS = 4
COLOURFUL = (  # prompts of the sketches
    "a red circle on a white background",
    "two blue hearts",
    "a white star on a dark background",
    "three yellow rings on a gray background",
    "a green square",
    "an orange triangle above a black cross",
    "four purple diamonds on a beige background",
    "a pink circle and a brown square",
)
SMALL = 30_000_000  # parameters below which a network is run in one thread
RIDGE = 1e-3  # keeps the fit sane when there are few positions to fit it to
Network = TypeVar("Network", bound=nn.Module)


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

    Each network lives in a function of its own, so that one is in memory at a time: the text encoder takes 10 GB.
    """
    wanted = [*requests, *_sketches(requests)]
    texts = _texts(checkpoint, wanted, rules)
    states = _states(checkpoint, rules, texts.inputs)
    latents = _latents(checkpoint, wanted, texts, states)
    pixels = _pixels(checkpoint, latents)
    pictures = [GoldenPicture(*made) for made in zip(requests, latents, pixels, strict=False)]
    return pictures, fit_preview(latents, pixels)


@contextmanager
def _threads_for(network: Network) -> Iterator[Network]:
    """Run a small network in one thread.

    Its operations take microseconds; two threads that wait for each other after every one of them take a minute
    for a second's work where other programs are busy.
    """
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in network.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield network
    finally:
        torch.set_num_threads(before)


def _sketches(requests: Sequence[GoldenRequest]) -> list[GoldenRequest]:
    """Requests for further pictures, in few steps, until there are enough positions for a fit.

    Their prompts are of many colours: pictures of the golden ones alone are too few to fit a map for all.
    """
    height, width = requests[0].size
    count = max(4, POSITIONS * COMPRESSION**2 // (height * width))
    return [
        replace(
            requests[0],
            prompt=COLOURFUL[i % len(COLOURFUL)],
            seed=FIRST_SKETCH + i,
            steps=min(SKETCH_STEPS, requests[0].steps),
        )
        for i in range(count)
    ]


@dataclass(frozen=True)
class Texts:
    """Every different text of some requests once, and which of them belong to each request."""

    inputs: TextInputs
    rows: Sequence[Sequence[int]]  # of a request: its negative prompt, where the model is run for one, and its prompt


def _texts(checkpoint: "Checkpoint", requests: Sequence[GoldenRequest], rules: PromptRules) -> Texts:
    tokenizer = Tokenizer(checkpoint.tokenizer)
    wanted = [[rules.plain(tokenizer, each.negative), rules.instruct(tokenizer, each.prompt)] for each in requests]
    if checkpoint.config.guidance_embedding:
        wanted = [[positive] for _, positive in wanted]
    different = list(dict.fromkeys(tokens for each in wanted for tokens in each))
    return Texts(batch(different), [[different.index(tokens) for tokens in each] for each in wanted])


def _states(checkpoint: "Checkpoint", rules: PromptRules, inputs: TextInputs) -> Tensor:
    tokens = map(torch.from_numpy, (inputs.input_ids, inputs.text_mask, inputs.instructed))
    with _threads_for(checkpoint.text_encoder()) as encoder:
        states: Tensor = encoder(*tokens, encoder.prefix(rules.prefix))
    return states


def _latents(checkpoint: "Checkpoint", requests: Sequence[GoldenRequest], texts: Texts, states: Tensor) -> Latent:
    """The final latents (B, C, h, w)."""
    with _threads_for(checkpoint.transformer()) as transformer:
        return np.concatenate(list(_runs(checkpoint, transformer, requests, texts, states)))


def _pixels(checkpoint: "Checkpoint", latents: Latent) -> NDArray[np.uint8]:
    """Pictures (B, H, W, 3), decoded one by one."""
    with _threads_for(checkpoint.autoencoder()) as autoencoder:
        return np.concatenate([autoencoder.decode_picture(torch.from_numpy(each[None])).numpy() for each in latents])


def _runs(
    checkpoint: "Checkpoint",
    transformer: SanaTransformer,
    requests: Sequence[GoldenRequest],
    texts: Texts,
    states: Tensor,
) -> Iterator[Latent]:
    """The final latents of every run of requests that differ in nothing but prompt and seed."""
    usual, text_kv, mask = checkpoint.solver, transformer.caption(states), torch.from_numpy(texts.inputs.row_mask)
    numbered = groupby(zip(requests, texts.rows, strict=True), key=lambda each: _alike(each[0]))
    for (_, steps, guidance), group in numbered:
        batched, rows = zip(*group, strict=True)
        order = [row for role in zip(*rows, strict=True) for row in role]  # all negative prompts, then all prompts
        painter = Painter(transformer, text_kv[:, :, order], mask[order], Guidance(guidance))
        yield _walk(painter, make_solver(usual.name, steps, usual.shift), batched)


def _alike(request: GoldenRequest) -> tuple[tuple[int, int], int, float]:
    return request.size, request.steps, request.guidance


@dataclass(frozen=True)
class Painter:
    """What stays the same from step to step: the model, and the keys and values of every text row."""

    transformer: SanaTransformer
    text_kv: Tensor
    mask: Tensor
    guidance: Guidance

    def velocity(self, latent: Latent, timestep: float) -> Latent:
        """The guided velocity; a model that takes guidance as an input has one row of text for each picture."""
        rows = len(self.mask)
        scale = torch.full((rows,), self.guidance.scale) if self.transformer.config.guidance_embedding else None
        latents = torch.from_numpy(np.concatenate([latent] * (rows // len(latent))))
        answer: Latent = self.transformer(
            latents, torch.full((rows,), timestep), self.text_kv, self.mask, scale
        ).numpy()
        return answer if rows == len(latent) else self.guidance.combine(*np.split(answer, 2))


def _walk(painter: Painter, solver: Solver, requests: Sequence[GoldenRequest]) -> Latent:
    height, width = requests[0].size
    shape = (painter.transformer.config.latent_channels, height // COMPRESSION, width // COMPRESSION)
    streams = [Noise(request.seed, 1, shape) for request in requests]

    def fresh() -> Latent:
        return np.concatenate([stream.draw() for stream in streams])

    latent = solver.start(fresh())
    for step in walk(solver, latent, painter.velocity, fresh=fresh):
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
