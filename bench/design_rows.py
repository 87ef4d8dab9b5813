"""The design's table of targets: what each row asks for, and how it is read from the figures that the jobs left.

Times are compared by the medians of a race's rounds and, in brackets, by the shortest; a target is met if both say so.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

GIGA, MINUTE, MEGA = 1e9, 60.0, 1e6
BLOCK_PRODUCTS, ENGINE_BLOCKS = 6, 2  # those of a block that are rounded; blocks of the engine that is built
INT8, INT8_BF16 = "ours int8", "ours int8, bf16 between"  # bf16 around convolutions only, or between all products
STATISTICS: tuple[Callable[[list[float]], float], ...] = (median, min)

Figures = Mapping[str, Any]  # by the name of a file of results


@dataclass(frozen=True)
class Check:
    """One figure against its bound; `other` is the same figure by the shortest runs."""

    what: str
    value: float
    bound: float
    unit: str = " times"
    least: bool = True  # the bound is the least that it may be; else the most
    other: float | None = None

    @property
    def measured(self) -> str:
        """For people."""
        other = "" if self.other is None else f" ({self.other:.3g})"
        return f"{self.what} {self.value:.3g}{other}{self.unit}"

    @property
    def met(self) -> str:
        """Yes, no, or by which of the two statistics."""
        values = [self.value] if self.other is None else [self.value, self.other]
        held = [value >= self.bound if self.least else value <= self.bound for value in values]
        if all(held):
            return "yes"
        return "no" if not any(held) else "by medians only" if held[0] else "by the shortest runs only"


@dataclass(frozen=True)
class Row:
    """A row of the design's table, the jobs that measure it, and how their figures are read."""

    what: str
    target: str
    jobs: tuple[str, ...]
    read: Callable[[Figures], list[Check]]


def runs(race: Figures, name: str) -> list[float]:
    """A contender's wall clocks."""
    result = race["results"].get(name, {"error": "did not race"})
    if "error" in result:
        raise ValueError(f"{name}: {result['error']}")
    times: list[float] = result["runs"]["wall"]
    return times


def ratio(race: Figures, slow: str, fast: str, bound: float, *, least: bool = True, what: str = "") -> Check:
    """How many times as long `slow` takes as `fast`."""
    both, one = (pick(runs(race, slow)) / pick(runs(race, fast)) for pick in STATISTICS)
    return Check(what or slow, both, bound, " times", least, one)


def _int8_step(ours: str, figures: Figures) -> list[Check]:
    race = figures["cpu-step"]
    alone = ratio(race, ours, "int8 products alone", 1.15, least=False, what="its products alone")
    return [alone, *(ratio(race, f"diffusers {kind}", ours, bound) for kind, bound in (("fp32", 5.2), ("bf16", 2.5)))]


def _optimum(figures: Figures) -> list[Check]:
    race = figures["cpu-step-optimum"]
    peers = [name for name, row in race["results"].items() if name.startswith("optimum") and "error" not in row]
    fastest = min(peers, key=lambda name: median(runs(race, name)))
    return [ratio(race, name, INT8, 1.5) for name in sorted(peers, key=lambda name: name != fastest)]


def _float_step(figures: Figures) -> list[Check]:
    race = figures["cpu-step"]
    return [ratio(race, f"diffusers {kind}", "ours bf16", bound) for kind, bound in (("fp32", 2.7), ("bf16", 1.3))]


def _text(figures: Figures) -> list[Check]:
    race = figures["text-encoding"]
    what = f"diffusers bf16, {race['layers']} of {race['of_layers']} layers,"
    return [ratio(race, "diffusers bf16", "ours bf16", 18, what=what)]


def _decode(ours: str, figures: Figures) -> list[Check]:
    race = figures["cpu-decode"]
    return [ratio(race, f"diffusers {kind}", ours, bound) for kind, bound in (("fp32", 3), ("bf16", 2))]


def _throughput(figures: Figures) -> list[Check]:
    """Against the shortest time of a block's products in either race; everything between them is in ours."""
    race, best = figures["cpu-step"], figures["cpu-limits"]
    alone = "int8 products alone"
    block = min(*runs(best, alone), min(runs(race, alone)) / race["depth"])
    value, other = (100 * race["depth"] * block / pick(runs(race, INT8)) for pick in STATISTICS)
    return [Check("everything between products included", value, 70, " %", other=other)]


def _build(figures: Figures) -> list[Check]:
    found = figures["full-size-build"]
    return [
        Check("memory", found["peak_anonymous_bytes"] / GIGA, 16, " GB", least=False),
        Check("time", found["wall_seconds"] / MINUTE, 25, " min", least=False),
    ]


