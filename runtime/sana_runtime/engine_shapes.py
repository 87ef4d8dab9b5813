"""Which of a part's shapes an engine is built for: fewer than the graph takes, so that its memory stays small.

An engine reserves memory for the largest shape of its profile. A decoder for pictures of 2048 pixels asks for
5.65 GB, one for 1024 pixels for 1.2 GB; larger pictures are decoded in tiles of 1024 pixels anyway. Two in a batch are
the two branches of guidance: several pictures are painted one after the other. Whoever paints few sizes can have
engines for those alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sana_runtime.signature import COMPRESSION, Axis, Profile, Signature, TensorSpec

__all__ = ["TILE", "Span", "engine_signature", "has_sizes", "profile_digest"]

TILE = 1024  # pixels along a side of what a decoder's engine decodes at once
LARGEST: Mapping[str, Mapping[str, int]] = {
    "text_encoder": {"batch": 2},
    "caption": {"batch": 2},
    "transformer": {"batch": 2},
    "decoder": {
        "batch": 1,
        "height": TILE // COMPRESSION,
        "width": TILE // COMPRESSION,
        "image_height": TILE,
        "image_width": TILE,
    },
    "encoder": {"batch": 1},
}


@dataclass(frozen=True)
class Span:
    """The pictures that engines are for: every height and every width from the smallest to the largest.

    Sizes are (height, width) in pixels; engines are tuned for the usual one.
    """

    smallest: tuple[int, int]
    usual: tuple[int, int]
    largest: tuple[int, int]

    @classmethod
    def around(cls, sizes: Sequence[tuple[int, int]]) -> "Span":
        """All of these and what lies between them; the first is the usual one."""
        heights, widths = zip(*sizes, strict=True)
        return cls((min(heights), min(widths)), sizes[0], (max(heights), max(widths)))

    @classmethod
    def parse(cls, text: str) -> "Span":
        """Read what `str` gives; ValueError for anything else."""
        smallest, usual, largest = (
            (int(height), int(width)) for width, height in (size.split("x") for size in text.split())
        )
        return cls(smallest, usual, largest)

    def __str__(self) -> str:
        return " ".join(f"{width}x{height}" for height, width in (self.smallest, self.usual, self.largest))

    def bounds(self, axis: str) -> tuple[int, int, int] | None:
        """Smallest, usual and largest of a signature's axis; None for one that no picture's size decides."""
        side = {"height": 0, "width": 1}.get(axis.removeprefix("image_"))
        if side is None:
            return None
        unit = 1 if axis.startswith("image_") else COMPRESSION
        return self.smallest[side] // unit, self.usual[side] // unit, self.largest[side] // unit


def engine_signature(signature: Signature, span: Span | None = None) -> Signature:
    """What the engine of a part takes, of `span`'s pictures alone; its `profiles()` are what it is built with."""
    limits = LARGEST.get(signature.part, {})
    inputs, outputs = (
        tuple(_limited(spec, limits, span) for spec in specs) for specs in (signature.inputs, signature.outputs)
    )
    return replace(signature, inputs=inputs, outputs=outputs)


def has_sizes(signature: Signature) -> bool:
    """Whether the size of a picture changes what the part is fed."""
    return any(axis.name.endswith("height") for spec in signature.inputs for _, axis in spec.axes())


def profile_digest(profiles: Mapping[str, Profile]) -> str:
    """One word that differs when any shape does."""
    return hashlib.sha256(json.dumps(profiles, sort_keys=True).encode()).hexdigest()[:16]


def _limited(spec: TensorSpec, limits: Mapping[str, int], span: Span | None) -> TensorSpec:
    shape = tuple(_axis(size, limits, span) if isinstance(size, Axis) else size for size in spec.shape)
    return replace(spec, shape=shape)


def _axis(axis: Axis, limits: Mapping[str, int], span: Span | None) -> Axis:
    wanted = (span and span.bounds(axis.name)) or (axis.min, axis.optimum, axis.max)
    most = max(axis.min, min(axis.max, limits.get(axis.name, axis.max)))
    smallest, usual, largest = (max(axis.min, min(size, most)) for size in wanted)
    if axis.name in limits:  # decoded in tiles, which are smaller still when memory is short
        smallest = axis.min
    return replace(axis, min=smallest, optimum=usual, max=largest)
