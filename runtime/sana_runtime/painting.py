"""One painting, from conditions to pixels: the solver's loop over the transformer, then the decoder."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.batches import run_in_batches
from sana_runtime.conditioning import Condition, RunPart, side_by_side
from sana_runtime.errors import MemoryLimitError
from sana_runtime.progress import Clock, OnStep, Preview, StepEvent
from sana_runtime.request import Request
from sana_runtime.session import Interrupted
from sana_runtime.signature import COMPRESSION, Signature
from sana_runtime.solver import Latent, walk
from sana_runtime.soundness import EmptyPictureWarning, suspicion
from sana_runtime.tiling import decode_tiled

__all__ = ["Painting"]

TILES = ((1024, 128), (512, 64))  # side and overlap in pixels; the smaller ones for when memory runs out


@dataclass(frozen=True)
class Painting:
    """What does not change from step to step."""

    run: RunPart
    signatures: Mapping[str, Signature]
    request: Request
    preview: Preview | None = None
    on_step: OnStep | None = None

    def report(self, event: StepEvent) -> None:
        """Tell the caller, who may stop here."""
        if self.on_step is not None and self.on_step(event):
            raise Interrupted("the painting was cancelled by its caller")

    def denoise(self, positive: Condition, negative: Condition | None) -> Latent:
        """The clean latents (count, C, h, w)."""
        request = self.request
        solver, shape = request.solver, request.shape(self.signatures["transformer"].inputs[0])
        start = request.noise(shape)
        first = solver.first_step(request.strength) if request.image is not None else 0
        latent = solver.start(start.first, self._encoded(shape), first)
        clock = Clock(len(solver.timesteps) - first)

        @cache  # megabytes, and the same at every step
        def text(guided: bool) -> tuple[NDArray[Any], NDArray[np.bool_]]:
            conditions = [negative, positive] if guided and negative is not None else [positive]
            return side_by_side([condition for condition in conditions for _ in range(len(latent))])

        def velocity(latent: Latent, timestep: float) -> Latent:
            guided = negative is not None and request.guidance.active(timestep)
            raw = self._raw_velocity(latent, timestep, *text(guided))
            return request.guidance.combine(*np.split(raw, 2)) if guided else raw

        for step in walk(solver, latent, velocity, fresh=start.stream.draw, first=first):
            left = clock.left(step.index + 1 - first)
            self.report(StepEvent("paint", step.index + 1, step.total, left, step.clean, self.preview))
            latent = step.latent
        return latent

    def decode(self, latent: Latent) -> NDArray[np.uint8]:
        """Pixels (count, H, W, 3), picture by picture; in tiles where a picture is large or memory short."""
        pictures = []
        clock = Clock(len(latent))
        for index, single in enumerate(np.split(latent, len(latent))):
            pictures.append(self._decode_one(single))
            if doubt := suspicion(pictures[-1]):
                warnings.warn(
                    f"picture {index + 1} {doubt}; try another seed, or --device", EmptyPictureWarning, stacklevel=2
                )
            self.report(StepEvent("decode", index + 1, len(latent), clock.left(index + 1), single, self.preview))
        return np.concatenate(pictures)

    def _raw_velocity(self, latent: Latent, timestep: float, text_kv: NDArray[Any], mask: NDArray[np.bool_]) -> Latent:
        """The model's answer for every condition in turn, each over the whole batch."""
        batch = len(mask)
        feeds = {
            "latent": np.concatenate([latent] * (batch // len(latent))),
            "timestep": np.full(batch, timestep, np.float32),
            "text_kv": text_kv,
            "text_mask": mask,
        }
        signature = self.signatures["transformer"]
        if any(spec.name == "guidance" for spec in signature.inputs):
            feeds["guidance"] = np.full(batch, self.request.guidance.scale, np.float32)
        return run_in_batches(self.run, signature, feeds)["velocity"]

    def _encoded(self, shape: tuple[int, ...]) -> Latent | None:
        """The latents of the image to repaint, if there is one."""
        if self.request.image is None:
            return None
        latent = run_in_batches(self.run, self.signatures["encoder"], {"image": self.request.image[None]})["latent"]
        return np.broadcast_to(latent, shape)

    def _decode_one(self, latent: Latent) -> NDArray[np.uint8]:
        """Pixels (1, H, W, 3) of one latent."""
        side, overlap = TILES[0]
        if max(latent.shape[2:]) * COMPRESSION <= side:
            try:
                return self._decode_whole(latent)
            except MemoryLimitError:
                side, overlap = TILES[1]
        try:
            return decode_tiled(self._decode_whole, latent, side, overlap)
        except MemoryLimitError:
            return decode_tiled(self._decode_whole, latent, *TILES[-1])

    def _decode_whole(self, latent: Latent) -> NDArray[np.uint8]:
        return run_in_batches(self.run, self.signatures["decoder"], {"latent": latent})["image"]
