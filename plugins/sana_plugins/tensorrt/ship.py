"""Write the PTX files that the package ships: `python -m sana_plugins.tensorrt.ship`, after a kernel has changed."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from sana_plugins.kernels.catalogue import VARIANTS
from sana_plugins.kernels.compilation import CompiledKernel, compile_kernels
from sana_plugins.tensorrt.shipped import ELEMENTS, FOLDER, HEAD_DIM, INDEX, ShippedKernel

__all__ = ["ship"]

KERNELS = ("sum_key_values", "apply_queries")
TARGETS = (75, 80)  # each also runs on every later card: the driver translates it there


def ship(folder: Path) -> None:
    """Compile both kernels for every element type and target into `folder`, with their index."""
    wanted = {f"{kernel}_{element}_d{HEAD_DIM}": (kernel, element) for kernel in KERNELS for element in ELEMENTS}
    compiled = compile_kernels(TARGETS, [row for row in VARIANTS if row.name in wanted])
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for each in compiled:
        row = _row(each, *wanted[each.name])
        (folder / row.file).write_text(each.ptx, encoding="utf-8")
        rows.append(asdict(row))
    index = {"triton": version("triton"), "kernels": rows}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _row(compiled: CompiledKernel, kernel: str, element: str) -> ShippedKernel:
    return ShippedKernel(
        kernel=kernel,
        element=element,
        target=compiled.target,
        entry=compiled.entry,
        threads=compiled.threads,
        shared=compiled.shared,
        block=compiled.constants["BLOCK"],
        file=f"{compiled.name}_sm{compiled.target}.ptx",
    )


if __name__ == "__main__":
    ship(FOLDER)
