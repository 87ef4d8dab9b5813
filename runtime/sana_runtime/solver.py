"""From noise to a latent: the solvers that walk along the flow a model describes.

Every solver here keeps the latent on the straight line between picture and noise that the models were trained on,

    latent = (1 - sigma) * clean + sigma * noise,

so a velocity always gives the same estimate of the picture, clean = latent - sigma * velocity, and the solvers differ
in one thing only: how they go from there to the next, smaller sigma. They hold the grid and nothing else: one value
may serve many threads. Grids are float64, as the originals have them; latents are float32, always.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sana_runtime.errors import UsageError

__all__ = ["SOLVERS", "FlowDpm", "FlowEuler", "Latent", "Scm", "Solver", "Step", "make_solver", "walk"]

Latent = NDArray[np.float32]

TRAINED_TIMESTEPS = 1000
SHIFTS = (0.01, 100.0)  # outside of these, neighbouring sigmas of a long grid are no longer different float32 numbers
SPRINT_START, SPRINT_MIDDLE = 1.57080, 1.3  # angles; the checkpoints were distilled for these two


@dataclass(frozen=True)
class Step:
    """Where a walk stands after one evaluation of the model."""

    index: int
    total: int
    latent: Latent  # what the next step starts from; after the last step, the result
    clean: Latent  # the picture as the solver sees it now: what a preview shows


class Solver(ABC):
    """A grid of noise levels, and the way from each to the next."""

    name: ClassVar[str]
    usual_steps: ClassVar[int]
    draws_noise: ClassVar[bool] = False  # whether every step needs fresh noise

    def __init__(self, sigmas: NDArray[np.float64], timesteps: NDArray[np.float64]) -> None:
        self.sigmas = [float(sigma) for sigma in (*np.asarray(sigmas, np.float32), 0)]  # steps + 1, down to exactly 0
        self.timesteps: NDArray[np.float32] = timesteps.astype(np.float32)  # what the model is fed, one a step

    def start(self, noise: Latent, picture: Latent | None = None, first: int = 0) -> Latent:
        """The latent that step `first` starts from: unit noise, or `picture` under the noise that this step expects."""
        noise = np.asarray(noise, np.float32)
        if picture is None:
            return noise
        return (1 - self.sigmas[first]) * np.asarray(picture, np.float32) + self.sigmas[first] * noise

    def first_step(self, strength: float) -> int:
        """Where to start so that the last `strength` (above 0, up to 1) of the steps repaint a picture."""
        if not 0 < strength <= 1:
            raise UsageError(f"strength {strength}: how much of a picture is repainted lies above 0 and up to 1")
        steps = len(self.timesteps)
        return int(steps - min(steps * strength, steps))

    def denoise(self, latent: Latent, velocity: Latent, index: int) -> Latent:
        """The clean latent that `velocity` points at from step `index`."""
        return latent - self.sigmas[index] * np.asarray(velocity, np.float32)

    @abstractmethod
    def advance(
        self, index: int, latent: Latent, clean: Latent, previous: Latent | None, fresh: Latent | None
    ) -> Latent:
        """The latent after step `index`; `previous` is the step before's `clean`, `fresh` is new unit noise."""


class FlowEuler(Solver):
    """First order: a straight line to the next noise level."""

    name = "flow-euler"
    usual_steps = 28

    def __init__(self, steps: int = usual_steps, shift: float = 3.0) -> None:
        _check(self.name, steps, shift)
        # The published sampler shifts its last time twice: once for the range, once with all the others.
        sigmas = _shifted(np.linspace(1, _shifted(1 / TRAINED_TIMESTEPS, shift), steps), shift)
        super().__init__(sigmas, sigmas * TRAINED_TIMESTEPS)

    def advance(
        self, index: int, latent: Latent, clean: Latent, previous: Latent | None, fresh: Latent | None
    ) -> Latent:
        """Keep sigma'/sigma of the latent; the rest is the clean estimate."""
        kept = self.sigmas[index + 1] / self.sigmas[index]
        return kept * latent + (1 - kept) * clean


class FlowDpm(Solver):
    """Second order: DPM-Solver++ (2M, midpoint), which also uses the estimate of the step before.

    The first step has no such estimate, and the last has an infinite log-SNR ahead: both are first order.
    """

    name = "flow-dpm"
    usual_steps = 20

    def __init__(self, steps: int = usual_steps, shift: float = 3.0) -> None:
        _check(self.name, steps, shift)
        levels = 1 - np.linspace(1, 1 / TRAINED_TIMESTEPS, steps + 1)
        sigmas = _shifted(levels, shift)[:0:-1]
        super().__init__(sigmas, np.trunc(sigmas * TRAINED_TIMESTEPS))

    def advance(
        self, index: int, latent: Latent, clean: Latent, previous: Latent | None, fresh: Latent | None
    ) -> Latent:
        """An Euler step towards an estimate that is extrapolated half a step ahead, in log-SNR."""
        before, sigma, after = self.sigmas[index - 1], self.sigmas[index], self.sigmas[index + 1]
        kept = after / sigma
        if previous is not None and after > 0:
            ratio = (_log_snr(after) - _log_snr(sigma)) / (_log_snr(sigma) - _log_snr(before))
            clean = clean + 0.5 * ratio * (clean - previous)
        return kept * latent + (1 - kept) * clean


