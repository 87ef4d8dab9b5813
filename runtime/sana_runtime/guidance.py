"""Classifier-free guidance: away from what the model paints without the prompt, towards what it paints with it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sana_runtime.errors import UsageError

__all__ = ["ALWAYS", "Guidance"]

ALWAYS = (0.0, 1000.0)  # all timesteps, from the picture to noise


@dataclass(frozen=True)
class Guidance:
    """How strongly, and at which timesteps, the prompt is emphasised.

    A scale of 1 or less means no guidance. Outside of `interval` (timesteps, both ends included) the model need not
    run for the negative prompt at all, which halves the cost of those steps.
    """

    scale: float
    interval: tuple[float, float] = ALWAYS

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise UsageError(f"guidance {self.scale}: give a number from 0 up; 1 or less turns guidance off")
        low, high = self.interval
        if not 0 <= low <= high <= 1000:
            raise UsageError(f"guidance interval {low}..{high}: give two timesteps from 0 to 1000, the lower one first")

    @property
    def narrowed(self) -> bool:
        """Whether some timesteps are left out."""
        return tuple(self.interval) != ALWAYS

    def active(self, timestep: float) -> bool:
        """Whether this step needs the model's answer to the negative prompt."""
        return self.scale > 1 and self.interval[0] <= timestep <= self.interval[1]

    def combine(self, unconditional: NDArray[np.floating], conditional: NDArray[np.floating]) -> NDArray[np.float32]:
        """The guided velocity, u + scale * (c - u), in float32 whatever the model computes in."""
        negative, positive = np.asarray(unconditional, np.float32), np.asarray(conditional, np.float32)
        return negative + float(self.scale) * (positive - negative)
