"""Ask for pictures in words, read what came, count how often it is what was asked: a table like GenEval's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import sqrt

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from sana_reference.nano.captions import Telling, describe
from sana_reference.nano.scenes import Scene
from sana_reference.nano.scorer import Found, read_picture
from sana_reference.nano.split import scenes
from sana_reference.nano.vocabulary import COUNTS, PLACES

__all__ = ["CATEGORIES", "Paint", "Question", "Score", "evaluate", "is_answered", "questions", "table"]

Pixels = NDArray[np.uint8]
Paint = Callable[[Sequence[str], Sequence[int]], Pixels]
"""Pictures (B, H, W, 3) for B prompts and B seeds."""

CLEARLY = 0.06  # of the side: how far apart, or from the middle, a position must be
BATCH = 32

CATEGORIES: dict[str, Telling] = {
    "single object": Telling(),
    "two objects": Telling(),
    "counting": Telling(colour=True),
    "colours": Telling(colour=True),
    "position": Telling(colour=True, relation=True),
    "colour attribution": Telling(colour=True),
}


@dataclass(frozen=True)
class Question:
    """A prompt, and the scene it was said of: what the picture must show as far as the prompt tells it."""

    category: str
    prompt: str
    scene: Scene

    @property
    def wanted(self) -> list[tuple[str, str | None]]:
        """Kind and, if told, colour of every shape."""
        telling = CATEGORIES[self.category]
        return [(thing.kind, thing.colour if telling.colour else None) for thing in self.scene.things]


@dataclass(frozen=True)
class Score:
    """How many of how many were right."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.asked

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's interval for the share, 95 % by default."""
        n, p = self.asked, self.share
        centre, spread = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)


def questions(each: int, seed: int = 7) -> list[Question]:
    """`each` held-out prompts of every category."""
    rng = np.random.default_rng(seed)
    return [question for category in CATEGORIES for question in islice(_of(category, rng), each)]


def _of(category: str, rng: Generator) -> Iterator[Question]:
    for scene in scenes(rng, held_out=True):
        if _suits(category, scene):
            yield Question(category, describe(scene, CATEGORIES[category], rng), scene)


def _suits(category: str, scene: Scene) -> bool:
    """Whether a scene can be asked about in this category."""
    if category == "counting":
        return scene.relation in COUNTS
    if category in ("single object", "colours"):
        return scene.relation in PLACES
    if category == "two objects":  # "a star and a star" would be a count
        return len({thing.kind for thing in scene.things}) == 2
    if category == "position":
        return scene.relation not in COUNTS
    return len(scene.things) == 2 and scene.relation not in COUNTS


def is_answered(question: Question, found: Sequence[Found]) -> bool:
    """Whether a picture shows exactly the shapes asked for, where they were asked for."""
    left = list(found)
    matched = []
    for kind, colour in question.wanted:
        fitting = [f for f in left if f.kind == kind and colour in (None, f.colour)]
        if not fitting:
            return False
        matched.append(fitting[0])
        left.remove(fitting[0])
    if left:
        return False
    return not CATEGORIES[question.category].relation or _stands(question.scene.relation, matched)


def _stands(relation: str, found: Sequence[Found]) -> bool:
    """Whether one shape is in its place, or the first in its relation to the second."""
    if relation in PLACES:
        column, row = PLACES[relation]
        return _in_third(found[0].x, column) and _in_third(found[0].y, row)
    first, second = found
    across, down = second.x - first.x, second.y - first.y
    ahead, aside = (across, down) if relation in ("left of", "right of") else (down, across)
    ahead = ahead if relation in ("left of", "above") else -ahead
    return ahead > CLEARLY and ahead >= abs(aside)


def _in_third(value: float, third: int) -> bool:
    """Whether a coordinate from 0 to 1 lies before, about or after the middle."""
    return abs(value - 0.5) < 2 * CLEARLY if third == 0 else (value - 0.5) * third > CLEARLY


def evaluate(
    paint: Paint, asked: Sequence[Question], on_batch: Callable[[int, Pixels], None] = lambda done, pictures: None
) -> list[bool]:
    """Whether each question is answered by the picture painted for it, with its place as the seed."""
    answers: list[bool] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        pictures = paint([question.prompt for question in part], range(start, start + len(part)))
        answers += [is_answered(q, read_picture(picture)) for q, picture in zip(part, pictures, strict=True)]
        on_batch(len(answers), pictures)
    return answers


def table(asked: Sequence[Question], answers: Sequence[bool]) -> dict[str, Score]:
    """The score of every category, and `overall`: the mean over categories would hide their sizes, so all together."""
    pairs = list(zip(asked, answers, strict=True))
    by_category = {
        name: Score(sum(a for q, a in pairs if q.category == name), sum(q.category == name for q, _ in pairs))
        for name in CATEGORIES
    }
    return {
        **{name: score for name, score in by_category.items() if score.asked},
        "overall": Score(sum(answers), len(answers)),
    }
