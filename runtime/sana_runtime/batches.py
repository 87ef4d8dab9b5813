"""Runs a part on a batch of any size: what its graph or the memory does not take at once goes in halves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.conditioning import RunPart
from sana_runtime.errors import MemoryLimitError
from sana_runtime.session import Arrays
from sana_runtime.signature import Signature, TensorSpec

__all__ = ["first_batch", "run_in_batches"]


def run_in_batches(run: RunPart, signature: Signature, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """The part's outputs for the whole batch."""
    first = signature.inputs[0]
    size = feeds[first.name].shape[_position(first)]
    if size > _limit(signature):
        return _in_halves(run, signature, feeds)
    signature.check(feeds)
    try:
        return run(signature.part, feeds)
    except MemoryLimitError:
        if size == 1:
            raise
        return _in_halves(run, signature, feeds)


def first_batch(signature: Signature, size: int) -> int:
    """How many of `size` the part is run with at first."""
    while size > _limit(signature):
        size -= size // 2
    return size


def _limit(signature: Signature) -> int:
    """How many the graph takes at once."""
    spec = signature.inputs[0]
    return dict(spec.axes())[_position(spec)].max


def _position(spec: TensorSpec) -> int:
    return next(i for i, axis in spec.axes() if axis.name == "batch")


def _in_halves(run: RunPart, signature: Signature, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    halves: list[dict[str, NDArray[Any]]] = [{}, {}]
    for spec in signature.inputs:
        for half, array in zip(halves, np.array_split(feeds[spec.name], 2, axis=_position(spec)), strict=True):
            half[spec.name] = array
    answers: Sequence[Arrays] = [run_in_batches(run, signature, half) for half in halves]
    return {
        spec.name: np.concatenate([answer[spec.name] for answer in answers], axis=_position(spec))
        for spec in signature.outputs
    }
