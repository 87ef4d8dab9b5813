"""Tell shapes apart by moments of their silhouettes, whatever their place and size."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["KNOWN", "features", "kind_of"]

ORDERS = ((2, 0), (0, 2), (1, 1), (3, 0), (0, 3), (2, 1), (1, 2), (4, 0), (0, 4), (2, 2))
"""Powers of x (to the right) and y (downwards) in each central moment."""

KNOWN: dict[str, tuple[float, ...]] = {  # hundredfold moments of area one; mirror images make zeros
    "circle": (8.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.28, 1.28, 0.43),
    "square": (8.36, 8.36, 0.0, 0.0, 0.0, 0.0, 0.0, 1.26, 1.26, 0.7),
    "triangle": (9.65, 9.65, 0.0, 0.0, -1.69, 1.69, 0.0, 2.24, 2.24, 0.75),
    "star": (10.3, 10.3, 0.0, 0.0, -0.05, 0.05, 0.0, 2.61, 2.61, 0.87),
    "ring": (15.3, 15.3, 0.0, 0.0, 0.0, 0.0, 0.0, 3.84, 3.84, 1.28),
    "cross": (9.68, 9.68, 0.0, 0.0, 0.0, 0.0, 0.0, 2.45, 2.45, 0.3),
    "diamond": (8.36, 8.36, 0.0, 0.0, 0.0, 0.0, 0.0, 1.68, 1.68, 0.28),
    "heart": (11.2, 6.76, 0.0, 0.0, 0.59, -0.96, 0.0, 2.53, 1.06, 0.53),
    "crescent": (7.36, 20.96, 0.0, 0.86, 0.0, 0.0, 3.21, 1.43, 7.45, 1.94),
    "bar": (22.9, 3.07, 0.0, 0.0, 0.0, 0.0, 0.0, 9.45, 0.17, 0.7),
}
SPREAD = np.array((0.5, 0.5, 0.15, 0.15, 0.15, 0.15, 0.15, 0.2, 0.2, 0.06))
RELATIVE = 0.04  # a large moment may stray by this share of itself, too
FARTHEST = 2.5  # spreads, root mean square over the moments, at which a shape has no name


def features(coverage: NDArray[np.floating]) -> NDArray[np.float64]:
    """Hundredfold central moments of a silhouette, as if its area were one."""
    area = float(coverage.sum())
    down, across = (np.arange(length) + 0.5 for length in coverage.shape)
    x = (across - coverage.sum(axis=0) @ across / area) / np.sqrt(area)
    y = (down - coverage.sum(axis=1) @ down / area) / np.sqrt(area)
    return np.array([100 * float((y**q) @ coverage @ (x**p)) / area for p, q in ORDERS])


def kind_of(coverage: NDArray[np.floating]) -> str:
    """The shape whose moments are nearest, or "unknown" when none are near; `coverage` is from 0 to 1."""
    seen = features(coverage)
    distances = {
        kind: float(np.sqrt(np.mean(((seen - moments) / (SPREAD + RELATIVE * np.abs(moments))) ** 2)))
        for kind, moments in KNOWN.items()
    }
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < FARTHEST else "unknown"
