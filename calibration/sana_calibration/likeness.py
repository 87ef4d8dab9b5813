"""How alike two pictures, or two latents, are."""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["cosine", "psnr", "relative_error", "ssim"]

WINDOW = 7  # pixels along a side, all of the same weight
STABLE = ((0.01 * 255) ** 2, (0.03 * 255) ** 2)  # keep the quotients of flat regions finite

Numbers = NDArray[np.float32] | NDArray[np.float64]
Picture = NDArray[np.uint8]


def relative_error(actual: Numbers, expected: Numbers) -> float:
    """Euclidean distance, relative to the size of what is expected; inf if something is not finite."""
    distance = float(np.linalg.norm(np.asarray(actual, np.float64) - expected))
    return distance / max(float(np.linalg.norm(expected)), 1e-30) if math.isfinite(distance) else math.inf


def cosine(first: Numbers, second: Numbers) -> float:
    """Of the angle between two latents; -1 if something is not finite."""
    a, b = (np.asarray(each, np.float64).ravel() for each in (first, second))
    value = float(a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)
    return value if math.isfinite(value) else -1.0


def psnr(first: Picture, second: Picture) -> float:
    """Peak signal-to-noise ratio in dB; inf for equal pictures."""
    error = float(np.mean((first.astype(np.float64) - second) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(first: Picture, second: Picture) -> float:
    """Structural similarity of (H, W, 3) pictures: 1 when equal, the mean over all windows and channels."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = _window_means(x), _window_means(y)
    samples = WINDOW**2 / (WINDOW**2 - 1)  # unbiased
    var_x, var_y = samples * (_window_means(x * x) - mean_x**2), samples * (_window_means(y * y) - mean_y**2)
    covariance = samples * (_window_means(x * y) - mean_x * mean_y)
    light = (2 * mean_x * mean_y + STABLE[0]) / (mean_x**2 + mean_y**2 + STABLE[0])
    structure = (2 * covariance + STABLE[1]) / (var_x + var_y + STABLE[1])
    return float((light * structure).mean())


def _window_means(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of every whole window, one axis after the other."""
    rows = sliding_window_view(x, WINDOW, axis=0).mean(-1)
    return np.asarray(sliding_window_view(rows, WINDOW, axis=1).mean(-1))
