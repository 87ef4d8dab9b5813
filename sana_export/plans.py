"""Which pictures INT8 is calibrated on, tried on and judged by."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from sana_calibration.painter import Plan
from sana_calibration.prompts import PromptSet, cut_off, default_prompts, hold_out, read_prompts
from sana_runtime.bundle import Bundle
from sana_runtime.guidance import Guidance
from sana_runtime.manifest import Manifest
from sana_runtime.signature import COMPRESSION
from sana_runtime.solver import make_solver

from sana_export.origin import BUILT_IN

__all__ = ["Effort", "Plans", "effort_for", "make_plans"]

HELD_OUT_SEED = 1_000_000  # calibration's pictures begin at seed 0
SCENES = 200  # of nano's kind, in each of its two prompt sets


@dataclass(frozen=True)
class Effort:
    """How much is painted. What a picture costs decides it, not what would be nice to know."""

    samples: int
    held_out: int
    trials: int
    trial_steps: int
    longest: int  # pixels along a side of what is recorded and judged
    trial_longest: int
    half: bool  # recorded with bf16 products: ranges hardly notice, and a step takes half the time


SMALL = Effort(samples=8, held_out=8, trials=1, trial_steps=6, longest=512, trial_longest=512, half=False)
LARGE = Effort(samples=4, held_out=3, trials=1, trial_steps=2, longest=512, trial_longest=256, half=True)
SMALL_MODEL = 4096  # depth times width, up to which a model is small; Sana 0.6B has 32,256


@dataclass(frozen=True)
class Plans:
    """Everything that is painted for one calibration."""

    recording: Plan
    trial: Plan
    gate: Plan
    half: bool  # whether recording multiplies in bf16
    prompts: PromptSet  # that were drawn from
    findings: tuple[str, ...]  # what was left out or cut off, and why


def make_plans(bundle: Bundle, file: Path | None = None, samples: int | None = None) -> Plans:
    """Plans for a bundle: prompts from `file` or the set that suits the model, held-out ones to judge by."""
    manifest = bundle.manifest
    effort = _effort(manifest)
    usual, others = _usual_sets(manifest)
    given = read_prompts(file) if file is not None else usual
    prompts, judged = hold_out(given, others, effort.held_out)
    count = samples or (min(effort.samples, len(prompts.items)) if file is not None else effort.samples)
    defaults = manifest.defaults
    drawn = prompts.draw(count)
    size, trial_size = (_size(manifest, longest) for longest in (effort.longest, effort.trial_longest))
    guidance = Guidance(defaults.guidance)
    solver = make_solver(defaults.solver, defaults.steps, defaults.shift)
    quick = make_solver(defaults.solver, min(effort.trial_steps, defaults.steps), defaults.shift)
    return Plans(
        recording=Plan(drawn, solver, size, guidance),
        trial=Plan(drawn[: effort.trials], quick, trial_size, guidance),
        gate=Plan(judged.draw(effort.held_out), solver, size, guidance, seed=HELD_OUT_SEED),
        half=effort.half,
        prompts=prompts,
        findings=(*prompts.findings, *cut_off(drawn, bundle.tokenizer(), bundle.prompt_rules())),
    )


def effort_for(depth: int, width: int) -> Effort:
    """What a model of so many blocks, each so many channels wide, is worth."""
    return SMALL if depth * width <= SMALL_MODEL else LARGE


def _effort(manifest: Manifest) -> Effort:
    text_kv = next(spec for spec in manifest.parts["transformer"].inputs if spec.name == "text_kv")
    depth, width = text_kv.shape[0], text_kv.shape[-1]
    return effort_for(depth, width) if isinstance(depth, int) and isinstance(width, int) else LARGE


def _size(manifest: Manifest, longest: int) -> tuple[int, int]:
    """The bundle's usual size, or the largest square of at most `longest` pixels that it paints."""
    usual = manifest.defaults.size
    if max(usual) <= longest:
        return usual
    least = max(axis.min for _, axis in manifest.latent.axes() if axis.name != "batch") * COMPRESSION
    return (max(least, longest),) * 2


def _usual_sets(manifest: Manifest) -> tuple[PromptSet, PromptSet]:
    """The set to draw from, and one to judge by, which may be the same: items are then held out of it."""
    if manifest.parts["transformer"].source.repository != BUILT_IN:
        return default_prompts(), default_prompts()
    return _drawn_scenes(held_out=False), _drawn_scenes(held_out=True)


def _drawn_scenes(*, held_out: bool) -> PromptSet:
    """What nano can paint: captions of scenes from one side of its split."""
    from sana_reference.nano.captions import Caption, captions
    from sana_reference.nano.split import scenes

    rng = np.random.default_rng(int(held_out))

    def told() -> Iterator[tuple[Caption, ...]]:
        for scene in islice(scenes(rng, held_out=held_out), SCENES):
            yield captions(scene, rng)

    return PromptSet(tuple(told()))
