"""Draw docs/images/nano-*.png from docs/measurements/nano.json and the logs that training left.

python bench/nano_plots.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from sana_reference.nano.evaluation import Score

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = json.loads((DOCS / "measurements" / "nano.json").read_text())
LOGS = {name: DOCS / "measurements" / f"nano-{name}.jsonl" for name in ("autoencoder", "hardened", "transformer")}
COLOURS = {"flow-dpm": "tab:blue", "flow-euler": "tab:orange"}


def score_of(measured: dict[str, Any]) -> Score:
    """The score that a measurement holds."""
    return Score(measured["right"], measured["asked"])


def figure(name: str, panels: tuple[Callable[[Axes], None], ...]) -> None:
    """Save a row of panels as one small PNG."""
    canvas, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.0), squeeze=False)
    for panel, axis in zip(panels, axes[0], strict=True):
        panel(axis)
        axis.grid(alpha=0.3)
    canvas.tight_layout()
    canvas.savefig(DOCS / "images" / f"nano-{name}.png", dpi=90)
    pyplot.close(canvas)


def logged(name: str, field: str) -> tuple[list[float], list[float]]:
    """Steps and values of one field of one log."""
    lines = [json.loads(line) for line in LOGS[name].read_text().splitlines()] if LOGS[name].is_file() else []
    found = {
        line["step"]: line[field] for line in lines if field in line
    }  # a resumed run repeats steps: the last counts
    return list(found), list(found.values())


def autoencoder_curve(axis: Axes) -> None:
    """PSNR on held-out scenes while the autoencoder learns."""
    for name in ("autoencoder", "hardened"):
        axis.plot(*logged(name, "psnr"), marker="o", markersize=3, label=name)
    axis.legend()
    axis.set(xlabel="autoencoder, steps of 24 pictures", ylabel="PSNR on held-out scenes, dB")


def transformer_curve(axis: Axes) -> None:
    """The flow-matching loss while the transformer and the text encoder learn."""
    axis.plot(*logged("transformer", "loss"))
    axis.set(xlabel="transformer, steps of 128 captions", ylabel="squared error of the velocity", yscale="log")


def answers_curve(axis: Axes) -> None:
    """Right answers to a few held-out prompts while the transformer learns."""
    steps, shares = logged("transformer", "overall")
    axis.plot(steps, [100 * share for share in shares], marker="o", markersize=3)
    axis.set(xlabel="transformer, steps of 128 captions", ylabel="right of 48 held-out prompts, %", ylim=(0, 100))


def guidance_curve(axis: Axes) -> None:
    """Scores by guidance, every category."""
    scales = [float(scale) for scale in RESULTS["guidance"]]
    for category in next(iter(RESULTS["guidance"].values())):
        shares = [100 * score_of(scores[category]).share for scores in RESULTS["guidance"].values()]
        axis.plot(
            scales, shares, marker="o", markersize=3, label=category, linewidth=2.5 if category == "overall" else 1
        )
    axis.set(xlabel="guidance", ylabel="right answers, %")
    axis.legend(fontsize=6)


def quality_by_steps(axis: Axes) -> None:
    """Overall score by solver and steps, with intervals."""
    for solver, lengths in RESULTS["solvers"].items():
        scores = [score_of(measured) for measured in lengths.values()]
        shares = [100 * score.share for score in scores]
        spans = [
            [100 * abs(score.share - end) for score in scores for end in [score.interval()[side]]] for side in (0, 1)
        ]
        axis.errorbar(list(map(int, lengths)), shares, yerr=spans, color=COLOURS[solver], label=solver, capsize=2)
    axis.set(xlabel="steps", ylabel="right answers, %")
    axis.legend()


def distance_by_steps(axis: Axes) -> None:
    """Distance from the 200-step pictures by solver and steps."""
    for solver, lengths in RESULTS["solvers"].items():
        distances = [measured["distance"] for measured in lengths.values()]
        axis.plot(list(map(int, lengths)), distances, marker="o", color=COLOURS[solver], label=solver)
    axis.set(xlabel="steps", ylabel="RMS distance from 200 steps, levels", yscale="log")
    axis.legend()


def main() -> None:
    """Draw every figure."""
    figure("training", (autoencoder_curve, transformer_curve, answers_curve))
    figure("guidance", (guidance_curve,))
    figure("solvers", (quality_by_steps, distance_by_steps))


if __name__ == "__main__":
    main()
