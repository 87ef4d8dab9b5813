"""Doubling of size for engines: four small convolutions instead of one on a picture blown up first."""

from typing import Any

import torch
from sana_reference.autoencoder import Decoder
from sana_reference.autoencoder_blocks import Upsample
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PhaseUpsample", "upsample_in_phases"]


class PhaseUpsample(nn.Module):
    """What `Upsample` computes, with the four 2×2 kernels made once.

    Doubling shows a 3×3 kernel the same pixel several times; adding up its rows and columns that meet the same pixel
    leaves one 2×2 kernel for each of the four pixels that one becomes: 4/9 of the products. Padding is asymmetric,
    so that each phase is one convolution and nothing is cut off afterwards. The shortcut, which gives each of the four
    pixels a channel of the one, is a weight of one more in its kernel: its passes over the picture are gone.
    """

    def __init__(self, original: Upsample) -> None:
        super().__init__()
        self.bias = original.conv.bias
        weight = original.conv.weight.detach()
        self.kernels = nn.ParameterDict(
            {
                f"row{i}_column{j}": nn.Parameter(_with_shortcut(kernel, i, j).to(weight.dtype), requires_grad=False)
                for i, rows in enumerate(halves(weight.float(), 2))
                for j, kernel in enumerate(halves(rows, 3))
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, 2H, 2W)."""
        phases = [
            F.conv2d(F.pad(x, (1 - j, j, 1 - i, i)), self.kernels[f"row{i}_column{j}"], self.bias)
            for i in (0, 1)
            for j in (0, 1)
        ]
        return interleave(torch.cat(phases, dim=1))


def interleave(phases: Tensor) -> Tensor:
    """Four pictures (B, 4·O, H, W), one after the other, as the pixels of one (B, O, 2H, 2W).

    `pixel_shuffle` wants the four of a channel side by side; OpenVINO, which keeps channels together in memory, would
    copy every phase into that order and back.
    """
    batch, channels, height, width = phases.shape
    if torch.compiler.is_exporting():
        size = (batch, channels // 4, 2 * height, 2 * width)
        attributes: dict[str, Any] = {"blocksize": 2, "mode": "DCR"}
        result: Tensor = torch.onnx.ops.symbolic("DepthToSpace", (phases,), attributes, dtype=phases.dtype, shape=size)
        return result
    apart = torch.unflatten(phases, 1, (2, 2, -1))  # (B, row, column, O, H, W)
    return apart.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


def halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A kernel of three as the kernels of two that even and odd pixels see along `dim`."""
    before, at, after = torch.split(kernel, 1, dim)
    return torch.cat((before, at + after), dim).contiguous(), torch.cat((before + at, after), dim).contiguous()


def _with_shortcut(kernel: Tensor, row: int, column: int) -> Tensor:
    """A phase's kernels, which also add the channel that `Upsample` gives to the pixels of that phase."""
    outputs, inputs = kernel.shape[:2]
    output = torch.arange(outputs, device=kernel.device)
    given = (4 * output + 2 * row + column) * inputs // (4 * outputs)
    kernel[output, given, 1 - row, 1 - column] += 1
    return kernel


def upsample_in_phases(decoder: Decoder) -> Decoder:
    """Replace every `Upsample` of the decoder; the original kernels are dropped one by one."""
    for stage in decoder.stages:
        assert isinstance(stage, nn.Sequential)
        for i, block in enumerate(stage):
            if isinstance(block, Upsample):
                stage[i] = PhaseUpsample(block)
    return decoder
