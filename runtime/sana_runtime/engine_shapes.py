"""Which of a part's shapes an engine is built for: fewer than the graph takes, so that its memory stays small.

An engine reserves memory for the largest shape of its profile. A decoder for pictures of 2048 pixels asks for
5.65 GB, one for 1024 pixels for 1.2 GB; larger pictures are decoded in tiles of 1024 pixels anyway. Two in a batch are
the two branches of guidance: several pictures are painted one after the other.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

from sana_runtime.signature import COMPRESSION, Axis, Profile, Signature, TensorSpec

__all__ = ["TILE", "engine_signature", "profile_digest"]

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


def engine_signature(signature: Signature) -> Signature:
    """What the engine of a part takes; its `profiles()` are what the engine is built with."""
    limits = LARGEST.get(signature.part, {})
    inputs, outputs = (
        tuple(_limited(spec, limits) for spec in specs) for specs in (signature.inputs, signature.outputs)
    )
    return replace(signature, inputs=inputs, outputs=outputs)


def profile_digest(profiles: Mapping[str, Profile]) -> str:
    """One word that differs when any shape does."""
    return hashlib.sha256(json.dumps(profiles, sort_keys=True).encode()).hexdigest()[:16]


def _limited(spec: TensorSpec, limits: Mapping[str, int]) -> TensorSpec:
    return replace(spec, shape=tuple(_axis(size, limits) if isinstance(size, Axis) else size for size in spec.shape))


def _axis(axis: Axis, limits: Mapping[str, int]) -> Axis:
    largest = max(axis.min, min(axis.max, limits.get(axis.name, axis.max)))
    return replace(axis, optimum=min(axis.optimum, largest), max=largest)
