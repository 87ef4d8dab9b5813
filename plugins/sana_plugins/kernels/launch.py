"""Start kernels: tile sizes as values, arithmetic by element type, and a clear word where nothing can run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs

__all__ = ["ELEMENT_TYPES", "Launch", "accumulation", "arithmetic", "start"]

ELEMENT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What the float kernels take; float64 is there to check gradients with, at no speed."""

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Launch:
    """How a kernel is cut: its compile-time sizes, its warps and the depth of its load pipeline."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2


def accumulation(dtype: torch.dtype) -> dict[str, Any]:
    """What to accumulate in, and how fp32 operands are multiplied.

    Plain TF32 is never used: it keeps 11 bits, and the state of linear attention is a difference-sensitive fp32 sum.
    Three TF32 products per fp32 product keep fp32's accuracy on tensor cores.
    """
    if dtype == torch.float64:
        return {"ACC": tl.float64, "PRECISION": "ieee"}
    return {"ACC": tl.float32, "PRECISION": "tf32x3"}


def arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """The same, and the type in which tensors are multiplied: their own.

    The interpreter has no bf16 products (it would multiply bit patterns), so there they are widened, exactly.
    """
    if dtype == torch.bfloat16 and knobs.runtime.interpret:
        dtype = torch.float32
    return accumulation(dtype) | {"OPERAND": getattr(tl, str(dtype).removeprefix("torch."))}


def start(kernel: Any, grid: Grid, arguments: tuple[Any, ...], launch: Launch, **constants: Any) -> None:
    """Run `kernel` over `grid` on the device of its first argument, which is a tensor."""
    with _device_of(arguments[0]):
        kernel[grid](*arguments, **launch.sizes, **constants, num_warps=launch.warps, num_stages=launch.stages)


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's GPU the current one, or accept a CPU tensor if the interpreter is on."""
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    if not knobs.runtime.interpret:
        raise RuntimeError(
            f"Triton kernels cannot run on {tensor.device}; move the tensors to a GPU, "
            "or set TRITON_INTERPRET=1 before the first import of triton to try them slowly"
        )
    return nullcontext()
