"""Symmetric INT8: numbers as whole multiples, from -127 to 127, of a step size."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LEVELS",
    "SMALLEST",
    "column_codes",
    "column_steps",
    "rounded_columns",
    "rounded_tokens",
    "row_codes",
    "row_steps",
]

LEVELS = 127  # not 128: the largest magnitude itself must be a code, and so must its negative
SMALLEST = 1e-20  # stands in for the magnitude of what is all zeros, so that nothing is divided by zero

Floats = NDArray[np.floating[Any]]


def column_steps(weight: Floats) -> NDArray[np.float32]:
    """One step size for each column (output channel) of a weight."""
    magnitudes = np.maximum(weight.max(axis=0), -weight.min(axis=0)).astype(np.float32)  # no |weight| is made
    return np.asarray(np.maximum(magnitudes, np.float32(SMALLEST)) / np.float32(LEVELS), np.float32)


def column_codes(weight: Floats) -> NDArray[np.int8]:
    """The weight in whole steps, half a step rounded to even, as QuantizeLinear does."""
    return _codes(weight, np.broadcast_to(column_steps(weight), weight.shape))


def row_steps(table: Floats) -> NDArray[np.float32]:
    """One step size for each row of a table."""
    return column_steps(table.T)


def row_codes(table: Floats) -> NDArray[np.int8]:
    """The table in whole steps of its rows."""
    return _codes(table, np.broadcast_to(row_steps(table)[:, None], table.shape))


def _codes(weight: Floats, steps: NDArray[np.float32]) -> NDArray[np.int8]:
    codes = np.empty(weight.shape, np.int8)
    for first in range(0, len(weight), 256):  # some rows at a time: no float copy of the whole weight
        rows = slice(first, first + 256)
        codes[rows] = np.rint(weight[rows].astype(np.float32) / steps[rows])
    return codes


def rounded_columns(weight: Floats) -> NDArray[np.float32]:
    """The weight as INT8 represents it."""
    return np.asarray(column_codes(weight) * column_steps(weight), np.float32)


def rounded_tokens(tokens: Floats) -> NDArray[np.float32]:
    """Tokens (…, C) as INT8 represents them, each with the step size that its largest channel asks for."""
    magnitudes = np.abs(tokens).max(axis=-1, keepdims=True)
    steps = np.maximum(magnitudes, np.float32(SMALLEST)) / np.float32(LEVELS)
    return np.asarray(np.rint(tokens / steps) * steps, np.float32)