def _memory(figures: Figures) -> list[Check]:
    found = figures["painting-memory"]
    largest, way = found["largest_part_bytes"], found["ways"]["one at a time"]
    return [
        Check(f"largest part ({largest / MEGA:.0f} MB) + {kind}", (way[name] - largest) / MEGA, 600, " MB", least=False)
        for kind, name in (("resident", "resident"), ("for itself", "measured"))
    ]


def _quality(figures: Figures) -> list[Check]:
    (found,), outliers = figures["int8-quality"]["devices"].values(), figures["int8-outliers"]
    plain, ours = (len(outliers[kind]["complaints"]) for kind in ("plain_rounding", "calibrated"))
    return [
        Check(f"INT8 less float on {found['prompts']} prompts", found["difference_points"], -1, " points"),
        Check("same-seed median", found["psnr_median"], 32, " dB"),
        Check("outliers: the gate's complaints of plain rounding", plain, 1, ""),
        Check("of ours", ours, 0, "", least=False),
    ]


def _engine(figures: Figures) -> list[Check]:
    (found,) = figures["engines"].values()
    wanted = BLOCK_PRODUCTS * ENGINE_BLOCKS
    return [
        Check(f"two blocks: of {wanted} chosen products int8 x int8", found["products"]["int8 x int8"], wanted, ""),
        Check("builds until two were alike", found["builds_until_two_alike"] or math.inf, 2, "", least=False),
    ]


def _gpu(figures: Figures) -> list[Check]:
    """None here: `make gpu` has a page of its own."""
    return []


def _start_up(figures: Figures) -> list[Check]:
    ways = figures["start-up"]["ways"]
    asked = (("sana-export --help", 200.0), ("import sana_runtime", 350.0))
    return [
        Check(f"`{way}`", 1000 * ways[way]["wall_seconds"], most, " ms", False, 1000 * min(ways[way]["runs"]))
        for way, most in asked
    ]


def _warm(figures: Figures) -> list[Check]:
    ways = figures["cpu-start-bundle"]["ways"]
    new, kept = ways["read back"], ways["read back, prompt kept"]
    return [
        _start("before the first step", new, "before_first_step"),
        _start("… of a prompt that was kept", kept, "before_first_step"),
        _start("all that a first picture needs more than a second", new, "wall"),
    ]


def _start(what: str, way: Any, name: str) -> Check:
    return Check(what, way[f"{name}_seconds"], 2, " s", False, min(way[f"{name}_runs"]))


ROWS = (
    *(
        Row(
            f"DiT step, 512², guided, INT8, {way}",
            "≤ 1.15 times its products alone; ≥ 5.2 times as fast as diffusers fp32, ≥ 2.5 times bf16",
            ("step",),
            partial(_int8_step, ours),
        )
        for way, ours in (("as the pipeline runs it", INT8), ("bf16 between all products", INT8_BF16))
    ),
    Row(
        "… against optimum-intel, two blocks, one thread, as the pipeline runs it",
        "≥ 1.5 times as fast as its fastest form",
        ("optimum",),
        _optimum,
    ),
    Row("DiT step, bf16 products", "≥ 2.7 times as fast as diffusers fp32, ≥ 1.3 times bf16", ("step",), _float_step),
    Row("encoding 20 words and the negative", "≥ 18 times as fast as diffusers, same precision", ("text",), _text),
    *(
        Row(
            f"decode 512², {way}",
            "≥ 3 times as fast as diffusers fp32, ≥ 2 times bf16",
            ("decode",),
            partial(_decode, ours),
        )
        for way, ours in (("INT8 bundle whose decoder passed its trial", INT8), ("bf16", "ours bf16"))
    ),
    Row("INT8 throughput inside the DiT", "≥ 70 % of the best product", ("limits", "step"), _throughput),
    Row("build 0.6B + Gemma-2-2b + DC-AE, INT8", "≤ 16 GB, ≤ 25 min", ("build",), _build),
    Row("runtime memory, one part at a time", "≤ largest part + 600 MB", ("memory",), _memory),
    Row(
        "INT8 quality on nano",
        "≤ 1 point lost, ≥ 32 dB median; survives outliers where plain rounding fails",
        ("quality", "outliers"),
        _quality,
    ),
    Row("TensorRT-RTX plan", "chosen products all int8 x int8; two builds alike", ("engine",), _engine),
    Row("GPU, fp16 and int8 steps", "against diffusers and the roofline", ("gpu",), _gpu),
    Row("start-up", "`--help` ≤ 200 ms, import ≤ 350 ms", ("start-up",), _start_up),
    Row("start-up of a warm 0.6B INT8 bundle", "≤ 2 s", ("warm-start",), _warm),
)
