"""What an export will take, and what painting will, said before anything heavy starts."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sana_runtime.ahead import cores
from sana_runtime.errors import MemoryLimitError
from sana_runtime.manifest import INT8_WEIGHTS, reads_in_place
from sana_runtime.memory import available_memory
from sana_runtime.memory_plan import Layout, PartMemory, kept_bytes, working_memory
from sana_runtime.signature import PARTS

from sana_export.plan_stages import Habits, StagePlan, layout_of_calibration, plan_calibration, plan_golden
from sana_export.precision import Precision, dtype_of, scheme_of, stored_as

if TYPE_CHECKING:
    from sana_export.tracing.counting import Described

__all__ = ["APART", "Habits", "PartPlan", "Plan", "foresee_painting", "goes_side_by_side", "plan"]

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
USUAL_PREFIX = 207  # tokens of BOS and Sana's instruction that Gemma's tokenizer leaves unchanged

# Measured with bench/export_full_size.py on two cores of a server; a rough guide elsewhere.
LIBRARIES = 700_000_000  # bytes of torch and the exporter before any weight is there
SECONDS_PER_LAYER = 0.15
SECONDS_AT_LEAST = 3.0
WRITTEN_PER_SECOND = 250_000_000  # bytes, transposed on the way
APART = "text_encoder"  # the part that is exported beside the others, as it is as much work as all of them
STARTING = 10.0  # seconds until another process has loaded the exporter


@dataclass(frozen=True)
class PartPlan:
    """Estimates for one part; the peak is of the whole process while this part is exported."""

    name: str
    dtype: str  # that its weights are stored in
    parameters: int
    bytes: int  # in the finished bundle
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Estimates for a build: its parts are exported, then come the stages, one after the other."""

    parts: tuple[PartPlan, ...]
    stages: tuple[StagePlan, ...]
    disk_bytes: int  # most that the build has on the disk at any time, the finished bundle included
    side_by_side: bool = False  # whether the text encoder is exported beside the others, else one after the other

    @property
    def bytes(self) -> int:
        """What stays on the disk."""
        return sum(part.bytes for part in self.parts)

    @property
    def peak_bytes(self) -> int:
        """Most memory at any time."""
        return max(self.least_bytes, _peak_beside(self.parts)) if self.side_by_side else self.least_bytes

    @property
    def least_bytes(self) -> int:
        """The same with one part after the other, as it is done where memory is short."""
        return max(each.peak_bytes for each in self._all())

    @property
    def seconds(self) -> float:
        """Time for all parts and stages, reading the checkpoint not included."""
        saved = _saved_beside(self.parts) if self.side_by_side else 0.0
        return sum(each.seconds for each in self._all()) - saved

    def _all(self) -> tuple[PartPlan | StagePlan, ...]:
        return (*self.parts, *self.stages)

    def check(self, folder: Path, *, freed: int = 0) -> None:
        """Raise MemoryLimitError when memory or the disk under `folder` cannot be enough.

        `freed` is what the build itself will free on the disk, or find there already.
        """
        memory, disk = available_memory(), shutil.disk_usage(_existing(folder)).free + freed
        if memory is not None and self.least_bytes > memory:
            raise MemoryLimitError(
                f"the build needs about {_gb(self.least_bytes)} of memory, {_gb(memory)} are free; close other "
                "programs, use a machine with more, or go on all the same with --force"
            )
        if self.disk_bytes > disk:
            raise MemoryLimitError(
                f"the build writes about {_gb(self.disk_bytes)}, {_gb(disk)} are free under {folder}; make room, "
                "choose another folder with -o, or go on all the same with --force"
            )


def plan(
    sizes: "Described",
    precision: Precision = Precision.FP32,
    habits: Habits | None = None,
    *,
    prefix_tokens: int = USUAL_PREFIX,
) -> Plan:
    """Sizes, which are exact to the small constants, and memory and time, which are estimates from measured rates.

    For INT8 every weight that may be is counted as INT8; those that calibration leaves in float take more.
    """
    from sana_export.tracing.counting import count_numbers
    from sana_export.tracing.parts import NETWORKS

    habits, numbers = habits or Habits(), count_numbers(sizes, prefix_tokens)
    exported = _exported(sizes, precision, prefix_tokens)
    largest = max(sum(numbers[part] for part in NETWORKS[network]) for network in NETWORKS)
    golden = plan_golden(sizes, numbers, LIBRARIES + 4 * largest, habits)
    written, beside = sum(part.bytes for part in exported), _goes_beside(exported)
    if precision is not Precision.INT8:
        return Plan(exported, (golden,), 2 * written, beside)  # they are kept apart until the bundle is whole
    final = _in_int8(sizes, exported)
    wide, narrow = (next(part.bytes for part in kind if part.name == "transformer") for kind in (exported, final))
    calibration = _calibration(sizes, numbers, exported, habits)
    text = next(part.bytes for part in final if part.name == "text_encoder")
    while_tried = 2 * wide + 2 * narrow + text  # a copy to record with, the trial's graph of both forms, the INT8 parts
    disk = written + max(while_tried, sum(part.bytes for part in final))
    return Plan(final, (golden, calibration), disk, beside)


