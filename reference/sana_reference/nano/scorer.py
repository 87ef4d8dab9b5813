"""Read a picture: which shapes it shows, in which colours, and where. Pixels in, nothing else.

A plane fitted to the border is the background; what differs from it falls into connected parts; a part's colour is
the middle of its pixels; its kind is told by moments of its silhouette.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sana_reference.nano.components import components
from sana_reference.nano.silhouettes import kind_of
from sana_reference.nano.vocabulary import COLOURS

__all__ = ["Found", "read_picture"]

Pixels = NDArray[np.uint8]
Picture = NDArray[np.float32]
Mask = NDArray[np.bool_]

UNLIKE = 46.0  # distance in RGB from which a pixel is not background
LEAST = 90  # pixels of the smallest shape, at a side of 128
FARTHEST = 75.0  # distance in RGB at which a colour has no name


@dataclass(frozen=True)
class Found:
    """A shape in a picture; `kind` and `colour` are "unknown" when nothing fits. Positions are from 0 to 1."""

    kind: str
    colour: str
    x: float
    y: float


def read_picture(pixels: Pixels) -> list[Found]:
    """Every shape of a square uint8 picture (side, side, 3)."""
    picture = pixels.astype(np.float32)
    rest = picture - _background(picture)
    mask = np.linalg.norm(rest, axis=-1) > UNLIKE
    least = int(LEAST * (len(picture) / 128) ** 2)
    return [_read(part, picture, rest) for part in components(mask, least)]


def _read(part: Mask, picture: Picture, rest: Picture) -> Found:
    """Name one part; `rest` is the picture less its background."""
    contrast = np.linalg.norm(rest, axis=-1)
    core = part & (contrast >= 0.8 * np.percentile(contrast[part], 75))
    difference = np.median(rest[core], axis=0)
    coverage = np.clip(rest @ difference / (difference @ difference), 0, 1) * _grown(part)
    down, across = np.nonzero(part)
    side = len(picture)
    return Found(
        kind_of(coverage),
        _colour_of(np.median(picture[core], axis=0)),
        float(across.min() + across.max() + 1) / (2 * side),
        float(down.min() + down.max() + 1) / (2 * side),
    )


def _colour_of(rgb: NDArray[np.float32]) -> str:
    """The nearest colour that has a name."""
    distances = {name: float(np.linalg.norm(rgb - np.array(value))) for name, value in COLOURS.items()}
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < FARTHEST else "unknown"


def _grown(part: Mask) -> Mask:
    """A mask two pixels larger on every side."""
    for _ in range(2):
        wide = np.pad(part, 1)
        part = wide[1:-1, 1:-1] | wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return part


def _background(picture: Picture) -> Picture:
    """A plane through the border's colours, fitted again without what lies far from it."""
    side = len(picture)
    width = max(side // 40, 1)
    line = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.meshgrid(line, line)
    plane = np.stack([np.ones_like(x), x, y], axis=-1)
    border = np.ones((side, side), np.bool_)
    border[width:-width, width:-width] = False
    points, colours = plane[border], picture[border]
    distance = np.linalg.norm(colours - np.median(colours, axis=0), axis=-1)
    near = distance < UNLIKE + 20
    for _ in range(2):
        fit = np.linalg.lstsq(points[near], colours[near], rcond=None)[0]
        near = np.linalg.norm(colours - points @ fit, axis=-1) < UNLIKE
    fitted: Picture = (plane @ fit).clip(0, 255).astype(np.float32)
    return fitted
