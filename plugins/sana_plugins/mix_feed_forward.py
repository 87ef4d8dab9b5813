"""The middle of the Mix-FFN on GPU tensors: SiLU, depthwise 3×3 convolution and gate, to floats or to int8 tokens."""

import torch
from torch import Tensor

from sana_plugins.kernels.launch import ELEMENT_TYPES, start
from sana_plugins.kernels.mix_ffn import GATE_INT8_LAUNCH, GATE_LAUNCH, depthwise_gate, depthwise_gate_int8
from sana_plugins.splits import ceil_div

__all__ = ["gated_depthwise", "gated_depthwise_int8"]


def gated_depthwise(x: Tensor, weight: Tensor, bias: Tensor, *, activated: bool = False) -> Tensor:
    """value · silu(gate) of the convolved silu(x): (B, H, W, 2h) to (B, H, W, h), accumulated in fp32.

    `weight` (2h, 1, 3, 3) and `bias` (2h) are the depthwise convolution's. `activated` says that the SiLU before it has
    been applied already, at the end of the product that made x.
    """
    x, taps, sizes = _operands(x, weight, bias)
    out = x.new_empty(*x.shape[:3], sizes[3])
    grid = (ceil_div(sizes[0], GATE_LAUNCH.sizes["BLOCK_T"]), ceil_div(sizes[3], GATE_LAUNCH.sizes["BLOCK_C"]))
    start(depthwise_gate, grid, (x, taps, bias, out, *sizes), GATE_LAUNCH, ACTIVATED=activated)
    return out


def gated_depthwise_int8(x: Tensor, weight: Tensor, bias: Tensor, *, activated: bool = False) -> tuple[Tensor, Tensor]:
    """The same as int8 (B, H, W, h) with one fp32 scale a token (B, H, W): largest magnitude / 127, half to even."""
    x, taps, sizes = _operands(x, weight, bias)
    out = x.new_empty(*x.shape[:3], sizes[3], dtype=torch.int8)
    scale = x.new_empty(x.shape[:3], dtype=torch.float32)
    grid = (ceil_div(sizes[0], GATE_INT8_LAUNCH.sizes["BLOCK_T"]),)
    start(depthwise_gate_int8, grid, (x, taps, bias, out, scale, *sizes), GATE_INT8_LAUNCH, ACTIVATED=activated)
    return out, scale


def _operands(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, tuple[int, int, int, int]]:
    """Tokens side by side, weights tap by tap, and (rows, height, width, hidden)."""
    wide = x.shape[-1]
    if x.dim() != 4 or wide % 2 or tuple(weight.shape) != (wide, 1, 3, 3) or tuple(bias.shape) != (wide,):
        raise ValueError(
            f"tokens {tuple(x.shape)}, weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit; "
            "give (B, H, W, 2h), (2h, 1, 3, 3) and (2h,)"
        )
    if x.dtype not in ELEMENT_TYPES or 0 in x.shape:
        raise ValueError(f"tokens {tuple(x.shape)} of {x.dtype} have no kernel; give at least one, in floating point")
    batch, height, width, _ = x.shape
    taps = weight.reshape(wide, 9).t().contiguous()
    return x.contiguous(), taps, (batch * height * width, height, width, wide // 2)
