"""Read which pictures engines are wanted for: all that a bundle paints, Sana's formats of one size, or a few sizes."""

import re
from collections.abc import Sequence
from dataclasses import replace

from sana_runtime.engine_cache import ALL_SIZES
from sana_runtime.engine_shapes import Span
from sana_runtime.errors import UsageError
from sana_runtime.manifest import Manifest

from sana_export.serve.bins import bins

__all__ = ["span_of"]

ONE_SIZE = re.compile(r"(\d{1,6})[xX](\d{1,6})")


def span_of(words: str, manifest: Manifest) -> Span | None:
    """The span of `all` (None), of a side such as 1024, or of sizes such as 1024x1024,1216x832, the usual one first.

    A side stands for Sana's formats with about as many pixels as that square.
    """
    if words == ALL_SIZES:
        return None
    sizes = _formats(int(words), manifest) if re.fullmatch(r"\d{1,6}", words) else _listed(words)
    for height, width in sizes:
        if not manifest.paints((height, width)):
            raise UsageError(f"--sizes {words}: the bundle does not paint {width}x{height}; choose others, or all")
    return Span.around(sizes)


def _formats(side: int, manifest: Manifest) -> Sequence[tuple[int, int]]:
    """The square, and the other formats of its size as far as the bundle paints them."""
    square = replace(manifest, defaults=replace(manifest.defaults, size=(side, side)))
    return list(dict.fromkeys([(side, side), *bins(square)]))


def _listed(words: str) -> list[tuple[int, int]]:
    found = [ONE_SIZE.fullmatch(word) for word in words.split(",")]
    if not all(found):
        raise UsageError(f"--sizes {words}: give all, a side such as 1024, or sizes such as 1024x1024,1216x832")
    return [(int(size[2]), int(size[1])) for size in found if size]
