"""Draw what `scale.py` measured: time and memory over size, with the slopes that theory gives."""

from pathlib import Path
from typing import Any

import numpy as np

PANELS = (  # title, what is below, what is beside, lines
    ("self-attention alone", "tokens", "CPU seconds", ("linear_attention_by_tokens", "softmax_attention_by_tokens")),
    ("two blocks of Sana-0.6B, INT8", "tokens a picture", "CPU seconds", ("step_by_tokens",)),
    (
        "the same at 512²",
        "pictures, rows of text, steps (these at 256²)",
        "CPU seconds",
        ("step_by_batch", "step_by_text", "steps"),
    ),
    (
        "decoding, full and a quarter as wide",
        "pixels",
        "CPU seconds",
        tuple(f"{width}decode_{way}_by_pixels" for width in ("", "narrow_") for way in ("whole", "tiled")),
    ),
    (
        "peak memory",
        "pixels",
        "GB",
        (
            "step_bytes_by_pixels",
            *(f"{width}decode_{way}_bytes_by_pixels" for width in ("", "narrow_") for way in ("whole", "tiled")),
        ),
    ),
    ("making an INT8 transformer", "parameters", "CPU seconds", ("build_by_parameters",)),
    ("its peak memory", "parameters", "GB", ("build_bytes_by_parameters",)),
)
UNEXPECTED = ("text", "bytes")  # theory gives these no slope: most of it does not grow


def slope(times: dict[int, float], last: int = 3) -> float:
    """Of log time over log size, for the largest sizes: small ones are all overhead."""
    sizes, seconds = (np.log(list(values)[-last:]) for values in (times.keys(), times.values()))
    return round(float(np.polyfit(sizes, seconds, 1)[0]), 2)


def plot(found: dict[str, Any], file: Path) -> None:
    """Every panel that something is known of."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    known = [panel for panel in PANELS if any(len(found.get(name, {})) > 1 for name in panel[3])]
    if not known:  # a slope takes two sizes
        return
    rows = -(-len(known) // 4)
    figure, axes = pyplot.subplots(rows, 4, figsize=(19, 4.1 * rows), squeeze=False)
    for axis, panel in zip(axes.flat, known, strict=False):
        _draw(axis, panel, found)
    for axis in axes.flat[len(known) :]:
        axis.axis("off")
    figure.suptitle("dotted: linear, and quadratic for softmax")
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def _draw(axis: Any, panel: tuple[str, str, str, tuple[str, ...]], found: dict[str, Any]) -> None:
    title, below, beside, names = panel
    unit = 1e9 if beside == "GB" else 1
    for name in (name for name in names if len(found.get(name, {})) > 1):
        values = {int(size): value / unit for size, value in found[name].items()}
        (line,) = axis.loglog(list(values), list(values.values()), "o-", label=f"{name} (slope {slope(values)})")
        if not any(word in name for word in UNEXPECTED):
            power, last = 2 if name.startswith("softmax") else 1, max(values)
            expected = [values[last] * (size / last) ** power for size in values]
            axis.loglog(list(values), expected, ":", color=line.get_color())
    axis.set(title=title, xlabel=below, ylabel=beside)
    axis.legend(fontsize=7)
