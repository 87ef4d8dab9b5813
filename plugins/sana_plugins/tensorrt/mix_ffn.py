"""The middle of an INT8 Mix-FFN as a plugin: one launch from the first product's tokens to the second one's int8.

Inputs are tokens (batch, height, width, 2h) after their SiLU, the depthwise convolution's weight tap by tap (9, 2h) and
its bias (2h); outputs are int8 tokens (batch, height · width, h) and the step of each, fp32 (batch, height · width, 1).
"""

from collections.abc import Sequence
from typing import Any

from sana_plugins.splits import ceil_div
from sana_plugins.tensorrt.operators import Arithmetic, Launch, Memory, Operator
from sana_plugins.tensorrt.shipped import ShippedKernel

__all__ = ["GATED_DEPTHWISE", "gate_launches"]

RANKS = (4, 2, 1, 3, 3)  # of tokens, weight, bias; int8 tokens, steps
TAPS = 9
MULTIPLE = 16  # of which the compiled kernel takes h for one


def gate_launches(
    kernels: tuple[ShippedKernel, ...], dims: Sequence[int], _bytes_each: int, memory: Memory
) -> tuple[Launch, ...]:
    """Convolve, gate and round; a program owns all channels of some tokens."""
    memory.check()
    batch, height, width, wide = dims
    rows, kernel = batch * height * width, kernels[0]
    grid = (ceil_div(rows, kernel.block), 1, 1)
    return (Launch(kernel, grid, (*memory.inputs, *memory.outputs), (rows, height, width, wide // 2)),)


def _fits(position: int, dims: Sequence[int], _inputs: int) -> bool:
    """The number of channels is known, and one for which the kernel is compiled."""
    if len(dims) != RANKS[position] or (position == 1 and dims[0] != TAPS):
        return False
    multiple = (2 * MULTIPLE, 2 * MULTIPLE, 2 * MULTIPLE, MULTIPLE, 1)[position]
    return dims[-1] > 0 and dims[-1] % multiple == 0


def _shapes(inputs: Sequence[Sequence[Any]], arithmetic: Arithmetic) -> list[Sequence[Any]]:
    batch, height, width, wide = inputs[0]
    tokens = arithmetic.times(height, width)
    return [[batch, tokens, arithmetic.part(wide, 2)], [batch, tokens, arithmetic.constant(1)]]


def _no_workspace(_dims: Sequence[int]) -> int:
    return 0


GATED_DEPTHWISE = Operator(
    name="GatedDepthwiseInt8",
    kernels=("depthwise_gate_int8",),
    outputs=("INT8", "FLOAT"),
    fits=_fits,
    shapes=_shapes,
    workspace=_no_workspace,
    launches=gate_launches,
)
