"""Write the PTX files that the package ships: `python -m sana_plugins.tensorrt.ship`, after a kernel has changed."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from sana_plugins.kernels.catalogue import VARIANTS, Variant
from sana_plugins.kernels.compilation import CompiledKernel, compile_kernels
from sana_plugins.tensorrt.shipped import FOLDER, HEAD_DIM, INDEX, ShippedKernel

__all__ = ["ship"]

# Kernels, each with the compile-time size by which its grid is cut.
BLOCKS = {"sum_key_values": "BLOCK", "apply_queries": "BLOCK", "depthwise_gate_int8": "BLOCK_T"}
TARGETS = (75, 80)  # each also runs on every later card: the driver translates it there


def ship(folder: Path) -> None:
    """Compile the plugins' kernels for every element type and target into `folder`, with their index."""
    wanted = {row.name: row for row in VARIANTS if row.kernel.__name__ in BLOCKS and _has_our_width(row)}
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for each in compile_kernels(TARGETS, wanted.values()):
        row = _row(each, wanted[each.name])
        (folder / row.file).write_text(each.ptx, encoding="utf-8")
        rows.append(asdict(row))
    index = {"triton": version("triton"), "kernels": rows}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def _has_our_width(row: Variant) -> bool:
    return bool(row.constants.get("D", HEAD_DIM) == HEAD_DIM)


def _row(compiled: CompiledKernel, variant: Variant) -> ShippedKernel:
    kernel = variant.kernel.__name__
    return ShippedKernel(
        kernel=kernel,
        element=variant.element,
        target=compiled.target,
        entry=compiled.entry,
        threads=compiled.threads,
        shared=compiled.shared,
        block=compiled.constants[BLOCKS[kernel]],
        file=f"{compiled.name}_sm{compiled.target}.ptx",
    )


if __name__ == "__main__":
    ship(FOLDER)
