"""ReLU linear attention backward, in two launches: the queries' gradients and the state's, then the keys' and values'.

With q and k after their ReLU, S and z the two halves of the state, o = qS / (q·z + eps) and g the gradient of o:

    r = 1 / (q·z + eps)              delta = g · o
    dq = (g r) Sᵀ - (delta r) zᵀ     dS = Σ qᵀ (g r)     dz = -Σ q (delta r)
    dk = v dSᵀ + dz                  dv = k dS

Every gradient passes its ReLU where the input was > 0, as torch's does. Nothing but S and z is kept from the forward.
"""

import triton
import triton.language as tl

from sana_plugins.kernels.launch import Launch
from sana_plugins.kernels.linear_attention import EPS, read_state, relu

__all__ = ["key_value_gradient_launch", "key_value_gradients", "query_gradient_launch", "query_gradients"]


def query_gradient_launch(width: int) -> Launch:
    """Few tokens at a time: two states, the one read and the one summed, fill the registers."""
    return Launch({"BLOCK": 32}, warps=4 if width <= 32 else 8, stages=1)


def key_value_gradient_launch(width: int) -> Launch:
    """As many tokens at a time as registers hold with a state of this width."""
    return Launch({"BLOCK": 64}, warps=4, stages=1) if width <= 32 else Launch({"BLOCK": 32}, warps=8, stages=1)


@triton.jit
def query_gradients(
    q_ptr,
    grad_ptr,
    delta_ptr,
    state_ptr,
    grad_q_ptr,
    grad_state_ptr,
    tokens,
    chunk,
    heads,
    q_row,
    grad_row,
    grad_q_row,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    DELTA_GIVEN: tl.constexpr,
):
    """Gradients of the queries, and one split's part of the state's; grid (pairs, splits).

    `delta` (rows, heads) comes from the output projection's gradient when DELTA_GIVEN, else it is worked out here.
    """
    pair, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    first, head = (pair // heads).to(tl.int64) * tokens, pair % heads
    d = tl.arange(0, D)
    columns = head * D + d
    end = tl.minimum((split + 1) * chunk, tokens)
    products, total = read_state(state_ptr, pair, splits, D, ACC)
    grad_products = tl.zeros((D, D), ACC)
    grad_total = tl.zeros((D,), ACC)
    for start in range(split * chunk, end, BLOCK):
        n = start + tl.arange(0, BLOCK)
        rows, inside = (first + n)[:, None], (n < end)[:, None]
        q = relu(tl.load(q_ptr + rows * q_row + columns[None, :], mask=inside, other=0.0).to(ACC))
        grad = tl.load(grad_ptr + rows * grad_row + columns[None, :], mask=inside, other=0.0).to(ACC)
        denominator = tl.sum(q * total[None, :], 1)
        # A row without a positive query gets no gradient: 1/eps would only wait for its mask, or overflow first.
        reciprocal = tl.where(denominator > 0, 1.0 / (denominator + EPS), 0.0)
        scaled = grad * reciprocal[:, None]
        if DELTA_GIVEN:
            delta = tl.load(delta_ptr + (first + n) * heads + head, mask=n < end, other=0.0)
        else:
            delta = tl.sum(tl.dot(q, products, input_precision=PRECISION, out_dtype=ACC) * scaled, 1)
        pull = -delta * reciprocal
        grad_q = tl.dot(scaled, tl.trans(products), input_precision=PRECISION, out_dtype=ACC)
        grad_q = tl.where(q > 0, grad_q + pull[:, None] * total[None, :], 0.0)
        target = grad_q_ptr + rows * grad_q_row + columns[None, :]
        tl.store(target, grad_q.to(grad_q_ptr.dtype.element_ty), mask=inside)
        grad_products = tl.dot(tl.trans(q), scaled, grad_products, input_precision=PRECISION, out_dtype=ACC)
        grad_total += tl.sum(q * pull[:, None], 0)
    part = grad_state_ptr + (pair * splits + split).to(tl.int64) * ((D + 1) * D)
    tl.store(part + d[:, None] * D + d[None, :], grad_products)
    tl.store(part + D * D + d, grad_total)


@triton.jit
def key_value_gradients(
    k_ptr,
    v_ptr,
    grad_state_ptr,
    grad_k_ptr,
    grad_v_ptr,
    tokens,
    splits,
    heads,
    k_row,
    v_row,
    grad_row,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of a block of keys and values from the state's; grid (blocks of tokens, pairs)."""
    pair = tl.program_id(1)
    first = (pair // heads).to(tl.int64) * tokens
    columns = (pair % heads) * D + tl.arange(0, D)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows, inside = (first + n)[:, None], (n < tokens)[:, None]
    grad_products, grad_total = read_state(grad_state_ptr, pair, splits, D, ACC)
    k = relu(tl.load(k_ptr + rows * k_row + columns[None, :], mask=inside, other=0.0).to(ACC))
    v = tl.load(v_ptr + rows * v_row + columns[None, :], mask=inside, other=0.0).to(ACC)
    grad_k = tl.dot(v, tl.trans(grad_products), input_precision=PRECISION, out_dtype=ACC) + grad_total[None, :]
    grad_k = tl.where(k > 0, grad_k, 0.0)
    grad_v = tl.dot(k, grad_products, input_precision=PRECISION, out_dtype=ACC)
    offsets = rows * grad_row + columns[None, :]
    tl.store(grad_k_ptr + offsets, grad_k.to(grad_k_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_v_ptr + offsets, grad_v.to(grad_v_ptr.dtype.element_ty), mask=inside)
