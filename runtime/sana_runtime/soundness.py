"""Notice numbers that no sound engine gives, so that a wrong picture is said to be wrong."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.errors import BackendError

__all__ = ["EmptyPictureWarning", "refuse_unsound", "suspicion"]

FLAT = 2  # levels of 256 between the darkest and the brightest value of a picture that shows nothing
SATURATED = 0.999  # share of values at either end of their range in a picture that overflowed


class EmptyPictureWarning(UserWarning):
    """A picture was painted that hardly shows anything."""


def refuse_unsound(part: str, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise BackendError when a part's answer holds NaN or infinity."""
    for name, array in outputs.items():
        if array.size and array.dtype.kind == "f" and not _finite(array):
            raise BackendError(
                f"{part} gave numbers that are not finite ({name}): this engine overflows or computes wrongly; "
                "try another --device, or build the bundle with a higher --precision"
            )


def suspicion(pixels: NDArray[np.uint8]) -> str:
    """Why a picture (H, W, 3) looks like an engine's failure; empty when it does not."""
    low, high = int(pixels.min()), int(pixels.max())
    if high - low <= FLAT:
        return f"is one flat colour, levels {low} to {high}"
    if np.count_nonzero((pixels == 0) | (pixels == 255)) >= SATURATED * pixels.size:
        return "has nothing but the darkest and the brightest level"
    return ""


def _finite(array: NDArray[Any]) -> bool:
    """Whether all numbers are finite; NaN survives both comparisons, and neither needs memory."""
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))
