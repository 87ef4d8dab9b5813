"""Connected parts of a mask, found run by run."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["components"]

Mask = NDArray[np.bool_]
Run = tuple[int, int, int]  # row, first column, column after the last


def components(mask: Mask, least: int) -> Iterator[Mask]:
    """The 4-connected parts of a mask with at least `least` pixels, from top to bottom."""
    rows = [_runs(row, index) for index, row in enumerate(mask)]
    parent: dict[Run, Run] = {run: run for runs in rows for run in runs}
    for above, below in pairwise(rows):
        for a in above:
            for b in below:
                if a[1] < b[2] and b[1] < a[2]:
                    parent[_root(parent, b)] = _root(parent, a)
    parts: dict[Run, list[Run]] = {}
    for run in parent:
        parts.setdefault(_root(parent, run), []).append(run)
    for runs in parts.values():
        if sum(end - start for _, start, end in runs) >= least:
            yield _painted(runs, mask.shape)


def _runs(row: Mask, index: int) -> list[Run]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
    return [(index, int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def _root(parent: dict[Run, Run], run: Run) -> Run:
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


def _painted(runs: list[Run], shape: tuple[int, ...]) -> Mask:
    part = np.zeros(shape, np.bool_)
    for row, start, end in runs:
        part[row, start:end] = True
    return part
