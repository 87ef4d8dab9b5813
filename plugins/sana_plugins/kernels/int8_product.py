"""The W8A8 matrix product: int8 × int8 summed in int32, scales applied in fp32 before anything is rounded."""

from typing import Any

import triton
import triton.language as tl

from sana_plugins.kernels.launch import Launch
from sana_plugins.kernels.tile import multiply_tile, tile_position

__all__ = ["INT8_LAUNCH", "int8_operand", "int8_product"]

TURING = 75
INT8_LAUNCH = Launch({"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, warps=8, stages=3)


def int8_operand(capability: int) -> Any:
    """What int8 values are multiplied as: themselves, or fp16 on Turing, for which Triton has no int8 product."""
    return tl.float16 if capability <= TURING else tl.int8


@triton.jit
def int8_product(
    x_ptr,
    weight_ptr,
    x_scale_ptr,
    weight_scale_ptr,
    bias_ptr,
    gate_ptr,
    out_ptr,
    m,
    n,
    k,
    weight_k,
    weight_n,
    tokens,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    BIAS: tl.constexpr,
    GATE: tl.constexpr,
    SILU: tl.constexpr,
):
    """x · weight · (token's scale × channel's scale), then bias, SiLU and gate where asked for; grid (tiles).

    `gate` is (pictures, n), one row for each `tokens` rows of x. The int32 sum is scaled in fp32 because it
    passes 65504 easily: fp16 would make it infinite before the scale could bring it back.
    """
    rows, columns = tile_position(m, n, BLOCK_M, BLOCK_N)
    total = multiply_tile(
        x_ptr, weight_ptr, rows, columns, m, n, k, k, weight_k, weight_n, BLOCK_K, OPERAND, tl.int32, "ieee"
    )
    row_scale = tl.load(x_scale_ptr + rows, mask=rows < m, other=0.0)
    column_scale = tl.load(weight_scale_ptr + columns, mask=columns < n, other=0.0)
    out = total.to(tl.float32) * row_scale[:, None] * column_scale[None, :]
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    if BIAS:
        out += tl.load(bias_ptr + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
    if SILU:
        out = out / (1.0 + tl.exp(-out))
    if GATE:
        out *= tl.load(gate_ptr + (rows // tokens)[:, None] * n + columns[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
    target = out_ptr + rows.to(tl.int64)[:, None] * n + columns[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=inside)
