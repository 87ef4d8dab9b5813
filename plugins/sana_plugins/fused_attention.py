"""A whole linear self-attention layer, its projections fused with what lies next to them in either direction.

Forward: the q|k|v product ends with the ReLU of q and k. Backward: the output projection's gradient ends with the
division's, head by head. What stays a plain matrix product, with nothing to fuse, is left to the vendor's library.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from sana_plugins.kernels.launch import ELEMENT_TYPES, arithmetic, start
from sana_plugins.kernels.projection import project_relu, projection_gradient, projection_launch
from sana_plugins.linear_attention import attend, attend_backward, split_packed
from sana_plugins.splits import ceil_div

__all__ = ["FusedLinearAttention", "fuse_attention", "fused_linear_attention", "project_qkv"]

FP16_MAX = 65504.0


def project_qkv(x: Tensor, weight: Tensor) -> Tensor:
    """relu(q) | relu(k) | v of (B, N, C) tokens, for a stacked (3·C, C) weight."""
    if x.dtype != weight.dtype or x.dtype not in ELEMENT_TYPES or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"tokens {tuple(x.shape)} {x.dtype} do not meet a weight {tuple(weight.shape)} {weight.dtype}; "
            "give (B, N, C) and (3C, C) of one floating-point type"
        )
    x, weight = x.contiguous(), weight.contiguous()
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    rows, wide, deep = x.shape[:-1].numel(), weight.shape[0], weight.shape[1]
    launch = projection_launch(x.dtype)
    sizes = (rows, wide, deep, deep, deep, wide, wide // 3 * 2)
    start(project_relu, _tiles(rows, wide, launch.sizes), (x, weight, out, *sizes), launch, **arithmetic(x.dtype))
    return out


def output_gradient(grad: Tensor, weight: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient (B, N, heads, D) of what the output projection was given, and delta (B, N, heads)."""
    grad, weight = grad.contiguous(), weight.contiguous()
    heads, width = attended.shape[2:]
    out = torch.empty_like(attended)
    accumulator = torch.float64 if grad.dtype == torch.float64 else torch.float32
    delta = torch.empty(attended.shape[:3], dtype=accumulator, device=grad.device)
    rows, deep, wide = grad.shape[:-1].numel(), weight.shape[0], heads * width
    launch = projection_launch(grad.dtype)
    sizes = (rows, wide, deep, deep, wide, wide, wide, heads)
    tensors = (grad, weight, attended, out, delta)
    numbers = arithmetic(grad.dtype) | {"D": width}
    start(projection_gradient, _tiles(rows, wide, launch.sizes), (*tensors, *sizes), launch, **numbers)
    return out, delta


def fused_linear_attention(x: Tensor, qkv: Tensor, out: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Linear self-attention of (B, N, C) tokens with stacked weight `qkv` (3C, C), weight `out` (C, C) and `bias`."""
    attended: Tensor = _FusedLinearAttention.apply(x, qkv, out, bias, heads)  # type: ignore[no-untyped-call]
    return attended


class FusedLinearAttention(nn.Module):
    """Takes the place of a linear attention layer that has `qkv`, `out` and no norms, with the same parameters."""

    def __init__(self, qkv: nn.Linear, out: nn.Linear, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = qkv, out, heads

    def forward(self, x: Tensor) -> Tensor:
        """Attend within (B, N, C)."""
        y = fused_linear_attention(x, self.qkv.weight, self.out.weight, self.out.bias, self.heads)
        return y.clamp(-FP16_MAX, FP16_MAX) if y.dtype == torch.float16 else y


def fuse_attention(model: nn.Module) -> int:
    """Put a fused layer in the place of every `attention` in the model's blocks; say how many.

    The parameters keep their names and identity. A layer that normalises q and k is refused: the norm stands between
    the projection and the ReLU, so there is nothing to fuse.
    """
    blocks = list(cast(nn.ModuleList, model.blocks))
    for block in blocks:
        layer = cast(Any, block.attention)
        if list(layer.norm_q.parameters()) or list(layer.norm_k.parameters()):
            raise ValueError('this model normalises q and k before their ReLU; use attention="triton" instead')
        block.attention = FusedLinearAttention(layer.qkv, layer.out, layer.heads)
    return len(blocks)


class _FusedLinearAttention(torch.autograd.Function):
    """Forward and backward of the layer; q and k are kept after their ReLU, so no mask is."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Project, attend, project."""
        x, qkv_weight, out_weight, bias, heads = inputs
        qkv = project_qkv(x, qkv_weight)
        attended, state = attend(*split_packed(qkv, heads))
        ctx.heads = heads
        ctx.save_for_backward(x, qkv_weight, out_weight, qkv, attended, state)
        return nn.functional.linear(attended.flatten(2), out_weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        """Gradients of tokens, weights and bias."""
        (grad,) = grads
        x, qkv_weight, out_weight, qkv, attended, state = ctx.saved_tensors
        grad_attended, delta = output_gradient(grad, out_weight, attended)
        grad_qkv = attend_backward(grad_attended, split_packed(qkv, ctx.heads), state, delta).flatten(2)
        grad_x = grad_qkv @ qkv_weight
        grad_qkv_weight = grad_qkv.flatten(0, 1).mT @ x.flatten(0, 1)
        grad_out_weight = grad.flatten(0, 1).mT @ attended.flatten(2).flatten(0, 1)
        return grad_x, grad_qkv_weight, grad_out_weight, grad.sum((0, 1)), None


def _tiles(rows: int, columns: int, sizes: Any) -> tuple[int]:
    """How many tiles cover the output."""
    return (ceil_div(rows, sizes["BLOCK_M"]) * ceil_div(columns, sizes["BLOCK_N"]),)
