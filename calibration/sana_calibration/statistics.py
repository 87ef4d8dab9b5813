"""What is remembered of the tokens that flow into a product: little, and no more after a thousand prompts than one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

__all__ = ["EDGES", "KEPT_TOKENS", "TokenStatistics"]

Floats = NDArray[np.float32]

KEPT_TOKENS = 64
LOWEST, HIGHEST, PER_OCTAVE = -20, 20, 2
EDGES = 2.0 ** np.arange(LOWEST, HIGHEST, 1 / PER_OCTAVE)  # lower edges of the histogram's bins


@dataclass
class TokenStatistics:
    """Of one stream of tokens: each channel's largest magnitude, a histogram of magnitudes, and some tokens."""

    largest: Floats  # (C), over every token
    counts: NDArray[np.uint32]  # (C, bins), over sampled tokens
    kept: Floats  # (at most KEPT_TOKENS, C), each sampled token being as likely to be here as any other
    seen: int = 0  # sampled tokens

    @classmethod
    def empty(cls, channels: int) -> "TokenStatistics":
        """Before the first token."""
        counts = np.zeros((channels, len(EDGES)), np.uint32)
        return cls(np.zeros(channels, np.float32), counts, np.zeros((0, channels), np.float32))

    def observe(self, largest: Floats, sample: Floats, rng: Generator) -> None:
        """Take in the largest magnitudes (C) of all tokens of a step, and a sample (T, C) of them."""
        np.maximum(self.largest, largest, out=self.largest)
        bins = np.clip(np.searchsorted(EDGES, np.abs(sample), side="right") - 1, 0, None)
        np.add.at(self.counts, (np.arange(sample.shape[1]), bins), np.uint32(1))
        self._keep(sample, rng)

    def _keep(self, sample: Floats, rng: Generator) -> None:
        """Reservoir sampling: the n-th token is kept with probability KEPT_TOKENS / n, in the place of another."""
        room = KEPT_TOKENS - len(self.kept)
        self.kept = np.concatenate([self.kept, sample[:room]])
        first = self.seen + len(sample[:room])
        self.seen += len(sample)
        places = rng.integers(np.arange(first, self.seen) + 1)
        for token, place in zip(sample[room:], places, strict=True):
            if place < KEPT_TOKENS:
                self.kept[place] = token

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, to be stored."""
        return {"largest": self.largest, "counts": self.counts, "kept": self.kept, "seen": np.array(self.seen)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "TokenStatistics":
        """What `arrays` gave."""
        return cls(arrays["largest"], arrays["counts"], arrays["kept"], int(arrays["seen"]))
