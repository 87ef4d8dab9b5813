"""What an export will take, and what painting will, said before anything heavy starts."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sana_runtime.errors import MemoryLimitError
from sana_runtime.memory import available_memory
from sana_runtime.memory_plan import Layout, PartMemory, working_memory
from sana_runtime.signature import PARTS

from sana_export.precision import Precision, dtype_of

if TYPE_CHECKING:
    from sana_export.tracing.counting import Described

__all__ = ["PartPlan", "Plan", "foresee_painting", "plan"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
USUAL_PREFIX = 207  # tokens of BOS and Sana's instruction that Gemma's tokenizer leaves unchanged

# Measured with bench/export_full_size.py on two cores of a server; a rough guide elsewhere.
LIBRARIES = 700_000_000  # bytes of torch and the exporter before any weight is there
SECONDS_PER_LAYER = 0.15
SECONDS_AT_LEAST = 3.0
WRITTEN_PER_SECOND = 250_000_000  # bytes, transposed on the way


@dataclass(frozen=True)
class PartPlan:
    """Estimates for one part; the peak is of the whole process while this part is exported."""

    name: str
    dtype: str
    parameters: int
    bytes: int
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Estimates for all parts; they are exported one after the other."""

    parts: tuple[PartPlan, ...]

    @property
    def bytes(self) -> int:
        """What is written."""
        return sum(part.bytes for part in self.parts)

    @property
    def peak_bytes(self) -> int:
        """Most memory at any time."""
        return max(part.peak_bytes for part in self.parts)

    @property
    def seconds(self) -> float:
        """Time for all parts, reading the checkpoint not included."""
        return sum(part.seconds for part in self.parts)

    def check(self, folder: Path) -> None:
        """Raise MemoryLimitError when memory or the disk under `folder` cannot be enough."""
        memory, disk = available_memory(), shutil.disk_usage(_existing(folder)).free
        if memory is not None and self.peak_bytes > memory:
            raise MemoryLimitError(
                f"the export needs about {_gb(self.peak_bytes)} of memory, {_gb(memory)} are free; "
                "close other programs, or choose fp16 or bf16"
            )
        if self.bytes > disk:
            raise MemoryLimitError(
                f"the export writes {_gb(self.bytes)}, {_gb(disk)} are free under {folder}; "
                "make room, or choose another folder"
            )


def plan(
    sizes: "Described",
    precision: Precision = Precision.FP32,
    *,
    parts: Sequence[str] = PARTS,
    prefix_tokens: int = USUAL_PREFIX,
) -> Plan:
    """Sizes, which are exact to the small constants, and memory and time, which are estimates from measured rates."""
    from sana_export.tracing.counting import count_numbers, count_operations, count_tables, largest_tensor
    from sana_export.tracing.parts import NETWORKS

    numbers, layers, largest = count_numbers(sizes, prefix_tokens), count_operations(sizes), largest_tensor(sizes)
    tables = count_tables(sizes, prefix_tokens)
    network_of = {part: network for network, owned in NETWORKS.items() for part in owned}

    def planned(part: str) -> PartPlan:
        dtype, network = dtype_of(part, precision), network_of[part]
        width, held = BYTES[dtype], sum(numbers[each] for each in NETWORKS[network])
        seconds = max(SECONDS_AT_LEAST, layers[part] * SECONDS_PER_LAYER) + numbers[part] * width / WRITTEN_PER_SECOND
        peak = LIBRARIES + (held + largest[network]) * width
        written = numbers[part] * width + tables[part].bytes(width)
        return PartPlan(part, dtype, numbers[part], written, peak, seconds)

    return Plan(tuple(planned(part) for part in parts))


def foresee_painting(
    sizes: "Described", precision: Precision, size: tuple[int, int], *, guided: bool = True
) -> tuple[PartMemory, ...]:
    """The memory of every part while a bundle of these sizes paints one picture of `size` (height, width)."""
    from sana_export.tracing.counting import count_looked_up

    told = sizes.config.guidance_embedding
    layout = Layout(size, 2 if guided and not told else 1)
    beside_pixels = sizes.autoencoder_config.channels[0]
    widest = {"transformer": 2 * sizes.config.hidden, "decoder": beside_pixels, "encoder": beside_pixels}

    def foreseen(part: PartPlan) -> PartMemory:
        unread = count_looked_up(sizes) * BYTES[part.dtype] if part.name == "text_encoder" else 0
        working = working_memory(part.name, PRECISIONS[part.dtype], widest.get(part.name, 0), layout)
        return PartMemory(part.name, part.bytes - unread, working)

    return tuple(foreseen(part) for part in plan(sizes, precision).parts)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
