"""Scenes drawn once and kept as one array, so that training never waits for a pen."""

from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sana_reference.nano.scenes import Scene, draw
from sana_reference.nano.split import scenes

__all__ = ["drawn", "scene_list"]


def scene_list(count: int, *, seed: int, held_out: bool) -> list[Scene]:
    """The first `count` scenes of one side of the split."""
    return list(islice(scenes(np.random.default_rng(seed), held_out=held_out), count))


def drawn(scenes: list[Scene], side: int, path: Path) -> NDArray[np.uint8]:
    """Pictures (count, side, side, 3) of these scenes, read from `path` or drawn and kept there."""
    if not path.is_file():
        part = path.with_suffix(".part")
        pictures = np.lib.format.open_memmap(part, "w+", np.uint8, (len(scenes), side, side, 3))
        for index, scene in enumerate(scenes):
            pictures[index] = draw(scene, side)
        pictures.flush()
        part.rename(path)
    kept: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return kept
