"""The two launches of linear attention for given sizes: grids, arguments, workspace. Arithmetic only.

q, k, v and the output are (batch, tokens, heads, 32) in one piece each, as engines hand them over; or q, k and v lie
side by side in one packed tensor (batch, tokens, 3 · heads · 32).
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sana_plugins.splits import ceil_div, most_splits, split_tokens
from sana_plugins.tensorrt.shipped import HEAD_DIM, PluginError, ShippedKernel

__all__ = ["ALIGNMENT", "Launch", "Sizes", "launches", "thirds", "workspace_bytes"]

ALIGNMENT = 16  # bytes; the kernels load four or eight numbers at a time
STATE = 4 * (HEAD_DIM + 1) * HEAD_DIM  # bytes of one split's sums

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Sizes:
    """What the kernels are told of the tensors."""

    batch: int
    tokens: int
    heads: int
    packed: bool = False

    @classmethod
    def of(cls, dims: Sequence[int]) -> "Sizes":
        """The sizes that the dimensions of the first input tell: four of q, three of a packed tensor."""
        if len(dims) == 3:
            return cls(dims[0], dims[1], dims[2] // (3 * HEAD_DIM), packed=True)
        if dims[3] != HEAD_DIM:
            raise PluginError(f"heads {dims[3]} wide have no kernel, only {HEAD_DIM}; build without the plugin")
        return cls(dims[0], dims[1], dims[2])

    @property
    def pairs(self) -> int:
        """Heads of all pictures."""
        return self.batch * self.heads

    @property
    def row(self) -> int:
        """Numbers from one token of the output to the next."""
        return self.heads * HEAD_DIM

    @property
    def row_in(self) -> int:
        """The same of q, k and v."""
        return 3 * self.row if self.packed else self.row


@dataclass(frozen=True)
class Launch:
    """One kernel's grid and arguments, in order; pointers are whole numbers."""

    kernel: ShippedKernel
    grid: Grid
    pointers: tuple[int, ...]
    numbers: tuple[int, ...]

    @property
    def parameters(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Values and their C types; the last two are Triton's own pointers, which the kernels never follow."""
        kinds = [ctypes.c_void_p] * len(self.pointers) + [ctypes.c_int32] * len(self.numbers) + [ctypes.c_void_p] * 2
        return (*self.pointers, *self.numbers, 0, 0), tuple(kinds)


def workspace_bytes(batch: int, tokens: int, heads: int) -> int:
    """Room for the sums, for up to so many tokens: a shorter sequence can have more splits than the longest."""
    return batch * heads * most_splits(tokens) * STATE


def thirds(packed: int, sizes: Sizes, bytes_each: int) -> tuple[int, int, int]:
    """Where q, k and v begin in a packed tensor of numbers of so many bytes."""
    third = sizes.row * bytes_each
    return packed, packed + third, packed + 2 * third


def launches(
    kernels: tuple[ShippedKernel, ShippedKernel], sizes: Sizes, qkv: tuple[int, int, int], state: int, out: int
) -> tuple[Launch, Launch]:
    """Sum keys and values into `state`, then apply the queries into `out`."""
    q, k, v = qkv
    if any(pointer % ALIGNMENT or not pointer for pointer in (*qkv, state, out)):
        raise PluginError("the engine handed over memory that is not aligned to 16 bytes; report this with the engine")
    chunk, splits = split_tokens(sizes.tokens)
    summing, applying = kernels
    blocks = ceil_div(sizes.tokens, applying.block)
    return (
        Launch(
            summing,
            (sizes.pairs, splits, 1),
            (k, v, state),
            (sizes.tokens, chunk, sizes.heads, sizes.row_in, sizes.row_in),
        ),
        Launch(
            applying,
            (blocks, sizes.pairs, 1),
            (q, state, out),
            (sizes.tokens, splits, sizes.heads, sizes.row_in, sizes.row),
        ),
    )
