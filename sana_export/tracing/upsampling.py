"""Doubling of size for engines: four small convolutions instead of one on a picture blown up first."""

import torch
from sana_reference.autoencoder import Decoder
from sana_reference.autoencoder_blocks import Upsample, repeat_groups
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PhaseUpsample", "upsample_in_phases"]


class PhaseUpsample(nn.Module):
    """What `Upsample` computes, with the four 2×2 kernels made once.

    Doubling shows a 3×3 kernel the same pixel several times; adding up its rows and columns that meet the same pixel
    leaves one 2×2 kernel for each of the four pixels that one becomes: 4/9 of the products. Padding is asymmetric,
    so that each phase is one convolution and nothing is cut off afterwards.
    """

    def __init__(self, original: Upsample) -> None:
        super().__init__()
        self.bias = original.conv.bias
        self.kernels = nn.ParameterDict(
            {
                f"row{i}_column{j}": nn.Parameter(kernel.to(original.conv.weight.dtype), requires_grad=False)
                for i, rows in enumerate(halves(original.conv.weight.detach().float(), 2))
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
        interleaved = torch.stack(phases, dim=2).flatten(1, 2)
        return F.pixel_shuffle(interleaved + repeat_groups(x, interleaved.shape[1]), 2)


def halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A kernel of three as the kernels of two that even and odd pixels see along `dim`."""
    before, at, after = torch.split(kernel, 1, dim)
    return torch.cat((before, at + after), dim).contiguous(), torch.cat((before + at, after), dim).contiguous()


def upsample_in_phases(decoder: Decoder) -> Decoder:
    """Replace every `Upsample` of the decoder; the original kernels are dropped one by one."""
    for stage in decoder.stages:
        assert isinstance(stage, nn.Sequential)
        for i, block in enumerate(stage):
            if isinstance(block, Upsample):
                stage[i] = PhaseUpsample(block)
    return decoder
