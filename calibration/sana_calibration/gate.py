"""Compare the INT8 model with the float one on prompts that calibration never saw, and refuse it when it is worse."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sana_runtime.conditioning import RunPart
from sana_runtime.errors import QualityError
from sana_runtime.session import Arrays
from sana_runtime.solver import Latent

from sana_calibration.likeness import cosine, psnr, relative_error, ssim
from sana_calibration.painter import Painter

__all__ = ["Contender", "Evidence", "Limits", "compare", "enforce"]

Decode = Callable[[Latent], NDArray[np.uint8]]  # (1, C, h, w) to (1, H, W, 3)
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
SHOWN = 6  # pairs of pictures that are kept, for people to look at


@dataclass(frozen=True)
class Contender:
    """A painter, the transformer that paints for it, as float and INT8 have a caption part each, and the decoder."""

    painter: Painter
    run: RunPart
    decode: Decode
    _painted: dict[int, tuple[Latent, list[Arrays]]] = field(default_factory=dict, repr=False)
    _pictures: dict[int, NDArray[np.uint8]] = field(default_factory=dict, repr=False)

    def path(self, index: int) -> tuple[Latent, list[Arrays]]:
        """A prompt's finished latent, and every velocity on the way to it; painted once, however often it is asked."""
        if index not in self._painted:
            velocities: list[Arrays] = []
            self._painted[index] = self.painter.paint(index, _remembering(self.run, velocities)), velocities
        return self._painted[index]

    def picture(self, index: int) -> NDArray[np.uint8]:
        """What that latent shows (H, W, 3); decoded once."""
        if index not in self._pictures:
            self._pictures[index] = self.decode(self.path(index)[0])[0]
        return self._pictures[index]


@dataclass(frozen=True)
class Limits:
    """What INT8 must reach."""

    velocity_error: float = 0.05  # at most, at every timestep
    latent_cosine: float = 0.98  # at least, in the median
    psnr: float = 32.0  # dB, at least, in the median
    ssim: float = 0.9  # at least, in the median


@dataclass
class Evidence:
    """What was measured, prompt by prompt."""

    velocity_errors: dict[float, list[float]] = field(default_factory=dict)  # by timestep, on the float model's path
    latent_cosines: list[float] = field(default_factory=list)
    psnrs: list[float] = field(default_factory=list)
    ssims: list[float] = field(default_factory=list)
    pictures: list[Pair] = field(default_factory=list)  # the first ones, by the reference and by the candidate

    def complaints(self, limits: Limits) -> tuple[str, ...]:
        """One line for each limit that is not kept."""
        found = [
            f"velocity error {error:.3f} at timestep {timestep:g}, allowed {limits.velocity_error:g}"
            for timestep, error in self._by_timestep().items()
            if not error <= limits.velocity_error
        ]
        for name, values, least in (
            ("latent cosine", self.latent_cosines, limits.latent_cosine),
            ("PSNR", self.psnrs, limits.psnr),
            ("SSIM", self.ssims, limits.ssim),
        ):
            if values and not median(values) >= least:
                found.append(f"median {name} {median(values):.4g}, required {least:g}")
        return tuple(found)

    def excess(self, limits: Limits) -> float:
        """How many times smaller errors must become: as the velocity asks, or half where pictures alone fall short."""
        worst = max(self._by_timestep().values(), default=0.0) / limits.velocity_error
        return worst if worst > 1 else 2.0

    def _by_timestep(self) -> dict[float, float]:
        return {timestep: median(errors) for timestep, errors in self.velocity_errors.items()}


def compare(
    reference: Contender,
    candidate: Contender,
    on_prompt: Callable[[int, int], None] = lambda i, n: None,
) -> Evidence:
    """Paint every prompt of the plan with both, and once more with the candidate led along the reference's path."""
    assert reference.painter.plan == candidate.painter.plan, "both must paint the same"
    evidence = Evidence()
    total = len(reference.painter.plan.prompts)
    for index in range(total):
        expected, velocities = reference.path(index)
        candidate.painter.paint(index, _led(candidate.run, velocities, evidence))
        actual = candidate.painter.paint(index, candidate.run)
        evidence.latent_cosines.append(cosine(actual, expected))
        if np.isfinite(actual).all():
            pictures = reference.picture(index), candidate.decode(actual)[0]
            evidence.psnrs.append(psnr(*pictures))
            evidence.ssims.append(ssim(*pictures))
            evidence.pictures.extend([pictures][: SHOWN - len(evidence.pictures)])
        else:
            evidence.psnrs.append(-math.inf)
            evidence.ssims.append(-1.0)
        on_prompt(index + 1, total)
    return evidence


def enforce(evidence: Evidence, limits: Limits) -> None:
    """Raise QualityError, with every limit that is not kept, when there is one."""
    complaints = evidence.complaints(limits)
    if complaints:
        raise QualityError(
            f"INT8 fails the quality gate: {'; '.join(complaints)}; choose another --precision, calibrate with more "
            "--samples, or see what it paints with --force"
        )


def _remembering(run: RunPart, answers: list[Arrays]) -> RunPart:
    def remember(part: str, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        answers.append(run(part, feeds))
        return answers[-1]

    return remember


def _led(run: RunPart, answers: list[Arrays], evidence: Evidence) -> RunPart:
    """Measures the candidate's velocity, but answers with the reference's: errors do not add up from step to step."""
    remaining = iter(answers)

    def lead(part: str, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        expected = next(remaining)
        error = relative_error(run(part, feeds)["velocity"], expected["velocity"])
        evidence.velocity_errors.setdefault(float(feeds["timestep"][0]), []).append(error)
        return expected

    return lead
