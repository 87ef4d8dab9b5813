"""ReLU linear attention as PyTorch operators: `torch.ops.sana.relu_linear_attention` and its packed form.

Importing this module registers the operators, which have gradients, shapes for tracing, and kernels in Triton:
relu(q) · (relu(k)ᵀ v) / (relu(q) · Σ relu(k) + 1e-15), summed and divided in fp32, whatever the type of q, k and v.
"""

from typing import Any

import torch
from torch import Tensor

from sana_plugins.kernels.launch import ELEMENT_TYPES, accumulation, arithmetic, start
from sana_plugins.kernels.linear_attention import (
    apply_launch,
    apply_queries,
    sum_key_values,
    sum_launch,
)
from sana_plugins.kernels.linear_attention_backward import (
    key_value_gradient_launch,
    key_value_gradients,
    query_gradient_launch,
    query_gradients,
)
from sana_plugins.splits import ceil_div, split_tokens

__all__ = [
    "HEAD_DIMS",
    "attend",
    "attend_backward",
    "packed_relu_linear_attention",
    "relu_linear_attention",
    "split_packed",
]

HEAD_DIMS = (16, 32, 64)


def relu_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention of (B, N, heads, head_dim) tensors, with gradients; thirds of a packed tensor are not copied."""
    out: Tensor = torch.ops.sana.relu_linear_attention(q, k, v)
    return out


def packed_relu_linear_attention(qkv: Tensor, heads: int) -> Tensor:
    """Linear attention of one (B, N, 3·C) tensor, q|k|v along its channels, to (B, N, C), with gradients."""
    return relu_linear_attention(*split_packed(qkv, heads)).flatten(2)


def split_packed(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (B, N, heads, D) as views of one (B, N, 3·C) tensor."""
    q, k, v = (part.view(*part.shape[:2], heads, part.shape[2] // heads) for part in qkv.chunk(3, dim=-1))
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The two forward launches: the output and the state (B · heads, splits, D + 1, D), which the backward needs."""
    _check(q, k, v)
    q, k, v = (_as_rows(x) for x in (q, k, v))
    batch, tokens, heads, width = q.shape
    chunk, splits = split_tokens(tokens)
    out, state = torch.empty_like(q, memory_format=torch.contiguous_format), _new_state(q)
    sizes = (tokens, chunk, heads, k.stride(1), v.stride(1))
    launch = sum_launch(width, q.dtype)
    start(sum_key_values, (batch * heads, splits), (k, v, state, *sizes), launch, D=width, **arithmetic(q.dtype))
    sizes = (tokens, splits, heads, q.stride(1), out.stride(1))
    launch = apply_launch(width)
    grid = (ceil_div(tokens, launch.sizes["BLOCK"]), batch * heads)
    start(apply_queries, grid, (q, state, out, *sizes), launch, D=width, **accumulation(q.dtype))
    return out, state


def attend_backward(
    grad: Tensor, qkv: tuple[Tensor, Tensor, Tensor], state: Tensor, delta: Tensor | None = None
) -> Tensor:
    """The two backward launches: gradients of q, k and v as one packed (B, N, 3, heads, D) tensor.

    `delta` (B, N, heads) is grad · output summed over each head, if a launch before has found it already.
    """
    q, k, v = (_as_rows(x) for x in qkv)
    grad = grad.contiguous()
    batch, tokens, heads, width = q.shape
    chunk, splits = split_tokens(tokens)
    packed, grad_state = q.new_empty(batch, tokens, 3, heads, width), torch.empty_like(state)
    grad_q, grad_k, grad_v = packed.unbind(2)
    numbers = accumulation(q.dtype) | {"D": width}
    sizes = (tokens, chunk, heads, q.stride(1), grad.stride(1), packed.stride(1))
    tensors = (q, grad, state if delta is None else delta, state, grad_q, grad_state)
    given = {"DELTA_GIVEN": delta is not None}
    launch = query_gradient_launch(width)
    start(query_gradients, (batch * heads, splits), (*tensors, *sizes), launch, **numbers, **given)
    sizes = (tokens, splits, heads, k.stride(1), v.stride(1), packed.stride(1))
    launch = key_value_gradient_launch(width)
    grid = (ceil_div(tokens, launch.sizes["BLOCK"]), batch * heads)
    start(key_value_gradients, grid, (k, v, grad_state, grad_k, grad_v, *sizes), launch, **numbers)
    return packed


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Refuse what the kernels do not compute."""
    if q.dim() != 4 or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v have shapes {shapes}; give three of one shape (B, N, heads, head_dim)")
    if q.shape[3] not in HEAD_DIMS:
        raise ValueError(f"head_dim {q.shape[3]} has no kernel; use one of {HEAD_DIMS}, or the torch attention")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in ELEMENT_TYPES:
        raise ValueError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; give all three one floating-point type")
    if 0 in q.shape:
        raise ValueError(f"q, k and v of shape {tuple(q.shape)} hold nothing; give at least one token")


def _as_rows(x: Tensor) -> Tensor:
    """`x` itself if heads lie side by side and tokens at equal distances, as in a packed tensor; else a copy."""
    _, tokens, _, width = x.shape
    rows = x.stride(3) == 1 and x.stride(2) == width and x.stride(0) == tokens * x.stride(1)
    return x if rows else x.contiguous()


def _new_state(q: Tensor) -> Tensor:
    """Room for what the first launch sums."""
    batch, tokens, heads, width = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(batch * heads, split_tokens(tokens)[1], width + 1, width, dtype=dtype)


@torch.library.custom_op("sana::relu_linear_attention_with_state", mutates_args=())
def attention_with_state(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the state that spares the backward a pass over keys and values."""
    return attend(q, k, v)


@torch.library.custom_op("sana::relu_linear_attention_backward", mutates_args=())
def attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Tensor:
    """Packed gradients of q, k and v."""
    return attend_backward(grad, (q, k, v), state)


@attention_with_state.register_fake
def _fake_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes only."""
    return torch.empty_like(q, memory_format=torch.contiguous_format), _new_state(q)


@attention_backward.register_fake
def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Tensor:
    """Shapes only."""
    batch, tokens, heads, width = q.shape
    return q.new_empty(batch, tokens, 3, heads, width)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    """Save what the backward needs: the inputs and the small state, not the output."""
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx: Any, grad: Tensor, _grad_state: Tensor | None) -> tuple[Tensor, ...]:
    """Gradients of q, k and v; the state is an inner value that nobody differentiates."""
    q, k, v, state = ctx.saved_tensors
    packed: Tensor = torch.ops.sana.relu_linear_attention_backward(grad, q, k, v, state)
    return packed.unbind(2)


attention_with_state.register_autograd(_gradients, setup_context=_keep)
torch.library.define("sana::relu_linear_attention", "(Tensor q, Tensor k, Tensor v) -> Tensor")


@torch.library.impl("sana::relu_linear_attention", "CompositeImplicitAutograd")
def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output alone."""
    out: Tensor = torch.ops.sana.relu_linear_attention_with_state(q, k, v)[0]
    return out