class Scm(Solver):
    """The consistency sampler of Sana-Sprint: jump to the clean latent, then noise it again, less.

    Sprint's papers write it with angles t (TrigFlow): latent' = cos t * clean + sin t * noise. Divided by
    cos t + sin t that is the line of this module, at sigma = sin t / (cos t + sin t), which is also the model's
    timestep; its input scaling, output conversion and sigma_data all cancel.
    """

    name = "scm"
    usual_steps = 2
    draws_noise = True

    def __init__(self, steps: int = usual_steps) -> None:
        _check(self.name, steps)
        path = [SPRINT_START, SPRINT_MIDDLE] if steps == 2 else np.linspace(SPRINT_START, 0, steps + 1)[:-1]
        angles = np.asarray(path, np.float32).astype(np.float64)
        sigmas = np.sin(angles) / (np.cos(angles) + np.sin(angles))
        self._unit = float(1 / (np.cos(angles[0]) + np.sin(angles[0])))
        super().__init__(sigmas, sigmas)

    def start(self, noise: Latent, picture: Latent | None = None, first: int = 0) -> Latent:
        """As every solver's; pure noise is brought from the circle onto the line."""
        start = super().start(noise, picture, first)
        return self._unit * start if picture is None else start

    def advance(
        self, index: int, latent: Latent, clean: Latent, previous: Latent | None, fresh: Latent | None
    ) -> Latent:
        """The clean estimate under `fresh` noise of the next level; on the last step the noise counts for nothing."""
        if fresh is None:
            raise UsageError(f"{self.name} draws fresh noise at every step; give walk() a function that makes it")
        after = self.sigmas[index + 1]
        return (1 - after) * clean + after * np.asarray(fresh, np.float32)


SOLVERS: dict[str, type[FlowDpm] | type[FlowEuler] | type[Scm]] = {
    solver.name: solver for solver in (FlowDpm, FlowEuler, Scm)
}


def make_solver(name: str, steps: int | None = None, shift: float | None = None) -> Solver:
    """The solver called `name`; without `steps` or `shift`, the usual ones."""
    if name not in SOLVERS:
        raise UsageError(f"{name!r} is not a solver; choose from {', '.join(SOLVERS)}")
    kind = SOLVERS[name]
    steps = kind.usual_steps if steps is None else steps
    if shift is None:
        return kind(steps)
    if issubclass(kind, Scm):
        raise UsageError(f"{name} has no flow shift; leave it out, or choose {FlowDpm.name} or {FlowEuler.name}")
    return kind(steps, shift)


def walk(
    solver: Solver,
    latent: Latent,
    velocity: Callable[[Latent, float], Latent],
    *,
    fresh: Callable[[], Latent] | None = None,
    first: int = 0,
) -> Iterator[Step]:
    """Go from `latent`, which `solver.start` made, to the picture: one Step for each evaluation of `velocity`.

    `velocity` is given the latent and the timestep. `fresh` makes unit noise of the latent's shape; a solver that draws
    noise draws it once a step, after the model has run, on the last step too: seeds then mean what they mean elsewhere.
    """
    total = len(solver.timesteps)
    clean: Latent | None = None
    for index in range(first, total):
        previous, clean = clean, solver.denoise(latent, velocity(latent, float(solver.timesteps[index])), index)
        noise = fresh() if fresh is not None and solver.draws_noise else None
        latent = solver.advance(index, latent, clean, previous, noise)
        yield Step(index, total, latent, clean)


def _shifted(sigma: NDArray[np.float64] | float, shift: float) -> NDArray[np.float64]:
    """Noise levels moved towards noise: large pictures need more of their steps there."""
    return np.asarray(shift * sigma / (1 + (shift - 1) * sigma))


def _log_snr(sigma: float) -> float:
    return math.log(1 - sigma) - math.log(sigma)


def _check(name: str, steps: int, shift: float = 1.0) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= TRAINED_TIMESTEPS:
        raise UsageError(f"{name}: steps {steps!r}: give a whole number from 1 to {TRAINED_TIMESTEPS}")
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not SHIFTS[0] <= shift <= SHIFTS[1]:
        raise UsageError(f"{name}: flow shift {shift!r}: give a number from {SHIFTS[0]} to {SHIFTS[1]:.0f}")
