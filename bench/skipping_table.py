"""The page that shows what `skipping.py` measured."""

from collections.abc import Sequence
from typing import Any

__all__ = ["render"]

HEAD = (
    "# Every way to skip work that was tried on nano",
    "",
    "`python bench/skipping.py BUNDLE` wrote this page; see [what follows](../performance.md#skipping-work). Where two",
    "costs stand, they are with nano's 6 blocks and with the 28 of Sana-0.6B, and so are the rivals. Points are the",
    "difference of shares, prompt by prompt, with its 95 % interval.",
    "",
    "| way | solver | cost | right | 95 % | like the 20 steps | rival: right | points better |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)
BETWEEN = (
    "",
    "The runtime with BUNDLE, other prompts, CPU time of one thread for a picture:",
    "",
    "| arguments | CPU time | right | 95 % | points better than 20 steps |",
    "| --- | --- | --- | --- | --- |",
)


def render(results: dict[str, Any]) -> str:
    """The page with both tables, in Markdown."""
    ways = [_line(name, way) for name, way in results["ways"].items()]
    runtime = [
        f"| {name} | {1000 * way['cpu_seconds']:.0f} ms | {_shown(way)} | {_points(way['points'])} |"
        for name, way in results["runtime"].items()
    ]
    return "\n".join([*HEAD, *ways, *BETWEEN, *runtime, ""])


def _line(name: str, way: dict[str, Any]) -> str:
    cost = " / ".join(f"{each:.2f}" for each in dict.fromkeys(way["cost"].values()))
    against = {each["rival"]: each for each in way["against"].values()}
    rivals = "; ".join(f"{rival}: {each['right']}" for rival, each in against.items()) or "-"
    points = "; ".join(_points(each["points"]) for each in against.values()) or "-"
    likeness = f"{way['psnr_median']:.0f} dB"
    return f"| {name} | {way['solver']} | {cost} | {_shown(way)} | {likeness} | {rivals} | {points} |"


def _shown(way: dict[str, Any]) -> str:
    return f"{way['right']} of {way['asked']} | {way['interval'][0]} … {way['interval'][1]}"


def _points(points: Sequence[float]) -> str:
    return f"{points[0]:+.1f} ({points[1]:+.1f} … {points[2]:+.1f})"
