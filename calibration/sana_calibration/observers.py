"""Each channel's magnitude by three rules: the largest ever, the usual largest, and the one that rounds best."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sana_calibration.rounding import LEVELS
from sana_calibration.statistics import EDGES, PER_OCTAVE, TokenStatistics

__all__ = ["OBSERVERS", "AbsMax", "LeastError", "Observer", "Percentile"]

Magnitudes = NDArray[np.float64]

MIDDLES = EDGES * 2 ** (0.5 / PER_OCTAVE)  # where a bin's values are taken to lie
TOPS = EDGES * 2 ** (1 / PER_OCTAVE)


class Observer(Protocol):
    """A rule for the magnitude of a channel."""

    def magnitudes(self, tokens: TokenStatistics) -> Magnitudes:
        """One magnitude (C), 0 for a channel that never fired."""


@dataclass(frozen=True)
class AbsMax:
    """The largest magnitude seen."""

    def magnitudes(self, tokens: TokenStatistics) -> Magnitudes:
        """One magnitude (C), 0 for a channel that never fired."""
        return tokens.largest.astype(np.float64)


@dataclass(frozen=True)
class Percentile:
    """The magnitude that this share of the values does not exceed: single spikes do not count."""

    share: float = 0.999

    def magnitudes(self, tokens: TokenStatistics) -> Magnitudes:
        """One magnitude (C), to half an octave."""
        below = tokens.counts.cumsum(axis=1, dtype=np.float64)
        reached = (below >= self.share * below[:, -1:]).argmax(axis=1)
        return np.asarray(np.minimum(TOPS[reached], tokens.largest), np.float64)


@dataclass(frozen=True)
class LeastError:
    """The magnitude which, given 127 levels, leaves the least squared error of rounding and of clipping together."""

    def magnitudes(self, tokens: TokenStatistics) -> Magnitudes:
        """One magnitude (C), to half an octave."""
        clipped = np.maximum(MIDDLES[:, None] - TOPS, 0) ** 2  # (bins, candidates)
        rounded = np.where(MIDDLES[:, None] <= TOPS, (TOPS / LEVELS) ** 2 / 12, 0)
        errors = tokens.counts.astype(np.float64) @ (clipped + rounded)
        return np.asarray(np.minimum(TOPS[errors.argmin(axis=1)], tokens.largest), np.float64)


OBSERVERS: tuple[Observer, ...] = (AbsMax(), Percentile(), LeastError())
