"""How well a bundle follows prompts, read from the pixels of what it paints."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sana_reference.nano import evaluation
from sana_runtime.picture import Picture
from sana_runtime.pipeline import Pipeline

from sana_export.painting import interruptible

__all__ = ["Settings", "evaluate", "render"]

SHEET = 48  # pictures on a contact sheet
COLUMNS = 8


@dataclass(frozen=True)
class Settings:
    """How much is asked, and how it is painted; None means the bundle's own."""

    each: int
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    sheet: Path | None = None
    device: str = "auto"

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `Pipeline.generate`."""
        named = {name: getattr(self, name) for name in ("steps", "guidance", "guidance_interval")}
        return {name: value for name, value in named.items() if value is not None}


def evaluate(bundle: Path, settings: Settings, on_pictures: Callable[[int, int], None]) -> dict[str, evaluation.Score]:
    """The share of held-out prompts that the bundle's pictures answer, by category."""
    asked = evaluation.questions(settings.each)
    kept: list[NDArray[np.uint8]] = []
    painted = 0
    with Pipeline.open(bundle, device=settings.device) as pipeline:
        on_pictures(painted, len(asked))

        def paint(prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.uint8]:
            nonlocal painted
            pictures = []
            for prompt, seed in zip(prompts, seeds, strict=True):
                pictures.append(_picture(pipeline, prompt, seed, settings))
                painted += 1
                on_pictures(painted, len(asked))
            kept.extend(pictures[: SHEET - len(kept)])
            return np.stack(pictures)

        answers = evaluation.evaluate(paint, asked)
    if settings.sheet is not None:
        Picture(contact_sheet(kept)).save(settings.sheet)
    return evaluation.table(asked, answers)


def _picture(pipeline: Pipeline, prompt: str, seed: int, settings: Settings) -> NDArray[np.uint8]:
    picture = interruptible(pipeline, lambda: pipeline.generate(prompt, seed=seed, **settings.arguments()))
    assert isinstance(picture, Picture)
    return picture.pixels


def contact_sheet(pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures of one size side by side, black where the last row ends early."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // COLUMNS)
    sheet = np.zeros((rows * height, min(COLUMNS, len(pictures)) * width, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // COLUMNS * height, i % COLUMNS * width
        sheet[y : y + height, x : x + width] = picture
    return sheet


def render(scores: dict[str, evaluation.Score]) -> str:
    """The table with 95 % confidence intervals."""
    lines = [f"{'':<20}{'right':>7}{'of':>6}{'share':>8}   95 % interval"]
    for name, score in scores.items():
        low, high = score.interval()
        lines.append(f"{name:<20}{score.right:>7}{score.asked:>6}{score.share:>8.1%}   {low:.1%} … {high:.1%}")
    return "\n".join(lines)
