"""Sizes worth offering: the usual formats at about as many pixels as the model was trained on."""

import math
from fractions import Fraction

from sana_runtime.manifest import Manifest
from sana_runtime.signature import COMPRESSION

__all__ = ["bins"]

LANDSCAPE = (Fraction(1), Fraction(4, 3), Fraction(3, 2), Fraction(16, 9), Fraction(2))
FINENESS = 16  # Sana's own bins are multiples of a sixteenth of the square's side


def bins(manifest: Manifest) -> list[tuple[int, int]]:
    """(height, width) of each format that the bundle paints: the square first, then landscape, then portrait."""
    side = math.isqrt(math.prod(manifest.defaults.size)) // COMPRESSION * COMPRESSION
    wide = [_landscape(side, ratio) for ratio in LANDSCAPE]
    both = [manifest.defaults.size, *wide, *((width, height) for height, width in wide)]
    return [size for size in dict.fromkeys(both) if manifest.paints(size)]


def _landscape(side: int, ratio: Fraction) -> tuple[int, int]:
    """The size of about side² pixels and about this ratio of width to height, not a pixel above either multiple."""
    unit = max(COMPRESSION, side // FINENESS)
    height = max(1, round(side / math.sqrt(ratio) / unit)) * unit
    return height, max(1, side * side // height // unit) * unit
