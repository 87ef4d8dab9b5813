"""Paint prompts with the float model, step by step as users will, and remember what flows into its products."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from sana_runtime.conditioning import RunPart
from sana_runtime.errors import QualityError
from sana_runtime.progress import Clock, StepEvent
from sana_runtime.session import Arrays
from sana_runtime.signature import TensorSpec

from sana_calibration.painter import Painter
from sana_calibration.recording_graph import LARGEST, POWER, SAMPLE, SAMPLED
from sana_calibration.recording_state import load_state, save_state
from sana_calibration.statistics import KEPT_TOKENS, TokenStatistics

__all__ = ["SAMPLED_INPUT", "RecordProgress", "Recording", "file_sha256", "record"]

SAMPLED_TOKENS = 16  # of each picture, step and guidance branch
SAMPLED_INPUT = TensorSpec(SAMPLED, "int64", (SAMPLED_TOKENS,))  # what a recording graph takes besides


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


def record(
    run: RunPart,
    channels: Mapping[str, int],
    painter: Painter,
    state: Path,
    on_progress: Callable[[RecordProgress], None] = lambda progress: None,
) -> Recording:
    """Paint the plan's prompts and return the statistics of what flowed into the products.

    `run` runs the recording graph, `channels` is what `write_recording_graph` returned. After each prompt
    everything is stored in `state`: a later call with the same model and plan goes on from there, and ends with the
    same statistics.
    """
    plan = painter.plan
    key = plan.key(painter.model.sha256, sorted(channels), SAMPLED_TOKENS, KEPT_TOKENS)
    empty = {name: TokenStatistics.empty(size) for name, size in channels.items()}
    done, tokens = load_state(state, key) or (0, empty)
    total, steps = len(plan.prompts), len(plan.solver.timesteps)
    clock = Clock((total - done) * steps)
    for index in range(done, total):

        def report(event: StepEvent, before: int = index * steps) -> None:
            now = before + event.index
            on_progress(RecordProgress(now, total * steps, clock.left(now - done * steps)))

        recorder = _Recorder(run, tokens, plan.prompts[index], np.random.default_rng([plan.seed, index]))
        painter.paint(index, recorder.run, report)
        save_state(state, key, index + 1, tokens)
    return Recording(tokens, done)


@dataclass
class _Recorder:
    """Stands in for the transformer while one prompt is painted."""

    observing: RunPart
    tokens: Mapping[str, TokenStatistics]
    prompt: str
    rng: Generator

    def run(self, part: str, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """The velocity, taken from a run that observes."""
        height, width = feeds["latent"].shape[2:]
        positions = np.sort(self.rng.integers(height * width, size=SAMPLED_TOKENS))
        answer = self.observing(part, {**feeds, SAMPLED: positions})
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
