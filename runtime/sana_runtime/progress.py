"""What a caller is told while a picture is painted."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Clock", "OnStep", "Preview", "StepEvent"]


@dataclass(frozen=True)
class Preview:
    """A fitted linear map from the 32 channels of a latent to colours: cheap enough for every step."""

    weight: NDArray[np.float32]  # (channels, 3)
    bias: NDArray[np.float32]  # (3)

    def __call__(self, latent: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Pictures (B, h, w, 3), one pixel for every 32 × 32 of the final ones."""
        colours = np.einsum("bchw,cd->bhwd", latent, self.weight) + self.bias
        pixels: NDArray[np.uint8] = np.clip(np.rint(colours), 0, 255).astype(np.uint8)
        return pixels


@dataclass(frozen=True)
class StepEvent:
    """Where a painting stands; `preview()` shows it."""

    stage: str  # "text", "paint" or "decode"
    index: int  # steps of the stage that are done
    total: int
    seconds_left: float | None  # of this stage; None while nothing is known
    latent: NDArray[np.float32] | None = field(default=None, repr=False)
    projection: Preview | None = field(default=None, repr=False)

    def preview(self) -> NDArray[np.uint8] | None:
        """Small pictures (B, h, w, 3) of what is there so far; None before painting begins."""
        if self.latent is None or self.projection is None:
            return None
        return self.projection(self.latent)


OnStep = Callable[[StepEvent], bool | None]


class Clock:
    """Time left in a stage of equal steps."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._start = time.monotonic()

    def left(self, done: int) -> float | None:
        """Seconds until all steps are done, judged by those that are."""
        if not done:
            return None
        return (time.monotonic() - self._start) / done * (self._total - done)
