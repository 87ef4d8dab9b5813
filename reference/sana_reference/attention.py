"""Linear self-attention over picture tokens, and cross-attention to the text."""

from collections.abc import Callable
from typing import cast

import torch
from sana_runtime.errors import BackendError, UsageError
from torch import Tensor, nn
from torch.nn import functional as F

from sana_reference.config import SanaConfig
from sana_reference.normalisation import RmsNorm

__all__ = ["CrossAttention", "Kernel", "LinearAttention", "kernel_named", "mask_bias", "relu_linear_attention"]

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Linear attention of q, k, v, each (B, N, heads, head_dim), to an output of the same shape and type."""

EPS = 1e-15
MASKED = -10000.0
FP16_MAX = 65504.0


def relu_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """relu(q) · (relu(k)ᵀ v) / (relu(q) · Σ relu(k) + eps) for (B, N, H, D), in the type of `q`.

    Sums over N and divides in fp32: the sums leave fp16's range, and eps is zero there.
    """
    q_, k_, v_ = (x.float().transpose(1, 2) for x in (q.relu(), k.relu(), v))  # (B, H, N, D)
    numerator = q_ @ (k_.mT @ v_)
    denominator = q_ @ k_.sum(2, keepdim=True).mT
    return (numerator / (denominator + EPS)).transpose(1, 2).to(q.dtype)


def kernel_named(name: str) -> Kernel:
    """The linear attention called "torch" or "triton"; the latter is registered by importing sana_plugins."""
    if name == "torch":
        return relu_linear_attention
    if name != "triton":
        raise UsageError(f"attention {name!r} is unknown; choose torch, triton or pass a function of q, k and v")
    if not hasattr(torch.ops.sana, "relu_linear_attention"):
        raise BackendError("the triton attention is not registered; import sana_plugins.linear_attention first")
    return cast(Kernel, torch.ops.sana.relu_linear_attention)


class LinearAttention(nn.Module):
    """Every token attends to every other at a cost linear in their number."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.norm_q = RmsNorm(config.dim) if config.qk_norm else nn.Identity()
        self.norm_k = RmsNorm(config.dim) if config.qk_norm else nn.Identity()
        self.kernel: Kernel = relu_linear_attention
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within (B, N, C)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (each.unflatten(-1, (self.heads, -1)) for each in (self.norm_q(q), self.norm_k(k), v))
        y: Tensor = self.out(self.kernel(q, k, v).flatten(2))
        return y.clamp(-FP16_MAX, FP16_MAX) if y.dtype == torch.float16 else y


class CrossAttention(nn.Module):
    """Picture tokens attend to the text, whose keys and values are computed once per prompt."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        self.heads = config.cross_heads
        self.scale = (config.dim // config.cross_heads) ** -0.5
        self.q = nn.Linear(config.dim, config.dim)
        self.kv = nn.Linear(config.dim, 2 * config.dim)
        self.norm_q = RmsNorm(config.dim) if config.qk_norm else nn.Identity()
        self.norm_k = RmsNorm(config.dim) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(config.dim, config.dim)

    def keys_and_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys, already divided by the root of the head's width, and values of (B, L, C)."""
        k, v = self.kv(text).chunk(2, dim=-1)
        return self.norm_k(k) * self.scale, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attend from (B, N, C) to keys and values (B, L, C); `bias` (B, 1, 1, L) is added to the scores in fp32."""
        q = self.norm_q(self.q(x))
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (q, k, v))
        weights = F.softmax((q @ k.mT).float() + bias, dim=-1).to(v.dtype)
        y: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return y


def mask_bias(mask: Tensor) -> Tensor:
    """What to add to the scores of (B, L) keys so that those marked 0 get no weight: fp32 (B, 1, 1, L)."""
    return (1 - mask.float())[:, None, None] * MASKED
