"""Compile every kernel for every target and write what the assembler made of each: docs/kernels.md and .json.

Needs no GPU. Takes a few minutes; run it after changing a kernel.
"""

import json
from dataclasses import asdict
from pathlib import Path

from sana_plugins.kernels.compilation import (
    TARGETS,
    CompiledKernel,
    Resources,
    assembler_version,
    compile_kernels,
    measure,
)

__all__ = ["table"]

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"
Row = tuple[CompiledKernel, Resources]


def cell(row: Row | None) -> str:
    """Registers / shared bytes, and spilled bytes if any."""
    if row is None:
        return "-"
    kernel, resources = row
    spilled = resources.spill_stores + resources.spill_loads
    return f"{resources.registers} / {kernel.shared}" + (f" **spills {spilled}**" if spilled else "")


def table(rows: list[Row]) -> str:
    """One line a kernel, one column a target."""
    found = {(kernel.name, kernel.target): (kernel, resources) for kernel, resources in rows}
    names = list(dict.fromkeys(kernel.name for kernel, _ in rows))
    lines = [
        f"| kernel | threads | {' | '.join(f'SM{target}' for target in TARGETS)} |",
        "|---" * (len(TARGETS) + 2) + "|",
    ]
    for name in names:
        cells = [found.get((name, target)) for target in TARGETS]
        threads = next(row[0].threads for row in cells if row)
        lines.append(f"| `{name}` | {threads} | {' | '.join(map(cell, cells))} |")
    return "\n".join(lines) + "\n"


def record(row: Row) -> dict[str, object]:
    """One kernel's launch metadata and resources, without its PTX."""
    kernel, resources = row
    return {key: value for key, value in asdict(kernel).items() if key != "ptx"} | asdict(resources)


def main() -> None:
    """Rewrite the table inside the page, and the JSON beside it."""
    rows = [(kernel, measure(kernel)) for kernel in compile_kernels()]
    page = DOCS / "kernels.md"
    before, rest = page.read_text().split(BEGIN)
    head = f"Assembled with ptxas {assembler_version()} (Triton's own) from the PTX that `compile_kernels` returns.\n\n"
    page.write_text(before + BEGIN + head + table(rows) + END + rest.split(END)[1])
    (DOCS / "measurements/kernels.json").write_text(json.dumps([record(row) for row in rows], indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
