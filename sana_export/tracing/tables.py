"""Sines and cosines of large angles as constants.

OpenVINO, told to use bfloat16 products, computes angles in bfloat16 too, whatever the graph says, and an angle of
hundreds of radians then means nothing: the time 999 would be off by several steps. Looked-up values cannot go wrong.
"""

import torch
from sana_reference.positions import GridPositions, Sinusoid
from sana_reference.text_encoder import Rotation, TextEncoder
from sana_reference.transformer import SanaTransformer
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["GridTable", "RotationTable", "TimeTable", "look_up_angles"]

LAST_TIMESTEP = 1000


class TimeTable(nn.Module):
    """A sinusoid at every whole timestep."""

    def __init__(self, sinusoid: Sinusoid) -> None:
        super().__init__()
        self.table: Tensor = sinusoid(torch.arange(LAST_TIMESTEP + 1))

    def forward(self, timestep: Tensor) -> Tensor:
        """Rows (B, dim) for whole timesteps (B)."""
        return F.embedding(timestep.clamp(0, LAST_TIMESTEP), self.table)


class RotationTable:
    """The cosines and sines of rotary positions 0 … `last`."""

    def __init__(self, encoder: TextEncoder, last: int, dtype: torch.dtype) -> None:
        cosines, sines = encoder.rotation(torch.arange(last + 1)[None])
        self.cosines, self.sines = cosines[0, 0].to(dtype), sines[0, 0].to(dtype)

    def __call__(self, positions: Tensor) -> Rotation:
        """Cosines and sines, each (B, 1, L, head_dim), for positions (B, L)."""
        return F.embedding(positions, self.cosines)[:, None], F.embedding(positions, self.sines)[:, None]


class GridTable(nn.Module):
    """What `GridPositions` computes, for grids of any size.

    A coordinate is a whole number of units, looked up, and a rest below one, whose angles are small; the two are joined
    by the addition theorems.
    """

    def __init__(self, original: GridPositions) -> None:
        super().__init__()
        self.extent = round(original.extent)
        assert self.extent == original.extent, original.extent
        self.frequencies = original.frequencies
        angles = torch.arange(self.extent, dtype=torch.float32)[:, None] * self.frequencies
        self.sines, self.cosines = angles.sin(), angles.cos()

    def forward(self, height: int, width: int) -> Tensor:
        """The table (height · width, dim) in row-major order, columns in the first half of the channels."""
        columns = self._axis(width).expand(height, -1, -1)
        rows = self._axis(height)[:, None].expand(-1, width, -1)
        return torch.cat((columns, rows), dim=-1).flatten(0, 1)

    def _axis(self, length: int) -> Tensor:
        """Embed the coordinates of one axis as (length, dim / 2)."""
        place = torch.arange(length) * self.extent
        whole = place // length  # in whole numbers; torch.div would be traced as a division of floats
        rest = ((place - whole * length).float() / length)[:, None] * self.frequencies
        sine, cosine = F.embedding(whole, self.sines), F.embedding(whole, self.cosines)
        rest_sine, rest_cosine = rest.sin(), rest.cos()
        return torch.cat((sine * rest_cosine + cosine * rest_sine, cosine * rest_cosine - sine * rest_sine), dim=-1)


def look_up_angles(transformer: SanaTransformer) -> None:
    """Replace the transformer's angles by tables; Sprint's times, below one, stay computed."""
    if transformer.config.integer_timesteps:
        assert isinstance(transformer.time.sinusoid, Sinusoid)
        transformer.time.sinusoid = TimeTable(transformer.time.sinusoid)  # type: ignore[assignment]
    if transformer.config.position_base is not None:
        transformer.positions = GridTable(transformer.positions)  # type: ignore[assignment]
