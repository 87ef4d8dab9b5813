"""Decode a large latent in overlapping tiles, blended so that no seam shows.

Every tile has the same full size, so one engine shape serves all, and tiles are spread evenly, so the overlap is at
least what was asked for. Inside an overlap the later tile fades in linearly, first along rows, then between them:
the weights of all tiles add up to one everywhere, corners included.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.errors import UsageError

__all__ = ["COMPRESSION", "decode_tiled", "tiles"]

COMPRESSION = 32  # pixels to one latent position, each way

Array = NDArray[Any]


def tiles(height: int, width: int, tile: int, overlap: int) -> tuple[list[int], list[int]]:
    """Where tiles start, down and across; a picture smaller than one tile has one start, 0."""
    if not 0 <= overlap < tile:
        raise UsageError(f"overlap {overlap} does not fit a tile of {tile}; choose 0 to {tile - 1}")
    return _starts(height, tile, overlap), _starts(width, tile, overlap)


def decode_tiled(decode: Callable[[Array], Array], latent: Array, tile: int = 1024, overlap: int = 128) -> Array:
    """The picture (B, 32h, 32w, 3) of a latent (B, C, h, w), decoded by tiles of `tile` pixels that share `overlap`.

    `decode` turns a latent into its picture, bytes or floats, and is called once a tile; the result has its type.
    One strip of tiles and the picture itself are all that is kept.
    """
    if tile % COMPRESSION or overlap % COMPRESSION:
        raise UsageError(f"tile {tile} and overlap {overlap} must be multiples of {COMPRESSION} pixels")
    height, width = latent.shape[2:]
    side = tile // COMPRESSION
    rows, columns = tiles(height, width, side, overlap // COMPRESSION)

    def strip(y: int) -> Array:
        window = latent[:, :, y : y + side]
        pieces = ((COMPRESSION * x, decode(window[..., x : x + side])) for x in columns)
        return _join(pieces, COMPRESSION * width, axis=2)

    return _join(((COMPRESSION * y, strip(y)) for y in rows), COMPRESSION * height, axis=1)


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    if size <= tile:
        return [0]
    steps = -(-(size - tile) // (tile - overlap))
    return [(size - tile) * i // steps for i in range(steps + 1)]


def _join(pieces: Iterable[tuple[int, Array]], size: int, axis: int) -> Array:
    """Paste pieces at their starts along `axis`, each fading in over what is already there."""
    canvas: Array = np.empty(0)
    filled = 0
    for start, piece in pieces:
        if not filled:
            canvas = np.empty((*piece.shape[:axis], size, *piece.shape[axis + 1 :]), piece.dtype)
        shared = filled - start
        filled = start + piece.shape[axis]
        ahead = np.moveaxis(canvas, axis, 0)[start:filled]
        behind = np.moveaxis(piece, axis, 0)
        ahead[shared:] = behind[shared:]
        ahead[:shared] = _fade(ahead[:shared], behind[:shared])
    return canvas


def _fade(before: Array, after: Array) -> Array:
    """From all `before` to all `after` along the first axis; bytes are rounded."""
    share = np.arange(len(before), dtype=np.float32).reshape(-1, *[1] * (before.ndim - 1)) / max(len(before), 1)
    mixed: Array = before + (after.astype(np.float32) - before) * share
    return np.rint(mixed) if before.dtype == np.uint8 else mixed
