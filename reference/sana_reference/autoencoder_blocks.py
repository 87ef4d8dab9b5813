"""The blocks a DC-AE is made of: residual, attention, down and up.

Everything stays (B, C, H, W). A 1×1 convolution is a Conv2d here, not a Linear: its neighbours are spatial convolutions,
so a Linear would need a transpose on both sides, and nothing in the autoencoder is quantised.
In `torch.channels_last` memory the 1×1 convolution is the same matrix product, and the token views cost no copy.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AttentionBlock",
    "ChannelNorm",
    "Downsample",
    "ResidualBlock",
    "Upsample",
    "average_groups",
    "repeat_groups",
]


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of a picture, with weight and bias, computed in fp32."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (p.float()[:, None, None] for p in (self.weight, self.bias))
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + self.eps)
        return torch.addcmul(bias, wide * scale, weight).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around a SiLU, normalised, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.norm(self.second(F.silu(self.first(x))))
        return x + inner


class MultiscaleAttention(nn.Module):
    """ReLU linear attention over the pixels and, as extra heads, over their k×k neighbourhoods.

    The channels of `qkv` are interleaved: head by head the queries, the keys, then the values.
    There is no quadratic branch for small pictures: it would compute the same numbers and freeze a size into the graph.
    """

    def __init__(self, channels: int, head_dim: int, kernel: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        wide = 3 * channels
        self.qkv = nn.Conv2d(channels, wide, 1, bias=False)
        self.neighbours = nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False)
        self.neighbour_heads = nn.Conv2d(wide, wide, 1, groups=wide // head_dim, bias=False)
        self.out = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        near = self.qkv(x)
        both = torch.cat([near, self.neighbour_heads(self.neighbours(near))], dim=1)  # (B, 6C, H, W)
        query, key, value = both.float().unflatten(1, (-1, 3, self.head_dim)).flatten(-2).unbind(2)  # (B, heads, D, N)
        mixed = relu_linear_attention(query, key, value)
        inner: Tensor = self.norm(self.out(mixed.flatten(1, 2).unflatten(2, x.shape[2:]).to(x.dtype)))
        return x + inner


def relu_linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention on fp32 (B, heads, D, N), channels before pixels as the convolutions leave them."""
    query, key = F.relu(query), F.relu(key)
    total = key.sum(dim=-1, keepdim=True).mT @ query  # what a row of ones under the values would give
    return value @ key.mT @ query / (total + 1e-15)


class GatedFeedForward(nn.Module):
    """Inverted 1×1, 3×3 depthwise, gate, 1×1 back; normalised, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 8 * channels  # four times for the value, four for its gate
        self.expand = nn.Conv2d(channels, wide, 1)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.contract = nn.Conv2d(wide // 2, channels, 1, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.depthwise(F.silu(self.expand(x))).chunk(2, dim=1)
        inner: Tensor = self.norm(self.contract(value * F.silu(gate)))
        return x + inner


class AttentionBlock(nn.Module):
    """Multi-scale linear attention, then the gated feed-forward."""

    def __init__(self, channels: int, head_dim: int, kernel: int) -> None:
        super().__init__()
        self.attention = MultiscaleAttention(channels, head_dim, kernel)
        self.feed_forward = GatedFeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.feed_forward(self.attention(x))
        return result


class Downsample(nn.Module):
    """Half the size: a strided convolution beside a shortcut that keeps every pixel's mean."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + average_groups(F.pixel_unshuffle(x, 2), self.conv.out_channels)


class Upsample(nn.Module):
    """Twice the size: nearest pixels and a convolution beside a shortcut that deals channels out to pixels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pixel_shuffle(repeat_groups(x, 4 * self.conv.out_channels), 2)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) + shortcut


def average_groups(x: Tensor, channels: int) -> Tensor:
    """Mean of neighbouring channels, so that `channels` remain."""
    return x.unflatten(1, (channels, -1)).mean(dim=2)


def repeat_groups(x: Tensor, channels: int) -> Tensor:
    """Every channel repeated in place, so that there are `channels`."""
    return x.unsqueeze(2).expand(-1, -1, channels // x.shape[1], -1, -1).flatten(1, 2)
