"""What skipping work costs nano's pictures, and whether fewer steps at the same cost would do as well.

    python bench/skipping.py BUNDLE [--each 56] [--only "600..1000" ...]

Every way paints the same held-out prompts from the same noise as the model's own 20 guided steps, with the PyTorch
model: graphs cannot be cut after their first block. Cost is what the transformer computes, a row for the negative
prompt as much as one for the prompt, over that of the 20 steps. A way is compared, prompt by prompt, with the fewest
steps of the same solver that cost no less.

- `N steps`: the rival.
- `LOW..HIGH`: guidance at these timesteps only; elsewhere the negative prompt is not run.
- `LOW..HIGH, then kept`: elsewhere what guidance added last is added again. `every N` does so between guided steps.
- `first block T`: where the first block's residual has changed by less than T since all blocks were last run (mean of
  absolute differences over mean of absolutes, a picture and its negative twin together), what the other blocks added
  then is added again.

At the end the runtime paints other held-out prompts with BUNDLE, nano in fp32, in the ways that it offers. Results go
to docs/measurements/skipping.json, a table to skipping.md beside it; `--only` replaces some rows of them.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sana_reference.nano.evaluation import Question, Score, evaluate, questions
from sana_reference.pipeline import ReferencePipeline
from sana_runtime.bundle import open_bundle
from sana_runtime.guidance import Guidance
from sana_runtime.noise import Noise
from sana_runtime.picture import Picture
from sana_runtime.pipeline import Pipeline
from sana_runtime.solver import Latent, make_solver, walk
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import cpu_race
from int8_quality import difference
from skipping_table import render

from sana_export.replay import psnr

RESULTS = cpu_race.RESULTS / "skipping.json"
STEPS = 20
DEPTHS = {"nano": 6, "sana-600m": 28}  # a step that runs the first block only costs less, the more blocks there are
TOGETHER = 48  # pictures painted at once
OTHER_PROMPTS = 8  # the seed of the prompts that the runtime is asked, which chose nothing

Pixels = NDArray[np.uint8]
Text = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Way:
    """How to paint with less work."""

    name: str
    steps: int = STEPS
    within: tuple[float, float] = (0, 1000)  # timesteps at which guidance is applied
    every: int = 1  # guided steps run the negative prompt where their number divides by this
    kept: bool = False  # elsewhere than `within`, add what guidance added last
    threshold: float = 0.0  # of first-block caching
    solver: str = "flow-dpm"

    @property
    def rival(self) -> bool:
        """Whether it only takes fewer steps."""
        return self == Way(self.name, self.steps, solver=self.solver)


def within(low: float, high: float, steps: int = STEPS, **more: Any) -> Way:
    """Guidance at some timesteps only."""
    named = f"{low:.0f}..{high:.0f}" + (", then kept" if more.get("kept") else "")
    return Way(_named(named, steps, more), steps, (low, high), **more)


def first_block(threshold: float, **more: Any) -> Way:
    """First-block caching."""
    return Way(_named(f"first block {threshold}", STEPS, more), threshold=threshold, **more)


def fewer(steps: int, **more: Any) -> Way:
    """Fewer steps."""
    return Way(_named("", steps, more), steps, **more)


def _named(what: str, steps: int, more: dict[str, Any]) -> str:
    counted = "" if what and steps == STEPS else f"{steps} steps"
    return ", ".join(part for part in (what, counted, more.get("solver", "")) if part)


EULER = {"solver": "flow-euler"}
WAYS = [
    *(fewer(steps) for steps in (20, 18, *range(16, 6, -1))),
    *(fewer(steps, **EULER) for steps in (20, 14, 10, 8)),
    *(within(low, 1000) for low in (400, 600, 700, 800, 900)),
    *(within(low, high) for low, high in ((0, 900), (600, 950), (700, 950))),
    *(within(600, 1000, steps) for steps in (16, 14, 12, 10)),
    *(within(700, 950, steps) for steps in (14, 12, 10)),
    *(within(600, 1000, steps, **EULER) for steps in (10, 8)),
    *(within(low, 1000, kept=True) for low in (600, 800)),
    *(Way(f"every {number}", every=number) for number in (2, 3, 10)),
    *(first_block(threshold) for threshold in (0.05, 0.1, 0.15, 0.2, 0.3)),
    first_block(0.1, **EULER),
]
OFFERED: dict[str, dict[str, Any]] = {  # arguments of `Pipeline.generate`
    "20 steps": {},
    "600..1000": {"guidance_interval": (600, 1000)},
    "16 steps": {"steps": 16},
    "600..1000, 10 steps": {"guidance_interval": (600, 1000), "steps": 10},
    "8 steps": {"steps": 8},
}


@dataclass
class Painted:
    """What a way painted, and which rows of the transformer it ran, of all pictures together."""

    pictures: list[Pixels] = field(default_factory=list)
    whole: int = 0  # rows that ran all blocks
    short: int = 0  # rows that ran the first block only
    right: list[bool] = field(default_factory=list)
    seconds: float = 0.0

    def cost(self, depth: int) -> float:
        """Rows computed over those of guided steps without skipping, if the model had `depth` blocks."""
        return (self.whole + self.short / depth) / (2 * STEPS * len(self.pictures))


class FirstBlockCache:
    """Hooks on a transformer's first and last block that replay what the blocks between them added.

    All blocks are run, so that a batch of pictures can be painted that decide differently; `skipped` says for which
    pictures the last run was in vain.
    """

    def __init__(self, blocks: nn.ModuleList, threshold: float) -> None:
        self.threshold = threshold
        self.skipped: Tensor | None = None
        self.residual: Tensor | None = None
        self.added: Tensor | None = None
        self.first: Tensor | None = None
        self.hooks = [blocks[0].register_forward_hook(self.begin), blocks[-1].register_forward_hook(self.end)]

    def begin(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Decide, from what the first block changes, whether the rest is needed."""
        residual = output - inputs[0]
        if self.residual is None:
            self.skipped = torch.zeros(len(residual) // 2, dtype=torch.bool)
        else:
            change = _by_picture(residual - self.residual) / _by_picture(self.residual)
            self.skipped = change < self.threshold
        self.residual = residual if self.residual is None else _choose(self.skipped, self.residual, residual)
        self.first = output

    def end(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """The last block's output, or for pictures that skip what it would be if nothing had changed."""
        assert self.first is not None and self.skipped is not None
        added = output - self.first
        self.added = added if self.added is None else _choose(self.skipped, self.added, added)
        return self.first + self.added

    def remove(self) -> None:
        """Leave the transformer as it was."""
        for hook in self.hooks:
            hook.remove()


def _by_picture(rows: Tensor) -> Tensor:
    """Mean magnitude of each picture, its negative and its positive row together."""
    return rows.abs().unflatten(0, (2, -1)).mean((0, 2, 3))


def _choose(skipped: Tensor, kept: Tensor, new: Tensor) -> Tensor:
    return torch.where(skipped.repeat(2)[:, None, None], kept, new)


class Walker:
    """Paints one batch of prompts in one way, and counts."""

    def __init__(self, pipeline: ReferencePipeline, way: Way, text: Text) -> None:
        self.pipeline, self.way, self.text = pipeline, way, text
        self.guidance = Guidance(pipeline.defaults.guidance, way.within)
        self.cache = FirstBlockCache(pipeline.transformer.blocks, way.threshold) if way.threshold else None
        self.kept: Latent | None = None  # what guidance added last
        self.index = self.whole = self.short = 0

    @torch.inference_mode()
    def paint(self, noise: Latent) -> Pixels:
        """Pictures from the noise given."""
        solver = make_solver(self.way.solver, self.way.steps, self.pipeline.transformer.config.flow_shift)
        try:
            *_, last = walk(solver, solver.start(noise), self.velocity)
        finally:
            if self.cache is not None:
                self.cache.remove()
        return self.pipeline.autoencoder.decode_picture(torch.from_numpy(last.latent)).numpy()

    def velocity(self, latent: Latent, timestep: float) -> Latent:
        """The guided velocity, or what stands for it."""
        index, self.index = self.index, self.index + 1
        active = self.guidance.active(timestep)
        if active and index % self.way.every == 0:
            negative, positive = self.run(latent, timestep, both=True)
            guided = self.guidance.combine(negative, positive)
            self.kept = guided - positive
            return guided
        positive = self.run(latent, timestep, both=False)[0]
        return positive + self.kept if self.kept is not None and (active or self.way.kept) else positive

    def run(self, latent: Latent, timestep: float, both: bool) -> list[Latent]:
        """What the transformer answers: to the negative prompts and the prompts, or to the prompts alone."""
        text_kv, mask = self.text
        rows = slice(None) if both else slice(len(latent), None)
        repeated = torch.from_numpy(np.concatenate([latent] * (1 + both)))
        times = torch.full((len(repeated),), timestep)
        velocity = self.pipeline.transformer(repeated, times, text_kv[:, :, rows], mask[rows]).numpy()
        skipped = 0 if self.cache is None else 2 * int(cast(Tensor, self.cache.skipped).sum())
        self.whole += len(repeated) - skipped
        self.short += skipped
        return np.split(velocity, 1 + both)


class Easel:
    """The prompts, read once, and the noise that each of their pictures starts from."""

    def __init__(self, pipeline: ReferencePipeline, asked: Sequence[Question]) -> None:
        self.pipeline, self.asked = pipeline, asked
        places = [range(i, min(i + TOGETHER, len(asked))) for i in range(0, len(asked), TOGETHER)]
        with torch.inference_mode():
            self.texts = [pipeline.encode([asked[place].prompt for place in part], "") for part in places]
        config = pipeline.transformer.config
        shape = (config.latent_channels, config.sample_size, config.sample_size)
        self.noise = [np.concatenate([Noise(place, 1, shape).draw() for place in part]) for part in places]

    def paint(self, way: Way) -> Painted:
        """Every prompt's picture, read."""
        painted, began = Painted(), time.process_time()
        for text, noise in zip(self.texts, self.noise, strict=True):
            walker = Walker(self.pipeline, way, text)
            painted.pictures.extend(walker.paint(noise))
            painted.whole += walker.whole
            painted.short += walker.short
        painted.seconds = time.process_time() - began
        painted.right = answers(self.asked, painted.pictures)
        return painted


def answers(asked: Sequence[Question], pictures: Sequence[Pixels]) -> list[bool]:
    """Which prompts their pictures answer."""
    return evaluate(lambda _, places: np.stack([pictures[place] for place in places]), asked)


def row(way: Way, painted: Painted, first: Painted) -> dict[str, Any]:
    """What is kept of a way; `first` is the model's own."""
    alike = [psnr(a, b) for a, b in zip(painted.pictures, first.pictures, strict=True)]
    return {
        "solver": way.solver,
        "rival": way.rival,
        **share(painted.right),
        "cost": {name: round(painted.cost(depth), 4) for name, depth in DEPTHS.items()},
        "rows_skipped": round(painted.short / (painted.short + painted.whole), 4),
        "psnr_median": round(median(alike), 2),
        "psnr_below_30": sum(each < 30 for each in alike),
        "cpu_seconds": round(painted.seconds, 1),
        "answers": "".join(str(int(each)) for each in painted.right),
    }


def share(right: Sequence[bool]) -> dict[str, Any]:
    """Right answers, and the 95 % interval of their share in per cent."""
    low, high = Score(sum(right), len(right)).interval()
    return {"right": sum(right), "asked": len(right), "interval": [round(100 * low, 1), round(100 * high, 1)]}


def compare(ways: dict[str, dict[str, Any]]) -> None:
    """Tell every way which rival costs no less, at nano's depth and at Sana's, and by how many points it is better."""
    for measured in ways.values():
        rivals = [(name, way) for name, way in ways.items() if way["rival"] and way["solver"] == measured["solver"]]
        measured["against"] = {
            model: _against(measured, [(name, way) for name, way in rivals if way["cost"][model] >= cost - 1e-9])
            for model, cost in measured["cost"].items()
            if not measured["rival"]
        }


def _against(measured: dict[str, Any], rivals: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    name, rival = min(rivals, key=lambda each: each[1]["cost"]["nano"])
    points = difference(*([each == "1" for each in way["answers"]] for way in (rival, measured)))
    return {"rival": name, "right": rival["right"], "points": [round(each, 1) for each in points]}


def offered(bundle: Path, asked: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """What the runtime makes of a bundle in the ways that it offers, in turn; CPU time of one thread."""
    right: dict[str, list[bool]] = {name: [] for name in OFFERED}
    seconds: dict[str, list[float]] = {name: [] for name in OFFERED}
    with Pipeline.open(bundle, threads=1) as pipeline:
        for place, question in enumerate(asked):
            for name, arguments in OFFERED.items():
                began = time.process_time()
                picture = pipeline.generate(question.prompt, seed=place, **arguments)
                seconds[name].append(time.process_time() - began)
                assert isinstance(picture, Picture)
                right[name] += answers([question], [picture.pixels])
    return {
        name: {
            **share(right[name]),
            "points": [round(each, 1) for each in difference(right["20 steps"], right[name])],
            "cpu_seconds": round(median(seconds[name]), 4),
        }
        for name in OFFERED
    }


def save(results: dict[str, Any]) -> None:
    """Keep what there is so far."""
    compare(results["ways"])
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(render(results), encoding="utf-8")


def measure(results: dict[str, Any], asked: Sequence[Question], ways: Sequence[Way]) -> None:
    """Paint in every way, beginning with the model's own, and keep each as it is done."""
    easel = Easel(ReferencePipeline.open("nano"), asked)
    first = easel.paint(WAYS[0])
    for way in ways:
        painted = first if way is WAYS[0] else easel.paint(way)
        results["ways"][way.name] = row(way, painted, first)
        print(f"{way.name}: {sum(painted.right)} of {len(asked)}, {painted.cost(DEPTHS['nano']):.2f}", flush=True)
        save(results)


def main() -> None:
    """Measure, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--each", type=int, default=56, help="prompts of every category")
    parser.add_argument("--only", nargs="*", choices=[way.name for way in WAYS], help="these ways, none: the runtime's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"ways": {}, "runtime": {}}
    if options.only is not None and RESULTS.is_file():
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
    ways = [way for way in WAYS if options.only is None or way.name in options.only]
    if ways:
        measure(results, questions(options.each), ways)
    results["bundle"] = open_bundle(options.bundle).digest
    results["runtime"] = offered(options.bundle, questions(options.each, OTHER_PROMPTS))
    save(results)


if __name__ == "__main__":
    main()
