"""The projections on either side of linear attention, each with its neighbour's elementwise work at its end."""

import torch
import triton
import triton.language as tl

from sana_plugins.kernels.launch import Launch
from sana_plugins.kernels.tile import multiply_tile, tile_position

__all__ = ["project_relu", "projection_gradient", "projection_launch"]

HALF_LAUNCH = Launch({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 32}, warps=8, stages=3)
FULL_LAUNCH = Launch({"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, warps=4, stages=2)


def projection_launch(dtype: torch.dtype) -> Launch:
    """Tiles for a 16-bit product, or smaller ones where an element takes more room."""
    return HALF_LAUNCH if dtype.itemsize == 2 else FULL_LAUNCH


@triton.jit
def project_relu(
    x_ptr,
    weight_ptr,
    out_ptr,
    m,
    n,
    k,
    x_row,
    weight_row,
    out_row,
    positive,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x · weightᵀ with a ReLU on the first `positive` columns: q and k of a q|k|v projection; grid (tiles)."""
    rows, columns = tile_position(m, n, BLOCK_M, BLOCK_N)
    acc = multiply_tile(
        x_ptr, weight_ptr, rows, columns, m, n, k, x_row, 1, weight_row, BLOCK_K, OPERAND, ACC, PRECISION
    )
    acc = tl.where((columns < positive)[None, :] & (acc < 0), 0.0, acc)
    target = out_ptr + rows.to(tl.int64)[:, None] * out_row + columns[None, :]
    tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def projection_gradient(
    grad_ptr,
    weight_ptr,
    attended_ptr,
    out_ptr,
    delta_ptr,
    m,
    n,
    k,
    grad_row,
    weight_row,
    attended_row,
    out_row,
    heads,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The attention's gradient g = grad · weight, and the division's: delta = g · attended, head by head; grid (tiles).

    The division's other factor, one over the denominator, is applied where g is next read. It would take g out of
    fp16's range in memory.
    """
    rows, columns = tile_position(m, n, BLOCK_M, BLOCK_N)
    acc = multiply_tile(
        grad_ptr, weight_ptr, rows, columns, m, n, k, grad_row, weight_row, 1, BLOCK_K, OPERAND, ACC, PRECISION
    )
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    far = rows.to(tl.int64)
    attended = tl.load(attended_ptr + far[:, None] * attended_row + columns[None, :], mask=inside, other=0.0)
    delta = tl.sum(tl.reshape(acc * attended.to(ACC), (BLOCK_M, BLOCK_N // D, D)), 2)
    head = tl.min(columns, 0) // D + tl.arange(0, BLOCK_N // D)
    tl.store(out_ptr + far[:, None] * out_row + columns[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(
        delta_ptr + far[:, None] * heads + head[None, :], delta, mask=(rows < m)[:, None] & (head < heads)[None, :]
    )