def goes_side_by_side(sizes: "Described", precision: Precision, parts: Sequence[str] = PARTS) -> bool:
    """Whether the text encoder is exported beside the others of `parts`: that saves time, and now there is memory."""
    if APART not in parts or len(parts) == 1:
        return False
    return _goes_beside([part for part in _exported(sizes, precision, USUAL_PREFIX) if part.name in parts])


def foresee_painting(
    sizes: "Described", precision: Precision, size: tuple[int, int], *, guided: bool = True
) -> tuple[PartMemory, ...]:
    """The memory of every part while a bundle of these sizes paints one picture of `size` (height, width)."""
    exported = _exported(sizes, precision, USUAL_PREFIX)
    parts = _in_int8(sizes, exported) if precision is Precision.INT8 else exported
    return _memory(sizes, parts, precision, Layout(size, Habits(guided=guided).rows(sizes)))


def _exported(sizes: "Described", precision: Precision, prefix_tokens: int) -> tuple[PartPlan, ...]:
    """The parts as they come out of the export, which for INT8 is before calibration."""
    from sana_export.tracing.counting import count_narrowed, count_numbers, count_operations, count_tables
    from sana_export.tracing.parts import NETWORKS

    numbers, layers = count_numbers(sizes, prefix_tokens), count_operations(sizes)
    tables, narrowed = count_tables(sizes, prefix_tokens), count_narrowed(sizes)
    network_of = {part: network for network, owned in NETWORKS.items() for part in owned}

    def planned(part: str) -> PartPlan:
        stored, width = stored_as(part, precision), BYTES[dtype_of(part, precision)]
        held = sum(numbers[each] for each in NETWORKS[network_of[part]])
        saved = narrowed.get(part, 0) * (width - BYTES[stored])
        written = numbers[part] * width - saved + tables[part].bytes(width)
        seconds = max(SECONDS_AT_LEAST, layers[part] * SECONDS_PER_LAYER) + written / WRITTEN_PER_SECOND
        return PartPlan(part, stored, numbers[part], written, LIBRARIES + held * width, seconds)

    return tuple(planned(part) for part in PARTS)


def _goes_beside(parts: Sequence[PartPlan]) -> bool:
    memory = available_memory()
    if memory is None or cores() == 1 or _saved_beside(parts) <= 0:
        return False
    return _peak_beside(parts) <= memory


def _peak_beside(parts: Sequence[PartPlan]) -> int:
    """Memory of both processes together."""
    apart, others = _sides(parts)
    return sum(max(part.peak_bytes for part in side) for side in (apart, others))


def _saved_beside(parts: Sequence[PartPlan]) -> float:
    """Seconds; less than nothing where starting a process takes longer than the shorter side."""
    return min(sum(part.seconds for part in side) for side in _sides(parts)) - STARTING


def _sides(parts: Sequence[PartPlan]) -> tuple[list[PartPlan], list[PartPlan]]:
    return [part for part in parts if part.name == APART], [part for part in parts if part.name != APART]


def _in_int8(sizes: "Described", exported: tuple[PartPlan, ...]) -> tuple[PartPlan, ...]:
    """The parts with the transformer's wide products and the text encoder's weights in INT8.

    That is a byte a weight, and a float32 step for each column of a product and each row of a table.
    """
    from sana_export.tracing.counting import count_narrowed, count_products, count_text_steps

    products = count_products(sizes).values()
    saved = {
        "transformer": sum(3 * rows * columns - 4 * columns for rows, columns in products),
        "text_encoder": count_narrowed(sizes)["text_encoder"] - 4 * count_text_steps(sizes),  # it was stored in 16 bits
    }
    return tuple(
        replace(part, dtype="int8", bytes=part.bytes - saved[part.name]) if part.name in saved else part
        for part in exported
    )


def _calibration(
    sizes: "Described", numbers: Mapping[str, int], exported: tuple[PartPlan, ...], habits: Habits
) -> StagePlan:
    layout = layout_of_calibration(sizes, habits)
    wide, narrow = (_memory(sizes, parts, Precision.INT8, layout) for parts in (exported, _in_int8(sizes, exported)))
    both = {one.name: (one, other) for one, other in zip(wide, narrow, strict=True)}
    stage = plan_calibration(sizes, numbers, both, habits)
    return replace(stage, peak_bytes=LIBRARIES + stage.peak_bytes)


def _memory(
    sizes: "Described", parts: tuple[PartPlan, ...], precision: Precision, layout: Layout
) -> tuple[PartMemory, ...]:
    from sana_export.tracing.counting import count_looked_up

    beside_pixels = sizes.autoencoder_config.channels[0]
    widest = {"transformer": 2 * sizes.config.hidden, "decoder": beside_pixels, "encoder": beside_pixels}

    def foreseen(part: PartPlan) -> PartMemory:
        unread = count_looked_up(sizes) * BYTES[part.dtype] if part.name == "text_encoder" else 0
        products = "int8" if part.dtype == "int8" else scheme_of(part.name, precision)[0]
        working = working_memory(part.name, products, widest.get(part.name, 0), layout)
        scheme = INT8_WEIGHTS if part.name == "text_encoder" and part.dtype == "int8" else part.dtype
        in_place = reads_in_place(part.name, products, scheme)
        stored = part.bytes - unread if in_place else part.parameters * BYTES[part.dtype]
        more = kept_bytes(part.name, part.parameters, stored, in_place=in_place) - stored
        return PartMemory(part.name, part.bytes - unread + more, working)

    return tuple(foreseen(part) for part in parts)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
