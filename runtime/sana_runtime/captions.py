"""Several captions of one picture, each with a score, and the draw of one of them as Sana was trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

__all__ = ["Caption", "draw_caption"]


@dataclass(frozen=True)
class Caption:
    """A text and how well it tells what is to be seen; the higher the score, the likelier it is drawn."""

    text: str
    score: float


def draw_caption(choices: Sequence[Caption], temperature: float, rng: Generator) -> str:
    """One caption, with probability proportional to exp(score / temperature)."""
    scores = np.array([caption.score for caption in choices]) / temperature
    weights = np.exp(scores - scores.max())
    return choices[int(rng.choice(len(choices), p=weights / weights.sum()))].text
