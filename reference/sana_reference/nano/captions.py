"""Say what a scene shows, in several ways, each with a score.

The score of a caption is the share of the scene's facts that it states, standing where a picture-text
model's score stands in the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass

from numpy.random import Generator
from sana_runtime.captions import Caption, draw_caption

from sana_reference.nano.scenes import Scene, Thing
from sana_reference.nano.vocabulary import COUNTS, OPPOSITE

__all__ = ["Caption", "captions", "describe", "draw_caption"]

WORDS = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "ring", "hoop"),
    "cross": ("cross", "cross", "plus sign"),
    "diamond": ("diamond", "diamond", "rhombus"),
    "heart": ("heart",),
    "crescent": ("crescent", "crescent", "crescent moon"),
    "bar": ("bar", "bar", "wide rectangle"),
    "purple": ("purple", "purple", "violet"),
    "cyan": ("cyan", "cyan", "turquoise"),
    "gray": ("gray", "grey"),
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "above", "over", "higher than"),
    "below": ("below", "below", "under", "beneath"),
    "top left corner": ("in the top left corner", "in the upper left corner", "at the top left"),
    "top right corner": ("in the top right corner", "in the upper right corner", "at the top right"),
    "bottom left corner": ("in the bottom left corner", "in the lower left corner", "at the bottom left"),
    "bottom right corner": ("in the bottom right corner", "in the lower right corner", "at the bottom right"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "center": ("in the center", "in the middle"),
    "two": ("two", "2", "a pair of"),
    "three": ("three", "3"),
    "four": ("four", "4"),
}
PLURALS = {"cross": "crosses", "plus sign": "plus signs", "rhombus": "rhombuses"}
SIDES = {  # where the first and the second shape stand, when both are placed
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
OPENINGS = ("", "", "", "", "a picture of ", "an image of ", "a drawing of ")


@dataclass(frozen=True)
class Telling:
    """What a caption mentions."""

    colour: bool = False
    size: bool = False
    relation: bool = False
    background: bool = False


TELLINGS = (
    Telling(colour=True, size=True, relation=True, background=True),
    Telling(colour=True, relation=True),
    Telling(colour=True),
    Telling(relation=True),
    Telling(colour=True, relation=True, background=True),
    Telling(),
)


def captions(scene: Scene, rng: Generator) -> tuple[Caption, ...]:
    """One caption for every way of telling, its words and their order chosen anew by `rng`."""
    return tuple(Caption(describe(scene, telling, rng), _score(scene, telling)) for telling in TELLINGS)


def describe(scene: Scene, telling: Telling, rng: Generator) -> str:
    """A caption that mentions what `telling` says."""
    if scene.relation in COUNTS:
        text = _group(scene, telling, rng)
    elif len(scene.things) == 1:
        text = _single(scene, telling, rng)
    else:
        text = _pair(scene, telling, rng)
    return text + (_background(scene, rng) if telling.background else "")


def _score(scene: Scene, telling: Telling) -> float:
    """Share of the scene's facts told: kinds always, then colours, sizes, the relation, the background."""
    things = len(scene.things) if scene.relation not in COUNTS else 1
    told = [1] * things + [telling.colour, telling.size] * things + [telling.relation, telling.background]
    if scene.relation in COUNTS:
        told[-2] = True  # a group is always counted
    return sum(told) / len(told)


def _word(name: str, rng: Generator) -> str:
    return str(rng.choice(WORDS[name])) if name in WORDS else name


def _noun(thing: Thing, telling: Telling, rng: Generator) -> str:
    """Size, colour and kind, as far as they are told; a medium size is never worth a word."""
    size = [_word(thing.size, rng)] if telling.size and thing.size != "medium" else []
    colour = [_word(thing.colour, rng)] if telling.colour else []
    return " ".join([*size, *colour, _word(thing.kind, rng)])


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(noun: str) -> str:
    for singular, plural in PLURALS.items():
        if noun.endswith(singular):
            return noun.removesuffix(singular) + plural
    return noun + "s"


def _single(scene: Scene, telling: Telling, rng: Generator) -> str:
    noun = _a(_noun(scene.things[0], telling, rng))
    if not telling.relation:
        return f"{rng.choice(OPENINGS)}{noun}"
    place = _word(scene.relation, rng)
    orders = (f"{rng.choice(OPENINGS)}{noun} {place}", f"{place} there is {noun}", f"{place}, {noun}")
    return str(rng.choice(orders, p=(0.6, 0.2, 0.2)))


def _group(scene: Scene, telling: Telling, rng: Generator) -> str:
    nouns = _plural(_noun(scene.things[0], telling, rng))
    return f"{rng.choice(OPENINGS)}{_word(scene.relation, rng)} {nouns}"


def _pair(scene: Scene, telling: Telling, rng: Generator) -> str:
    """Two shapes, told from either one's side."""
    things, relation = scene.things, scene.relation
    if rng.random() < 0.5:
        things, relation = things[::-1], OPPOSITE[relation]
    first, second = (_a(_noun(thing, telling, rng)) for thing in things)
    if not telling.relation:
        return f"{rng.choice(OPENINGS)}{first} {rng.choice(('and', 'and', 'with'))} {second}"
    here, there = SIDES[relation]
    orders: tuple[Callable[[], str], ...] = (
        lambda: f"{rng.choice(OPENINGS)}{first} {_word(relation, rng)} {second}",
        lambda: f"{first} {here} and {second} {there}",
        lambda: f"{here} {first}, {there} {second}",
        lambda: f"{_word(relation, rng)} {second} there is {first}",
    )
    return orders[int(rng.choice(4, p=(0.64, 0.14, 0.11, 0.11)))]()


def _background(scene: Scene, rng: Generator) -> str:
    """Where it all stands."""
    texture = "" if scene.texture == "plain" else f"{scene.texture} "
    return f" {rng.choice(('on', 'on', 'against'))} {_a(f'{texture}{_word(scene.background, rng)} background')}"
