"""One output tile of a matrix product: what the projections and the INT8 product have in common."""

import triton
import triton.language as tl

__all__ = ["multiply_tile", "tile_position"]

GROUP = tl.constexpr(8)


@triton.jit
def tile_position(m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows and columns of this program's tile; eight tiles of rows share a column of weights while it is in cache."""
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    program = tl.program_id(0)
    group = program // (GROUP * tiles_n)
    height = tl.minimum(tiles_m - group * GROUP, GROUP)
    within = program % (GROUP * tiles_n)
    tile_m, tile_n = group * GROUP + within % height, within // height
    return tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def multiply_tile(
    a_ptr,
    b_ptr,
    rows,
    columns,
    m,
    n,
    k,
    a_row,
    b_k,
    b_n,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Σ over k of a[row, k] · b[k, column], where `b` is reached by its two strides; outside the matrices are zeros."""
    depth = tl.arange(0, BLOCK_K)
    a_rows = a_ptr + rows.to(tl.int64)[:, None] * a_row
    b_columns = b_ptr + columns.to(tl.int64)[None, :] * b_n
    acc = tl.zeros((rows.shape[0], columns.shape[0]), ACC)
    for start in range(0, k, BLOCK_K):
        at = start + depth
        a = tl.load(a_rows + at[None, :], mask=(rows < m)[:, None] & (at < k)[None, :], other=0)
        b = tl.load(b_columns + at[:, None] * b_k, mask=(at < k)[:, None] & (columns < n)[None, :], other=0)
        if tl.int32 == ACC and tl.int8 != OPERAND:
            # Floats in the place of int8: a block of K sums to less than 2²⁴, so fp32 holds it exactly.
            acc += tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision=PRECISION).to(ACC)
        else:
            acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision=PRECISION, out_dtype=ACC)
    return acc
