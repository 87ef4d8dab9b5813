"""Paint a bundle's golden pictures on this machine and hold them against the reference's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sana_runtime.bundle import open_bundle
from sana_runtime.errors import BundleError, QualityError
from sana_runtime.manifest import GoldenRecord, Manifest
from sana_runtime.pipeline import Pipeline
from sana_runtime.progress import OnStep, StepEvent

from sana_export.steps import time_left

__all__ = ["Replay", "held_to", "psnr", "replay", "verify"]

IDENTICAL = 99.0  # decibels reported for pictures without any difference
MARGIN = 10.0  # that another backend may be worse than the one the record was first replayed on
STRICTEST = 80.0

OnReplay = Callable[[float, str], None]  # told the share of the whole that is done, and what is being done


@dataclass(frozen=True)
class Replay:
    """One golden picture as this machine paints it."""

    record: GoldenRecord
    psnr: float

    @property
    def passed(self) -> bool:
        """Whether the picture is near enough to the reference's."""
        return self.psnr >= self.record.least_psnr


def psnr(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures in decibels, at most 99."""
    error = float(np.square(ours.astype(np.float64) - theirs).mean())
    return IDENTICAL if error == 0 else min(IDENTICAL, float(10 * np.log10(255**2 / error)))


def _silent(share: float, message: str) -> None:
    """Tell nobody."""


def replay(path: Path, device: str = "auto", on_replay: OnReplay = _silent) -> Iterator[Replay]:
    """Every golden picture of the bundle at `path`, painted on `device`."""
    with Pipeline.open(path, device=device) as pipeline:
        bundle = open_bundle(path)
        for number, record in enumerate(bundle.manifest.golden):
            picture = pipeline.generate(
                record.prompt,
                negative=record.negative,
                size=record.size,
                steps=record.steps,
                guidance=record.guidance,
                seed=record.seed,
                solver=record.solver,
                on_step=_telling(on_replay, number, len(bundle.manifest.golden)),
            )
            assert not isinstance(picture, list)
            yield Replay(record, psnr(picture.pixels, bundle.golden(record)[1]))


def _telling(on_replay: OnReplay, number: int, total: int) -> OnStep:
    """Hand on the steps of picture `number`, counted from 0."""

    def told(event: StepEvent) -> None:
        painted = {"text": 0.0, "paint": event.index / event.total, "decode": 1.0}[event.stage]
        where = f"golden picture {number + 1} of {total}: {event.stage} {event.index}/{event.total}"
        on_replay((number + painted) / total, where + time_left(event.seconds_left))

    return told


def verify(path: Path, device: str = "auto", on_replay: OnReplay = _silent) -> list[Replay]:
    """Read every byte of a bundle and replay its golden record; BundleError when either is not as it should be."""
    on_replay(0.0, "reading every byte")
    open_bundle(path).verify()
    replays = list(replay(path, device, on_replay))
    for done in replays:
        if not done.passed:
            raise BundleError(
                f"{path}: on {device} the golden picture of seed {done.record.seed} is {done.psnr:.1f} dB from the "
                f"reference's, must be {done.record.least_psnr:.1f}; build the bundle again, or try another --device"
            )
    return replays


def held_to(manifest: Manifest, stage: Path, least: float) -> Manifest:
    """The manifest with the record's thresholds: a little under what the bundle itself reaches here."""
    worst = min((done.psnr for done in replay(stage)), default=IDENTICAL)
    if worst < least:
        raise QualityError(
            f"the bundle's golden picture is {worst:.1f} dB from the reference's, must be {least:.0f} at "
            f"{manifest.precision}; nothing was published: choose a higher --precision"
        )
    held = float(np.floor(min(STRICTEST, max(least, worst - MARGIN))))
    return replace(manifest, golden=tuple(replace(record, least_psnr=held) for record in manifest.golden))
