"""The middle of the Mix-FFN: SiLU, depthwise 3×3 convolution with bias and gate in one pass over channels-last tokens.

Tokens are rows (picture, y, x) of 2h channels: the first h are values, the last h their gates. The SiLU that comes
before the convolution is applied as taps are read, unless the product before has done so at its end.
"""

import triton
import triton.language as tl

from sana_plugins.kernels.launch import Launch

__all__ = ["GATE_INT8_LAUNCH", "GATE_LAUNCH", "depthwise_gate", "depthwise_gate_int8"]

GATE_LAUNCH = Launch({"BLOCK_T": 8, "BLOCK_C": 64}, warps=4, stages=1)
GATE_INT8_LAUNCH = Launch({"BLOCK_T": 4, "BLOCK_C": 64}, warps=4, stages=1)
# The graph's own numbers: its step is that of a token's largest magnitude, and a token of zeros has one, too.
SMALLEST = tl.constexpr(1e-20)
ONE_LEVEL = tl.constexpr(1 / 127)
ROUND = tl.constexpr(
    12582912.0
)  # 1.5 · 2²³: at this size fp32 holds whole numbers only, so adding it rounds half to even


@triton.jit
def silu(x):
    """x · sigmoid(x); a very negative x gives zero, not NaN."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def convolve(x_ptr, weight_ptr, bias_ptr, row, y, x, channels, inside, height, width, wide, ACTIVATED: tl.constexpr):
    """The 3×3 depthwise convolution at a tile of tokens × channels, in fp32; beyond the picture are zeros.

    `weight` is (9, wide), tap by tap, so that a tap's weights lie side by side.
    """
    known = (channels < wide)[None, :]
    acc = tl.zeros((row.shape[0], channels.shape[0]), tl.float32)
    acc += tl.load(bias_ptr + channels, mask=channels < wide, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        there = inside & (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        source = x_ptr + (row + down * width + right)[:, None] * wide + channels[None, :]
        value = tl.load(source, mask=there[:, None] & known, other=0.0).to(tl.float32)
        if not ACTIVATED:
            value = silu(value)
        weight = tl.load(weight_ptr + tap * wide + channels, mask=channels < wide, other=0.0).to(tl.float32)
        acc += value * weight[None, :]
    return acc


@triton.jit
def gated_tile(x_ptr, weight_ptr, bias_ptr, row, channels, rows, height, width, hidden, ACTIVATED: tl.constexpr):
    """value · silu(gate) after the convolution, for a tile of tokens × hidden channels."""
    inside, wide = row < rows, 2 * hidden
    y, x = (row // width) % height, row % width
    kept = tl.where(channels < hidden, channels, wide)  # past the last value would be the first gate
    value = convolve(x_ptr, weight_ptr, bias_ptr, row, y, x, kept, inside, height, width, wide, ACTIVATED)
    gates = channels + hidden
    gate = convolve(x_ptr, weight_ptr, bias_ptr, row, y, x, gates, inside, height, width, wide, ACTIVATED)
    return value * silu(gate)


@triton.jit
def depthwise_gate(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    rows,
    height,
    width,
    hidden,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACTIVATED: tl.constexpr,
):
    """Convolve and gate a tile of tokens × hidden channels; grid (blocks of tokens, blocks of channels)."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    out = gated_tile(x_ptr, weight_ptr, bias_ptr, row, channels, rows, height, width, hidden, ACTIVATED)
    target = out_ptr + row[:, None] * hidden + channels[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=(row < rows)[:, None] & (channels < hidden)[None, :])


@triton.jit
def depthwise_gate_int8(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    scale_ptr,
    rows,
    height,
    width,
    hidden,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ACTIVATED: tl.constexpr,
):
    """Convolve, gate and round to int8 with one scale a token; grid (blocks of tokens).

    A program owns all channels of its tokens and walks them twice: once for the largest magnitude, once to round. The
    second walk finds its taps in cache; writing the first walk's floats out and back would cost more.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    largest = tl.zeros((BLOCK_T,), tl.float32)
    for start in range(0, hidden, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        out = gated_tile(x_ptr, weight_ptr, bias_ptr, row, channels, rows, height, width, hidden, ACTIVATED)
        largest = tl.maximum(largest, tl.max(tl.where((channels < hidden)[None, :], tl.abs(out), 0.0), 1))
    scale = tl.maximum(largest, SMALLEST) * ONE_LEVEL
    for start in range(0, hidden, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        out = gated_tile(x_ptr, weight_ptr, bias_ptr, row, channels, rows, height, width, hidden, ACTIVATED)
        whole = (tl.div_rn(out, tl.broadcast_to(scale[:, None], (BLOCK_T, BLOCK_C))) + ROUND) - ROUND
        whole = tl.minimum(tl.maximum(whole, -127.0), 127.0)
        target = out_ptr + row[:, None] * hidden + channels[None, :]
        tl.store(target, whole.to(tl.int8), mask=(row < rows)[:, None] & (channels < hidden)[None, :])
    tl.store(scale_ptr + row, scale, mask=row < rows)
