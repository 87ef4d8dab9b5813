"""The blocks a DC-AE is made of: residual, attention, down and up.

Everything stays (B, C, H, W). A 1×1 convolution is kept as a Linear but applied as a convolution, since its neighbours
are spatial convolutions and would pay for a transpose on either side; nothing in the autoencoder is quantised.
Plain memory order trains faster on a CPU than `torch.channels_last` (a tenth, at the sizes of the small model).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "AttentionBlock",
    "ChannelNorm",
    "Downsample",
    "HalvingConv",
    "ResidualBlock",
    "Upsample",
    "average_groups",
    "convolve_doubled",
    "repeat_groups",
]


class PixelLinear(nn.Linear):
    """A Linear over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of a picture, with weight and bias, computed in fp32."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + self.eps)
        weight, bias = (parameter.float()[:, None, None] for parameter in (self.weight, self.bias))
        return torch.addcmul(bias, normed, weight).to(x.dtype)


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
        self.qkv = PixelLinear(channels, wide, bias=False)
        self.neighbours = nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False)
        self.neighbour_heads = nn.Conv2d(wide, wide, 1, groups=wide // head_dim, bias=False)
        self.out = PixelLinear(2 * channels, channels, bias=False)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        near = self.qkv(x)
        both = torch.cat([near, self.neighbour_heads(self.neighbours(near))], dim=1)  # (B, 6C, H, W)
        heads = torch.unflatten(both.float(), 1, (-1, 3, self.head_dim))
        query, key, value = heads.flatten(-2).unbind(2)  # each (B, 2C / D, D, H·W)
        mixed = relu_linear_attention(query, key, value).reshape(x.shape[0], -1, *x.shape[2:])  # (B, 2C, H, W)
        inner: Tensor = self.norm(self.out(mixed.to(x.dtype)))
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
        self.expand = PixelLinear(channels, wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.contract = PixelLinear(wide // 2, channels, bias=False)
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


class HalvingConv(nn.Conv2d):
    """A 3×3 convolution with stride 2, for even sizes.

    Padding on the far sides would never be seen there; without it an exported size is H/2, not (H - 1) // 2 + 1.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 0, 1, 0)))


class Downsample(nn.Module):
    """Half the size: a strided convolution beside a shortcut of averaged pixels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = HalvingConv(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        small: Tensor = self.conv(x)
        return small + average_groups(F.pixel_unshuffle(x, 2), self.conv.out_channels)


class Upsample(nn.Module):
    """Twice the size: a convolution of the doubled pixels beside a shortcut that deals channels out to pixels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        phases = convolve_doubled(x, self.conv)
        return F.pixel_shuffle(phases + repeat_groups(x, phases.shape[1]), 2)


def convolve_doubled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3×3 convolution of nearest-doubled pixels, as the four phases (B, 4·O, H, W) that pixel_shuffle interleaves.

    Each phase sees a pixel twice wherever doubling would have repeated it, so adding up kernel columns and rows leaves
    2×2 kernels on the small picture: 4/9 of the products, and the doubled picture is never made.
    """
    height, width = x.shape[2:]
    phases = [
        F.conv2d(x, column, conv.bias, padding=1)[:, :, i : i + height, j : j + width]
        for i, row in enumerate(_halves(conv.weight, 2))
        for j, column in enumerate(_halves(row, 3))
    ]
    return torch.stack(phases, dim=2).flatten(1, 2)


def _halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A kernel of three as the two kernels of two that the even and the odd pixels see."""
    before, at, after = torch.split(kernel, 1, dim)
    return torch.cat([before, at + after], dim), torch.cat([before + at, after], dim)


def average_groups(x: Tensor, channels: int) -> Tensor:
    """Mean of neighbouring channels, so that `channels` remain."""
    return torch.unflatten(x, 1, (channels, -1)).mean(dim=2)


def repeat_groups(x: Tensor, channels: int) -> Tensor:
    """Every channel repeated in place, so that there are `channels`."""
    return x.unsqueeze(2).expand(-1, -1, channels // x.shape[1], -1, -1).flatten(1, 2)
