"""Measure what each layer's rounding does to finished latents, and leave in float what does too much."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sana_runtime.conditioning import RunPart
from sana_runtime.session import Arrays
from sana_runtime.solver import Latent

from sana_calibration.painter import Painter
from sana_calibration.remembering import recall, remember
from sana_calibration.trial_graph import IN_INT8

__all__ = ["Effects", "Trial", "Verdict", "fall_back", "measure_effects"]

Effects = dict[str, float]  # by product: how far finished latents move, relative to their size, when it alone is INT8
OnMeasured = Callable[[int, int], None]  # told how many of how many measurements are done


@dataclass(frozen=True)
class Verdict:
    """Which products are INT8, what the others did, and how far the latents are from the float ones in the end."""

    products: tuple[str, ...]
    left: Mapping[str, str]  # by product: why it stays float
    error: float


class Trial:
    """Paints with any choice of INT8 layers; the float pictures are painted once."""

    def __init__(self, run: RunPart, names: Sequence[str], painter: Painter) -> None:
        """`run` runs the graph whose products `make_trial_graph` called `names`."""
        self._run = run
        self.names = tuple(names)
        self.painter = painter
        self._float: list[Latent] = []

    def error(self, products: Collection[str]) -> float:
        """Distance of all finished latents from the float ones, relative to their size; inf if one is not finite."""
        self._float = self._float or self._paint(())
        squares = sum(float(np.square(a - b).sum()) for a, b in zip(self._paint(products), self._float, strict=True))
        size = sum(float(np.square(latent).sum()) for latent in self._float)
        return math.sqrt(squares / size) if math.isfinite(squares) else math.inf

    def _paint(self, products: Collection[str]) -> list[Latent]:
        switches = np.array([name in products for name in self.names])

        def run(part: str, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
            return self._run(part, {**feeds, IN_INT8: switches})

        return [self.painter.paint(index, run) for index in range(len(self.painter.plan.prompts))]


def measure_effects(trial: Trial, state: Path, on_measured: OnMeasured = lambda done, total: None) -> Effects:
    """The effect of each product alone; those that an earlier, stopped call has measured are read from `state`."""
    key = trial.painter.plan.key(trial.painter.model.sha256, trial.names)
    effects: Effects = recall(state, key) or {}
    for name in trial.names:
        if name not in effects:
            effects[name] = trial.error({name})
            remember(state, key, effects)
        on_measured(len(effects), len(trial.names))
    return {name: effects[name] for name in trial.names}


def fall_back(trial: Trial, effects: Mapping[str, float], budget: float) -> Verdict:
    """Take products back to float, that of the largest effect first, until the error is within `budget`."""
    kept = sorted(trial.names, key=lambda name: effects[name])
    error, left = trial.error(kept), dict[str, str]()
    while error > budget and kept:
        worst = kept.pop()
        left[worst] = (
            f"alone it moves finished latents by {effects[worst]:.2%}; with it they moved by {error:.2%}, "
            f"more than the budget of {budget:.2%}"
        )
        error = trial.error(kept)
    return Verdict(tuple(name for name in trial.names if name in set(kept)), left, error)
