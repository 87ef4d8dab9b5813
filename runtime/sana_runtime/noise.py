"""Unit noise that depends on the seed alone: not on the batch, the device or the machine."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["Noise"]


class Noise:
    """One stream of normal numbers for each picture; picture i of a batch is the single picture of seed + i."""

    def __init__(self, seed: int, count: int, shape: tuple[int, ...]) -> None:
        self._streams = [np.random.Generator(np.random.Philox(seed + i)) for i in range(count)]
        self._shape = shape

    def draw(self) -> NDArray[np.float32]:
        """The next noise of every picture: (count, *shape) float32."""
        return np.stack([stream.standard_normal(self._shape, np.float32) for stream in self._streams])
