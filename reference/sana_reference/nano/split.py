"""Which combinations of colour, shape and relation the model never sees together in training."""

from collections.abc import Iterator
from hashlib import sha256

from numpy.random import Generator

from sana_reference.nano.scenes import Scene, random_scene

__all__ = ["is_held_out", "scenes"]

HELD_OUT_SHARE = 0.08


def _held_out(role: tuple[str, str, str]) -> bool:
    digest = sha256("|".join(role).encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def is_held_out(scene: Scene) -> bool:
    """Whether a shape of this scene has a colour, kind and relation that training never shows together."""
    return any(map(_held_out, scene.roles))


def scenes(rng: Generator, *, held_out: bool) -> Iterator[Scene]:
    """Endless random scenes of one side of the split."""
    while True:
        scene = random_scene(rng)
        if is_held_out(scene) == held_out:
            yield scene
