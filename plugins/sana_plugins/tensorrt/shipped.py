"""The kernels of the plugins as this package ships them: PTX files, and what a host must know to launch each."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = [
    "ELEMENTS",
    "FOLDER",
    "HEAD_DIM",
    "INDEX",
    "PluginError",
    "ShippedKernel",
    "kernel_for",
    "shipped",
]

FOLDER = Path(__file__).with_name("ptx")
INDEX = "kernels.json"
ELEMENTS = ("fp16", "bf16", "fp32")
HEAD_DIM = 32  # the width of a head in every Sana


class PluginError(RuntimeError):
    """The plugin cannot be used here; one line says why and what to do."""


@dataclass(frozen=True)
class ShippedKernel:
    """One kernel for one element type and all cards from `target` on."""

    kernel: str
    element: str
    target: int
    entry: str
    threads: int
    shared: int
    block: int
    file: str

    @property
    def ptx(self) -> bytes:
        """The program, ended by a zero as the driver wants it."""
        return (FOLDER / self.file).read_bytes() + b"\0"


@cache
def shipped() -> tuple[ShippedKernel, ...]:
    """Every kernel in the package; PluginError when one of their files is not there."""
    rows = json.loads(_present(INDEX).read_text(encoding="utf-8"))["kernels"]
    kernels = tuple(ShippedKernel(**row) for row in rows)
    for kernel in kernels:
        _present(kernel.file)
    return kernels


def _present(file: str) -> Path:
    if not (FOLDER / file).is_file():
        raise PluginError(f"{FOLDER / file} is missing; install sana-export again, or build without the plugin")
    return FOLDER / file


def kernel_for(kernel: str, element: str, capability: int) -> ShippedKernel:
    """The newest version of a kernel that a card of this compute capability (86 for 8.6) runs."""
    rows = [row for row in shipped() if (row.kernel, row.element) == (kernel, element) and row.target <= capability]
    if not rows:
        raise PluginError(
            f"{kernel} for {element} has no program for compute capability {capability / 10:.1f}; "
            "use an engine without the plugin"
        )
    return max(rows, key=lambda row: row.target)
