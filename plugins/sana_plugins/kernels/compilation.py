"""Compile the kernels to PTX for GPUs that are not here, with what a host needs to launch them."""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sana_plugins.kernels.catalogue import VARIANTS, Variant

__all__ = ["TARGETS", "CompiledKernel", "Resources", "assembler_version", "compile_kernels", "measure"]

TARGETS = MappingProxyType({75: 80, 80: 80, 86: 80, 89: 80, 90: 80, 120: 87})
"""Compute capability → PTX version: the lowest that names it, so that drivers from CUDA 12.0 (120: 12.8) accept it.

PTX for 75 to 89 also runs on later GPUs; that for 90 and 120 is for those alone (sm_90a, sm_120a).
"""
ALIGNED = 16
ATTENTION_STRIDES = ("q_row", "k_row", "v_row", "out_row", "grad_row", "grad_q_row", "attended_row")
PRODUCT_SIZES = ("n", "k", "x_row", "weight_row", "weight_n", "positive", "hidden")
STRIDES = frozenset(ATTENTION_STRIDES + PRODUCT_SIZES)
"""Integers known to be multiples of 16: every width of a Sana model is one."""
DEBUG_LINES = re.compile(r"^\s*\.(loc|file)\b.*\n", re.MULTILINE)


@dataclass(frozen=True)
class CompiledKernel:
    """PTX of one kernel for one target, and how to launch it.

    Pointers must be aligned to 16 bytes, and so must the integers in `multiples_of_16` be multiples of 16. After the
    `arguments`, in their order, come two pointers of Triton's own which these kernels never follow: pass null.
    """

    name: str
    target: int
    entry: str
    ptx: str
    arguments: tuple[tuple[str, str], ...]
    multiples_of_16: tuple[str, ...]
    constants: Mapping[str, Any]
    warps: int
    shared: int

    @property
    def threads(self) -> int:
        """Threads in a block."""
        return 32 * self.warps


@dataclass(frozen=True)
class Resources:
    """What the assembler gave a kernel: registers a thread, bytes spilled, bytes of stack."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int


def compile_kernels(targets: Iterable[int] = TARGETS, variants: Iterable[Variant] = VARIANTS) -> list[CompiledKernel]:
    """PTX of every variant for every target (compute capability, 75 for SM75); needs no GPU."""
    rows = tuple(variants)
    return [compile_variant(variant, target) for target in targets for variant in rows if _runs_on(variant, target)]


def compile_variant(variant: Variant, target: int) -> CompiledKernel:
    """PTX of one variant for one target."""
    if target not in TARGETS:
        raise ValueError(f"compute capability {target} is no target; choose from {', '.join(map(str, TARGETS))}")
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set, so there is nothing to compile; unset it before importing triton")
    constants = variant.constexprs(target)
    multiples = tuple(name for name in variant.signature if name in STRIDES)
    aligned = [name for name, kind in variant.signature.items() if kind.startswith("*") or name in multiples]
    source = ASTSource(
        variant.kernel,
        variant.signature,
        constants,
        {(variant.kernel.arg_names.index(name),): [["tt.divisibility", ALIGNED]] for name in aligned},
    )
    options = {
        "num_warps": variant.launch.warps,
        "num_stages": variant.launch.stages,
        "ptx_version": TARGETS[target],
        "enable_fp_fusion": True,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    arguments = tuple((name, kind) for name, kind in variant.signature.items() if kind != "constexpr")
    return CompiledKernel(
        name=variant.name,
        target=target,
        entry=compiled.metadata.name,
        ptx=without_paths(compiled.asm["ptx"]),
        arguments=arguments,
        multiples_of_16=multiples,
        constants={name: _plain(value) for name, value in constants.items()},
        warps=compiled.metadata.num_warps,
        shared=compiled.metadata.shared,
    )


def without_paths(ptx: str) -> str:
    """The PTX less its line numbers, which name files of the machine that compiled it."""
    return DEBUG_LINES.sub("", ptx.split("\t.section\t.debug", 1)[0])


def measure(kernel: CompiledKernel) -> Resources:
    """Assemble the PTX with the assembler that comes with Triton and read what it reports."""
    architecture = re.search(r"^\.target (\w+)", kernel.ptx, re.MULTILINE)
    if architecture is None:
        raise ValueError(f"{kernel.name}: its PTX names no target; compile it again")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(kernel.ptx)
        command = [_assembler(), "-v", f"--gpu-name={architecture[1]}", str(source), "-o", f"{folder}/kernel.cubin"]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return Resources(
        registers=_figure(r"Used (\d+) registers", report),
        spill_stores=_figure(r"(\d+) bytes spill stores", report),
        spill_loads=_figure(r"(\d+) bytes spill loads", report),
        stack=_figure(r"(\d+) bytes stack frame", report),
    )


def assembler_version() -> str:
    """The release of the assembler that `measure` runs."""
    said = subprocess.run([_assembler(), "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release ([\d.]+)", said)
    return release[1] if release else said.strip()


def _assembler() -> str:
    """Path of Triton's ptxas."""
    return str(knobs.nvidia.ptxas.path)


def _runs_on(variant: Variant, target: int) -> bool:
    """Turing has no bf16."""
    return not (target < 80 and "bfloat16" in str(variant.dtype))


def _plain(value: Any) -> Any:
    """A compile-time value as JSON can hold it."""
    return value if isinstance(value, bool | int | str) else str(value)


def _figure(pattern: str, report: str) -> int:
    """The number `pattern` finds, or 0."""
    found = re.search(pattern, report)
    return int(found[1]) if found else 0
