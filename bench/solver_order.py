"""Draw how the error of each flow solver falls with the number of steps: docs/images/solver-order.png.

The flow is one whose solution is known. Data are a mixture of two Gaussians on a line, so the velocity field is exact
and nonlinear; and because trajectories on a line never cross, each keeps its quantile, which gives the exact end point.
Every walk starts exactly on the flow and asks the field at the exact noise level. (Sana itself is asked at whole
timesteps: a property of the model, not of the solver.) The measure is the root mean square error over 64 trajectories.

Two stretches of the same grids are shown. Over the middle half Flow-DPM's slope is 2. Over the whole grid it is about
1.5 at these counts and creeps up (1.7 at 500 steps, 1.8 at 2,000): at both ends the grid is even in sigma, not in the
log-SNR in which the solver extrapolates, and the errors that leaves sum to ln(steps)/steps^2. It still is far ahead
of Euler. The same arithmetic as the reference implementations', so the same errors.
"""

import math
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sana_runtime.solver import FlowDpm, FlowEuler, Latent, Solver, walk

__all__ = ["end_error", "slope"]

WEIGHTS, MEANS, WIDTHS = (np.array(row) for row in ([0.6, 0.4], [-0.6, 0.5], [0.4, 0.5]))
COUNTS = (8, 16, 32, 64, 128, 256)
PICTURE = Path(__file__).parent.parent / "docs/images/solver-order.png"

Array = NDArray[np.float64]


def components(x: Array, sigma: float) -> tuple[Array, Array, Array]:
    """Each Gaussian's standard score, spread and responsibility for the points `x` at noise level `sigma`."""
    spread = np.sqrt(((1 - sigma) * WIDTHS) ** 2 + sigma**2)
    score = (x[:, None] - (1 - sigma) * MEANS) / spread
    likelihood = WEIGHTS * np.exp(-0.5 * score**2) / spread
    return score, spread, likelihood / likelihood.sum(axis=1, keepdims=True)


def velocity(x: Array, sigma: float) -> Array:
    """The mean of noise minus data over everything that could have become `x`."""
    score, spread, share = components(x, sigma)
    data = MEANS + (1 - sigma) * WIDTHS**2 / spread * score
    noise = sigma / spread * score
    return np.asarray((share * (noise - data)).sum(axis=1))


def quantile(probability: Array, sigma: float) -> Array:
    """The points below which `probability` of the mixture lies, by bisection."""
    low, high = np.full_like(probability, -10.0), np.full_like(probability, 10.0)
    erf = np.vectorize(math.erf)
    for _ in range(60):
        middle = (low + high) / 2
        score, _, _ = components(middle, sigma)
        above = (WEIGHTS * 0.5 * (1 + erf(score / math.sqrt(2)))).sum(axis=1) > probability
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.asarray((low + high) / 2)


def end_error(solver: Solver, points: int = 64, *, middle: bool = False) -> float:
    """Root mean square distance between where `solver` ends and where the flow does, over all or half of its grid."""
    steps = len(solver.timesteps)
    first, end = (steps // 4, steps * 3 // 4) if middle else (0, steps)
    probability = (np.arange(points) + 0.5) / points
    start, goal = (quantile(probability, solver.sigmas[index]) for index in (first, end))
    levels = iter(solver.sigmas[first:])

    def exact(latent: Latent, _: float) -> Latent:
        return velocity(latent.astype(np.float64), next(levels)).astype(np.float32)

    *_, last = islice(walk(solver, start.astype(np.float32), exact, first=first), end - first)
    return float(np.sqrt(np.mean((last.latent - goal) ** 2)))


def slope(errors: list[float], counts: tuple[int, ...]) -> float:
    """The order of convergence: minus the slope of log error over log steps."""
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def draw(path: Path) -> None:
    """Write the plot and print its figures."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.6, 3.8), dpi=110)
    for kind, middle, marker in ((FlowEuler, False, "o"), (FlowDpm, False, "s"), (FlowDpm, True, "^")):
        errors = [end_error(kind(count), middle=middle) for count in COUNTS]
        order = slope(errors[3:], COUNTS[3:])
        label = f"{kind.name}, {'middle half' if middle else 'whole grid'}"
        axes.loglog(COUNTS, errors, marker=marker, label=f"{label}: slope {order:.2f}")
        print(
            label, f"order {order:.3f}", *(f"{count}:{error:.2e}" for count, error in zip(COUNTS, errors, strict=True))
        )
    axes.set(
        xlabel="model evaluations",
        ylabel="RMS error of the end point",
        title="Analytic flow, shift 3; slopes from 64 steps on",
    )
    axes.set_xticks(COUNTS, [str(count) for count in COUNTS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(PICTURE)
