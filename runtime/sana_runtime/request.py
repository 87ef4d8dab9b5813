"""What a caller asks for, checked before anything is loaded."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.errors import UsageError
from sana_runtime.guidance import Guidance
from sana_runtime.noise import Noise
from sana_runtime.signature import COMPRESSION, TensorSpec
from sana_runtime.solver import Solver

__all__ = ["Request", "check_size"]


@dataclass(frozen=True)
class Request:
    """One call of `Pipeline.generate`, with every default filled in."""

    prompt: str
    negative: str
    size: tuple[int, int]  # height, width
    guidance: Guidance
    seed: int
    solver: Solver
    count: int
    latents: NDArray[np.float32] | None = None  # the unit noise to start from, in place of the seed's
    image: NDArray[np.uint8] | None = None  # (H, W, 3), to be repainted
    strength: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**64:
            raise UsageError(f"seed {self.seed!r}: give a whole number from 0 to 2^64 - 1")
        if isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1:
            raise UsageError(f"count {self.count!r}: give a whole number from 1 up")
        if self.image is not None and self.image.shape != (*self.size, 3):
            raise UsageError(f"the image is {self.image.shape}, must be {(*self.size, 3)}, as the picture's size says")

    def check(self, latent: TensorSpec) -> None:
        """Raise UsageError unless the bundle's latent takes this size, naming what it does take."""
        check_size(self.size, latent)
        if self.latents is not None and self.latents.shape != self.shape(latent):
            raise UsageError(f"latents are {self.latents.shape}, must be {self.shape(latent)} for this size and count")

    def shape(self, latent: TensorSpec) -> tuple[int, ...]:
        """Shape of all latents: (count, channels, h, w)."""
        return (self.count, int(latent.shape[1]), *(side // COMPRESSION for side in self.size))  # type: ignore[arg-type]

    def noise(self, shape: tuple[int, ...]) -> "Start":
        """Where the pictures start from."""
        stream = Noise(self.seed, shape[0], shape[1:])
        return Start(stream, stream.draw() if self.latents is None else self.latents.astype(np.float32))


def check_size(size: tuple[int, int], latent: TensorSpec) -> None:
    """Raise UsageError unless the bundle's latent takes pictures of this size, naming what it does take."""
    axes = [axis for _, axis in latent.axes() if axis.name in ("height", "width")]
    for name, pixels, axis in zip(("height", "width"), size, axes, strict=True):
        allowed = axis.times(COMPRESSION, name)
        if not allowed.accepts(pixels):
            raise UsageError(f"{name} {pixels}: this bundle paints {allowed}; choose one of those or build another")


@dataclass(frozen=True)
class Start:
    """The first noise, and the stream that later noise comes from."""

    stream: Noise
    first: NDArray[Any]
