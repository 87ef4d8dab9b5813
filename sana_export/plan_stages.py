"""What a build does when the parts are exported, in memory and time: painting with the reference, calibrating."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sana_runtime.memory_plan import Layout, PartMemory, one_at_a_time
from sana_runtime.signature import COMPRESSION

if TYPE_CHECKING:
    from sana_reference.checkpoint import Checkpoint

    from sana_export.tracing.counting import Described

__all__ = ["Habits", "StagePlan", "layout_of_calibration", "plan_calibration", "plan_golden"]

# Multiplications in a second, what lies between the products included, loading and saving, too, while Sana-0.6B was
# built on two quiet cores.
REFERENCE_RATE = 50e9
FLOAT_RATE = 85e9
HALF_RATE = 145e9
INT8_RATE = 280e9
LEAST_SECONDS = 0.01  # that one step takes, however small the model
PIXELS_A_WEIGHT = 45  # DC-AE's decoder multiplies 3.6 million times for a pixel, with 159 million weights


@dataclass(frozen=True)
class Habits:
    """How a model is used, which its sizes do not tell."""

    steps: int = 20
    guided: bool = True

    @classmethod
    def of(cls, checkpoint: "Checkpoint") -> "Habits":
        """Those that a checkpoint names."""
        return cls(checkpoint.solver.steps, checkpoint.solver.guidance > 1)

    def rows(self, sizes: "Described") -> int:
        """Rows that the transformer computes for one picture."""
        return 2 if self.guided and not sizes.config.guidance_embedding else 1


@dataclass(frozen=True)
class StagePlan:
    """Estimates for one stage; the peak is of the whole process."""

    name: str
    peak_bytes: int
    seconds: float


def plan_golden(sizes: "Described", numbers: Mapping[str, int], held: int, habits: Habits) -> StagePlan:
    """The golden record: painted by the reference in float32, with one network of at most `held` bytes in memory."""
    from sana_export.build import GOLDEN, GOLDEN_SIDE, GOLDEN_STEPS
    from sana_export.tracing.golden import POSITIONS, SKETCH_STEPS

    side = min(GOLDEN_SIDE, sizes.config.sample_size)
    sketches = max(4, POSITIONS // side**2)
    steps = len(GOLDEN) * min(GOLDEN_STEPS, habits.steps) + sketches * SKETCH_STEPS
    pictures = len(GOLDEN) + sketches
    seconds = _painting(numbers["transformer"], side, habits.rows(sizes) * steps, REFERENCE_RATE)
    return StagePlan("golden", held, seconds + _decoding(numbers["decoder"], side, pictures, REFERENCE_RATE))


def plan_calibration(
    sizes: "Described", numbers: Mapping[str, int], parts: Mapping[str, tuple[PartMemory, PartMemory]], habits: Habits
) -> StagePlan:
    """Calibration for INT8, the gate included; `parts` are those of the float bundle and of the INT8 one.

    Memory is what it takes where parts take turns: with more of it at hand they stay loaded.
    """
    from sana_export.plans import effort_for
    from sana_export.tracing.counting import count_products

    effort, rows, config = effort_for(sizes.config.depth, sizes.config.dim), habits.rows(sizes), sizes.config
    side, trial_side = (
        min(config.sample_size, longest // COMPRESSION) for longest in (effort.longest, effort.trial_longest)
    )
    weights, products = numbers["transformer"], len(count_products(sizes))
    tried = effort.trials * min(effort.trial_steps, habits.steps) * (products + 2) * rows
    judged = effort.held_out * habits.steps * rows
    seconds = (
        _painting(weights, side, effort.samples * habits.steps * rows, HALF_RATE if effort.half else FLOAT_RATE)
        + _painting(weights, trial_side, tried, FLOAT_RATE)  # all products but one
        + _painting(weights, side, judged, FLOAT_RATE)
        + _painting(weights, side, 4 * judged, INT8_RATE)  # on the float path and its own, text in float and in INT8
        + _decoding(numbers["decoder"], side, 4 * effort.held_out, FLOAT_RATE)
    )
    return StagePlan("calibration", _calibrating(parts), seconds)


def layout_of_calibration(sizes: "Described", habits: Habits) -> Layout:
    """What is painted at once while calibrating."""
    from sana_export.plans import effort_for

    longest = effort_for(sizes.config.depth, sizes.config.dim).longest
    side = min(sizes.config.sample_size * COMPRESSION, longest)
    return Layout((side, side), habits.rows(sizes))


def _calibrating(parts: Mapping[str, tuple[PartMemory, PartMemory]]) -> int:
    """The trial's graph holds the transformer in both forms, INT8 twice; the gate keeps a part of each bundle."""
    usual = [wide for wide, _ in parts.values()]
    wide, narrow = parts["transformer"]
    trial = wide.total + 2 * narrow.weights  # as they were read, and as they are multiplied
    two = sum(sorted(part.total for part in (*usual, narrow))[-2:])
    return max(trial, two) - max(part.total for part in usual) + one_at_a_time(usual, 0)


def _painting(weights: int, side: int, rows: int, rate: float) -> float:
    """Seconds for so many rows of steps: every weight multiplies at each of side × side positions once."""
    return rows * max(LEAST_SECONDS, weights * side**2 / rate)


def _decoding(weights: int, side: int, pictures: int, rate: float) -> float:
    """Seconds for so many pictures of side × side latent positions."""
    return pictures * weights / PIXELS_A_WEIGHT * (side * COMPRESSION) ** 2 / rate
