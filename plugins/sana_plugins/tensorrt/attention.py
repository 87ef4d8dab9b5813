"""Linear attention as a plugin: two launches, and between them the sums of keys and values in workspace.

q, k, v and the output are (batch, tokens, heads, 32) in one piece each, as engines hand them over; or q, k and v lie
side by side in one packed tensor (batch, tokens, 3 · heads · 32), and the output is (batch, tokens, heads · 32).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sana_plugins.splits import ceil_div, most_splits, split_tokens
from sana_plugins.tensorrt.operators import ELEMENT, Arithmetic, Launch, Memory, Operator
from sana_plugins.tensorrt.shipped import HEAD_DIM, PluginError, ShippedKernel

__all__ = ["ATTENTION", "Sizes", "attention_launches", "thirds", "workspace_bytes"]

STATE = 4 * (HEAD_DIM + 1) * HEAD_DIM  # bytes of one split's sums


@dataclass(frozen=True)
class Sizes:
    """What the kernels are told of the tensors."""

    batch: int
    tokens: int
    heads: int
    packed: bool = False

    @classmethod
    def of(cls, dims: Sequence[int]) -> "Sizes":
        """The sizes that the dimensions of the first input tell: four of q, three of a packed tensor."""
        if len(dims) == 3:
            return cls(dims[0], dims[1], dims[2] // (3 * HEAD_DIM), packed=True)
        if dims[3] != HEAD_DIM:
            raise PluginError(f"heads {dims[3]} wide have no kernel, only {HEAD_DIM}; build without the plugin")
        return cls(dims[0], dims[1], dims[2])

    @property
    def pairs(self) -> int:
        """Heads of all pictures."""
        return self.batch * self.heads

    @property
    def row(self) -> int:
        """Numbers from one token of the output to the next."""
        return self.heads * HEAD_DIM

    @property
    def row_in(self) -> int:
        """The same of q, k and v."""
        return 3 * self.row if self.packed else self.row


def workspace_bytes(dims: Sequence[int]) -> int:
    """Room for the sums, for up to so many tokens: a shorter sequence can have more splits than the longest."""
    sizes = Sizes.of(dims)
    return sizes.pairs * most_splits(sizes.tokens) * STATE


def thirds(packed: int, sizes: Sizes, bytes_each: int) -> tuple[int, int, int]:
    """Where q, k and v begin in a packed tensor of numbers of so many bytes."""
    third = sizes.row * bytes_each
    return packed, packed + third, packed + 2 * third


def attention_launches(
    kernels: tuple[ShippedKernel, ...], dims: Sequence[int], bytes_each: int, memory: Memory
) -> tuple[Launch, ...]:
    """Sum keys and values into the workspace, then apply the queries."""
    sizes, state = Sizes.of(dims), memory.workspace
    q, k, v = thirds(memory.inputs[0], sizes, bytes_each) if sizes.packed else memory.inputs
    memory.check(k, v, state)
    chunk, splits = split_tokens(sizes.tokens)
    summing, applying = kernels
    numbers = (sizes.tokens, chunk, sizes.heads, sizes.row_in, sizes.row_in)
    sum_up = Launch(summing, (sizes.pairs, splits, 1), (k, v, state), numbers)
    numbers = (sizes.tokens, splits, sizes.heads, sizes.row_in, sizes.row)
    blocks = ceil_div(sizes.tokens, applying.block)
    return sum_up, Launch(applying, (blocks, sizes.pairs, 1), (q, state, memory.outputs[0]), numbers)


def _fits(position: int, dims: Sequence[int], inputs: int) -> bool:
    """Heads are of the width that has kernels, and a packed tensor is three times as wide as the output."""
    if inputs == 1:
        return len(dims) == 3 and (dims[2] == -1 or dims[2] % ((1 if position else 3) * HEAD_DIM) == 0)
    return len(dims) == 4 and dims[3] in (-1, HEAD_DIM)


def _shapes(inputs: Sequence[Sequence[Any]], arithmetic: Arithmetic) -> list[Sequence[Any]]:
    if len(inputs) > 1:
        return [inputs[0]]
    batch, tokens, packed = inputs[0]
    return [[batch, tokens, arithmetic.part(packed, 3)]]


ATTENTION = Operator(
    name="ReluLinearAttention",
    kernels=("sum_key_values", "apply_queries"),
    outputs=(ELEMENT,),
    fits=_fits,
    shapes=_shapes,
    workspace=workspace_bytes,
    launches=attention_launches,
)
