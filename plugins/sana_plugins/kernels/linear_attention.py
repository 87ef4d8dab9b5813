"""ReLU linear attention forward, in two launches: sum keys and values, then apply the queries and divide.

Tensors are rows of tokens: token `n` of picture `b` is row `b · tokens + n`, head `h` its columns `h·D … h·D+D`; each
tensor has its own row stride, so that q, k and v can be thirds of one packed tensor. The state of a (picture, head)
pair is D+1 rows of D: relu(k)ᵀv, then relu(k)ᵀ1, the product with the column of ones that is never stored. The sum
over tokens is cut into `splits` whose parts lie side by side in the workspace and are added in a fixed order by whoever
reads them: no atomics, no zeroing, the same bits every time.
"""

import torch
import triton
import triton.language as tl

from sana_plugins.kernels.launch import Launch

__all__ = ["EPS", "apply_launch", "apply_queries", "read_state", "relu", "sum_key_values", "sum_launch"]

EPS = tl.constexpr(1e-15)


def sum_launch(width: int, dtype: torch.dtype) -> Launch:
    """As many tokens at a time as registers hold with a state of this width."""
    return Launch({"BLOCK": 128 if width <= 32 and dtype.itemsize == 2 else 64}, warps=4, stages=2)


def apply_launch(width: int) -> Launch:
    """The same for the queries."""
    return Launch({"BLOCK": 128}, warps=4 if width <= 32 else 8, stages=2)


@triton.jit
def relu(x):
    """The positive part, NaN kept."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def read_state(state_ptr, pair, splits, D: tl.constexpr, ACC: tl.constexpr):
    """The state of one (picture, head) pair, its splits added in order: relu(k)ᵀv (D, D) and relu(k)ᵀ1 (D)."""
    d = tl.arange(0, D)
    products = tl.zeros((D, D), ACC)
    total = tl.zeros((D,), ACC)
    for split in range(splits):
        part = state_ptr + (pair * splits + split).to(tl.int64) * ((D + 1) * D)
        products += tl.load(part + d[:, None] * D + d[None, :])
        total += tl.load(part + D * D + d)
    return products, total


@triton.jit
def sum_key_values(
    k_ptr,
    v_ptr,
    state_ptr,
    tokens,
    chunk,
    heads,
    k_row,
    v_row,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    OPERAND: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One split's part of relu(k)ᵀ[v | 1] for one (picture, head) pair; grid (pairs, splits).

    16-bit keys and values go to the tensor cores as they are: their products are exact in the fp32 accumulator, which
    is the conversion to fp32 at no cost.
    """
    pair, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    first = (pair // heads).to(tl.int64) * tokens
    d = tl.arange(0, D)
    columns = (pair % heads) * D + d
    end = tl.minimum((split + 1) * chunk, tokens)
    products = tl.zeros((D, D), ACC)
    total = tl.zeros((D,), ACC)
    for start in range(split * chunk, end, BLOCK):
        n = start + tl.arange(0, BLOCK)
        rows, inside = (first + n)[:, None], (n < end)[:, None]
        k = tl.load(k_ptr + rows * k_row + columns[None, :], mask=inside, other=0.0)
        v = tl.load(v_ptr + rows * v_row + columns[None, :], mask=inside, other=0.0)
        positive = relu(k.to(ACC))
        products = tl.dot(
            tl.trans(positive.to(OPERAND)), v.to(OPERAND), products, input_precision=PRECISION, out_dtype=ACC
        )
        total += tl.sum(positive, 0)
    part = state_ptr + (pair * splits + split).to(tl.int64) * ((D + 1) * D)
    tl.store(part + d[:, None] * D + d[None, :], products)
    tl.store(part + D * D + d, total)


@triton.jit
def apply_queries(
    q_ptr,
    state_ptr,
    out_ptr,
    tokens,
    splits,
    heads,
    q_row,
    out_row,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """relu(q) · products / (relu(q) · total + eps) for a block of tokens; grid (blocks of tokens, pairs)."""
    pair = tl.program_id(1)
    first = (pair // heads).to(tl.int64) * tokens
    columns = (pair % heads) * D + tl.arange(0, D)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows, inside = (first + n)[:, None], (n < tokens)[:, None]
    q = relu(tl.load(q_ptr + rows * q_row + columns[None, :], mask=inside, other=0.0).to(ACC))
    products, total = read_state(state_ptr, pair, splits, D, ACC)
    numerator = tl.dot(q, products, input_precision=PRECISION, out_dtype=ACC)
    denominator = tl.sum(q * total[None, :], 1) + EPS
    out = numerator / denominator[:, None]
    tl.store(out_ptr + rows * out_row + columns[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)
