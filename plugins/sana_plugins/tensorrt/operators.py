"""What is said of each plugin, once: to the engine library its types and shapes, to the driver its launches."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sana_plugins.tensorrt.shipped import PluginError, ShippedKernel

__all__ = ["ALIGNMENT", "ELEMENT", "Arithmetic", "Launch", "Memory", "Operator"]

ALIGNMENT = 16  # bytes; the kernels load four or eight numbers at a time
ELEMENT = ""  # the type of an output that has that of the inputs

Grid = tuple[int, int, int]
Sizes = Sequence[Any]  # dimensions: numbers, or the library's expressions


class Arithmetic(Protocol):
    """What shapes are computed with while sizes are not known yet."""

    def constant(self, number: int) -> Any:
        """The number as a size."""

    def times(self, a: Any, b: Any) -> Any:
        """The product of two sizes."""

    def part(self, a: Any, count: int) -> Any:
        """One of `count` equal parts of a size."""


@dataclass(frozen=True)
class Launch:
    """One kernel's grid and arguments, in order; pointers are whole numbers."""

    kernel: ShippedKernel
    grid: Grid
    pointers: tuple[int, ...]
    numbers: tuple[int, ...]

    @property
    def parameters(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Values and their C types; the last two are Triton's own pointers, which the kernels never follow."""
        kinds = [ctypes.c_void_p] * len(self.pointers) + [ctypes.c_int32] * len(self.numbers) + [ctypes.c_void_p] * 2
        return (*self.pointers, *self.numbers, 0, 0), tuple(kinds)


@dataclass(frozen=True)
class Memory:
    """Where the tensors of one run lie: addresses."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    workspace: int = 0

    def check(self, *more: int) -> None:
        """PluginError when the kernels would misread any of it, or of `more` addresses."""
        if any(pointer % ALIGNMENT or not pointer for pointer in (*self.inputs, *self.outputs, *more)):
            raise PluginError(
                "the engine handed over memory that is not aligned to 16 bytes; report this with the engine"
            )


@dataclass(frozen=True)
class Operator:
    """One plugin. All its inputs have one of the types of which there are kernels."""

    name: str
    kernels: tuple[str, ...]  # that are launched, in this order
    outputs: tuple[str, ...]  # their types, as the library names them
    fits: Callable[[int, Sequence[int], int], bool]
    """Whether the tensor at a position, outputs after inputs, can have these dimensions (-1: any); last, how many are
    inputs."""
    shapes: Callable[[Sequence[Sizes], Arithmetic], Sequence[Sizes]]
    """Dimensions of the outputs, by those of the inputs."""
    workspace: Callable[[Sequence[int]], int]
    """Bytes that are needed besides, by the first input's largest dimensions."""
    launches: Callable[[tuple[ShippedKernel, ...], Sequence[int], int, Memory], tuple[Launch, ...]]
    """What is started, by the kernels, the first input's dimensions and the bytes of one of its numbers."""
