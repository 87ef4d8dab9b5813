"""Sines and cosines: of the time, and of where a token stands in the picture."""

import math

import torch
from torch import Tensor, nn

__all__ = ["GridPositions", "Sinusoid"]

LONGEST_PERIOD = 10000.0


class Sinusoid(nn.Module):
    """Embeds a number in [cosines | sines] of `dim` / 2 frequencies.

    Its frequencies are neither parameter nor buffer: `.half()` must not round them, and a model made on the
    meta device must still know them. The formula is fp32 throughout because the models were trained on its
    rounding, which at time 999 moves the phase by 1e-4.
    """

    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        steps = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
        self.frequencies = torch.exp(-math.log(LONGEST_PERIOD) * steps / (dim // 2))

    def forward(self, value: Tensor) -> Tensor:
        """Embed (B,) as fp32 (B, dim)."""
        phase = value.float()[:, None] * self.frequencies.to(value.device)
        return torch.cat((phase.cos(), phase.sin()), dim=-1)


class GridPositions(nn.Module):
    """The 2K and 4K models' table of positions: the column in the first half of the channels, the row in the second.

    Any grid is stretched to `base` / `scale` units a side, so that a place in the picture has one embedding
    at every resolution. Frequencies are kept out of the state for the reasons `Sinusoid` gives.
    """

    def __init__(self, dim: int, base: int, scale: float) -> None:
        super().__init__()
        steps = torch.arange(dim // 4, dtype=torch.float64, device="cpu")
        self.frequencies = (LONGEST_PERIOD ** (-steps / (dim // 4))).float()
        self.extent = base / scale

    def forward(self, height: int, width: int) -> Tensor:
        """The fp32 table (height · width, dim) in row-major order."""
        columns = self._axis(width).expand(height, -1, -1)
        rows = self._axis(height)[:, None].expand(-1, width, -1)
        return torch.cat((columns, rows), dim=-1).flatten(0, 1)

    def _axis(self, length: int) -> Tensor:
        """Embed the coordinates of one axis as (length, dim / 2)."""
        coordinate = torch.arange(length, dtype=torch.float32, device=self.frequencies.device) * self.extent / length
        phase = coordinate[:, None] * self.frequencies
        return torch.cat((phase.sin(), phase.cos()), dim=-1)
