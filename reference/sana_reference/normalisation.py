"""Norms over the channels of a token, computed in fp32 whatever the weights are stored in."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RmsNorm", "modulated_norm"]


class RmsNorm(nn.Module):
    """Divides by the root mean square over all channels, then scales each channel."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (…, dim); the result has the type of `x`."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight.float()).to(x.dtype)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then an affine map that the conditioning chose; fp32 until the end."""
    normal = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
    return (normal * (1 + scale) + shift).to(x.dtype)
