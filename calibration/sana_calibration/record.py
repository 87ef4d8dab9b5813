"""Paint prompts with the float model, step by step as users will, and remember what flows into its products."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from sana_runtime.conditioning import Condition, Conditioner
from sana_runtime.errors import QualityError
from sana_runtime.guidance import Guidance
from sana_runtime.painting import Painting
from sana_runtime.progress import Clock, StepEvent
from sana_runtime.request import Request
from sana_runtime.session import Arrays, Session
from sana_runtime.signature import Signature
from sana_runtime.solver import Solver

from sana_calibration.recording_graph import LARGEST, POWER, SAMPLE, SAMPLED
from sana_calibration.recording_state import load_state, save_state
from sana_calibration.statistics import KEPT_TOKENS, TokenStatistics

__all__ = ["Plan", "RecordProgress", "Recording", "Subject", "file_sha256", "record"]

SAMPLED_TOKENS = 16  # of each picture, step and guidance branch


@dataclass(frozen=True)
class Plan:
    """Which pictures are painted, and how."""

    prompts: tuple[str, ...]
    solver: Solver
    size: tuple[int, int]  # height, width
    guidance: Guidance
    negative: str = ""
    seed: int = 0

    def key(self, model: str, products: Iterable[str]) -> str:
        """Differs whenever the recording would."""
        content = (
            model,
            sorted(products),
            self.prompts,
            (self.solver.name, self.solver.sigmas, self.solver.timesteps.tolist()),
            (self.size, self.guidance.scale, self.guidance.interval, self.negative, self.seed),
            (SAMPLED_TOKENS, KEPT_TOKENS),
        )
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class RecordProgress:
    """Steps done of all steps of all prompts, and the time that the rest takes at this pace."""

    done: int
    total: int
    seconds_left: float | None


@dataclass(frozen=True)
class Recording:
    """Statistics of every observed product's input, by the product's name."""

    tokens: Mapping[str, TokenStatistics]
    reused: int  # prompts that an earlier run had painted


@dataclass(frozen=True)
class Subject:
    """The model that is recorded."""

    session: Session  # runs the recording graph
    channels: Mapping[str, int]  # what `write_recording_graph` returned
    signature: Signature  # of the transformer
    conditioner: Conditioner
    sha256: str  # of whatever the recording depends on: the files of the transformer and of the text parts

    @property
    def guided_by_input(self) -> bool:
        """Whether guidance is an input of the model, as Sprint has it, and no second branch."""
        return any(spec.name == "guidance" for spec in self.signature.inputs)


def record(
    subject: Subject, plan: Plan, state: Path, on_progress: Callable[[RecordProgress], None] = lambda progress: None
) -> Recording:
    """Paint the plan's prompts and return the statistics of what flowed into the products.

    After each prompt everything is stored in `state`: a later call with the same subject and plan goes on from there,
    and ends with the same statistics.
    """
    key = plan.key(subject.sha256, subject.channels)
    done, tokens = load_state(state, key) or (0, _nothing_yet(subject))
    total, steps = len(plan.prompts), len(plan.solver.timesteps)
    clock = Clock((total - done) * steps)
    negative = _negative(subject, plan) if done < total else None  # once: the conditioner need not remember it
    for index in range(done, total):

        def report(event: StepEvent, before: int = index * steps) -> None:
            now = before + event.index
            on_progress(RecordProgress(now, total * steps, clock.left(now - done * steps)))

        rng = np.random.default_rng([plan.seed, index])
        recorder = _Recorder(subject.session, tokens, plan.prompts[index], rng)
        request = Request(recorder.prompt, plan.negative, plan.size, plan.guidance, plan.seed + index, plan.solver, 1)
        painting = Painting(recorder.run, {"transformer": subject.signature}, request, on_step=report)
        painting.denoise(subject.conditioner.prompt(recorder.prompt), negative)
        save_state(state, key, index + 1, tokens)
    return Recording(tokens, done)


def _nothing_yet(subject: Subject) -> dict[str, TokenStatistics]:
    return {name: TokenStatistics.empty(channels) for name, channels in subject.channels.items()}


def _negative(subject: Subject, plan: Plan) -> Condition | None:
    """What the second branch attends to, where there is one."""
    if plan.guidance.scale <= 1 or subject.guided_by_input:
        return None
    return subject.conditioner.negative(plan.negative)


@dataclass
class _Recorder:
    """Stands in for the transformer while one prompt is painted."""

    session: Session
    tokens: Mapping[str, TokenStatistics]
    prompt: str
    rng: Generator

    def run(self, part: str, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """The velocity, taken from a run that observes."""
        height, width = feeds["latent"].shape[2:]
        positions = np.sort(self.rng.integers(height * width, size=SAMPLED_TOKENS))
        answer = self.session.run({**feeds, SAMPLED: positions})
        for name, statistics in self.tokens.items():
            self._refuse_infinite(f"the input of {name}", answer[name + POWER], feeds)
            sample = answer[name + SAMPLE].reshape(-1, len(statistics.largest))
            statistics.observe(answer[name + LARGEST], sample, self.rng)
        self._refuse_infinite("the velocity", answer["velocity"], feeds)
        return {"velocity": answer["velocity"]}

    def _refuse_infinite(self, what: str, values: NDArray[Any], feeds: Mapping[str, NDArray[Any]]) -> None:
        if not np.isfinite(values).all():
            raise QualityError(
                f"{what} is not finite at timestep {feeds['timestep'][0]:g} of {self.prompt[:60]!r}; the float model "
                "itself fails there: build it in fp32 or bf16, or leave this prompt out"
            )


def file_sha256(*files: Path) -> str:
    """One hash of the files' contents, in this order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
