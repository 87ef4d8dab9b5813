"""Draw scenes: one to four anti-aliased shapes on a background, and know exactly what they show."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import cos, pi, sin

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sana_reference.nano.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    KINDS,
    OPPOSITE,
    PLACES,
    RELATIONS,
    SIZES,
    TEXTURES,
)

__all__ = ["Scene", "Thing", "draw", "random_scene", "visible"]

Pixels = NDArray[np.uint8]
Point = tuple[float, float]

SIDE = 128  # of the square in which scenes are measured
SUPERSAMPLING = 4
CENTRES = (32.0, 64.0, 96.0)  # where shapes stand, across and down: on corners of latent cells, learnt in few hours
TURNS = 8  # directions of a gradient
CONTRAST = 95.0  # least distance in RGB between a shape and its background


@dataclass(frozen=True)
class Thing:
    """One shape; positions and radius are in 128ths of the picture's side."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `relation` is a place (one shape), a count (all alike) or a relation (two shapes)."""

    things: tuple[Thing, ...]
    relation: str
    background: str
    texture: str
    phase: float = 0.0  # turns the gradient

    @property
    def roles(self) -> tuple[tuple[str, str, str], ...]:
        """(colour, kind, relation) of every shape, each seen from that shape."""
        relations = (self.relation, OPPOSITE.get(self.relation, self.relation))
        return tuple((thing.colour, thing.kind, relations[min(i, 1)]) for i, thing in enumerate(self.things))


def visible(colour: str, background: str) -> bool:
    """Whether a shape of this colour stands out from this background."""
    return bool(np.linalg.norm(np.subtract(COLOURS[colour], BACKGROUNDS[background])) > CONTRAST)


# ---- outlines: closed polygons within the unit circle, y downwards; a ring is an outline with a hole


def _regular(corners: int, turn: float = -0.5, inner: float = 1.0) -> list[Point]:
    """A regular polygon; every other corner at `inner` of the radius."""
    angles = [(2 * i / corners + turn) * pi for i in range(corners)]
    return [(cos(a) * (1.0, inner)[i % 2], sin(a) * (1.0, inner)[i % 2]) for i, a in enumerate(angles)]


def _box(half_width: float, half_height: float) -> list[Point]:
    w, h = half_width, half_height
    return [(-w, -h), (w, -h), (w, h), (-w, h)]


def _cross(arm: float = 0.33) -> list[Point]:
    a = arm
    corner = [(-a, -1.0), (a, -1.0), (a, -a)]
    return [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in corner]


def _heart() -> list[Point]:
    turns = [2 * pi * i / 64 for i in range(64)]
    return [(sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16.0 - 0.1) for t in turns]


def _crescent() -> list[Point]:
    """The unit disc less a disc to its right."""
    bite_x, bite_r = 0.52, 0.78
    across = (1 - bite_r**2 + bite_x**2) / (2 * bite_x)
    tip = float(np.arccos(across))
    bite_tip = float(np.arctan2(sin(tip), across - bite_x))
    outer = [(cos(a), sin(a)) for a in np.linspace(tip, 2 * pi - tip, 48)]
    inner = [(bite_x + bite_r * cos(a), bite_r * sin(a)) for a in np.linspace(2 * pi - bite_tip, bite_tip, 40)]
    return [(x + 0.22, y) for x, y in outer + inner]


_OUTLINES: dict[str, Callable[[], list[Point]]] = {
    "circle": lambda: [(0.92 * x, 0.92 * y) for x, y in _regular(64)],
    "square": lambda: _box(0.84, 0.84),
    "triangle": lambda: [(x, y + 0.2) for x, y in _regular(3)],
    "star": lambda: _regular(10, inner=0.42),
    "ring": lambda: _regular(64),
    "cross": _cross,
    "diamond": lambda: _regular(4),
    "heart": _heart,
    "crescent": _crescent,
    "bar": lambda: _box(1.0, 0.36),
}
_HOLES = {"ring": 0.56}


@cache
def _outline(kind: str) -> list[Point]:
    return _OUTLINES[kind]()


def _coverage(kind: str, centre: Point, radius: float, side: int) -> NDArray[np.float32]:
    """Share of every pixel of a `side`² patch that the shape covers; lengths in pixels of that patch."""
    s = SUPERSAMPLING
    patch = Image.new("L", (side * s, side * s))
    pen = ImageDraw.Draw(patch)
    for outline, scale, ink in ((_outline(kind), radius, 255), (_regular(64), radius * _HOLES.get(kind, 0.0), 0)):
        if scale:
            pen.polygon([((centre[0] + x * scale) * s, (centre[1] + y * scale) * s) for x, y in outline], fill=ink)
    return np.asarray(patch.reduce(s), np.float32) / np.float32(255)


@cache
def _grid(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coordinates of pixel centres, from -0.5 to 0.5 across and down."""
    line = ((np.arange(side, dtype=np.float32) + 0.5) / side) - 0.5
    return np.meshgrid(line, line)


def _backdrop(scene: Scene, side: int) -> NDArray[np.float32]:
    """The background: its colour, brightened and darkened a little by its texture."""
    x, y = _grid(side)
    colour = np.array(BACKGROUNDS[scene.background], np.float32)
    turn = 2 * pi * scene.phase
    shades: dict[str, Callable[[], NDArray[np.float32]]] = {
        "plain": lambda: np.zeros_like(x),
        "gradient": lambda: 44 * (x * cos(turn) + y * sin(turn)),
        "striped": lambda: 9 * np.sin(2 * pi * 8 * y),
        "dotted": lambda: 11 * np.sin(2 * pi * 4 * x) * np.sin(2 * pi * 4 * y),
    }
    backdrop: NDArray[np.float32] = colour + shades[scene.texture]()[..., None]
    return backdrop


def draw(scene: Scene, side: int = SIDE) -> Pixels:
    """Paint a scene: uint8 (side, side, 3)."""
    unit = side / SIDE
    picture = _backdrop(scene, side)
    for thing in scene.things:
        x, y, radius = (value * unit for value in (thing.x, thing.y, thing.radius))
        reach = int(radius * 1.3) + 2
        left, top = (max(int(c) - reach, 0) for c in (x, y))
        patch = picture[top : top + 2 * reach, left : left + 2 * reach]
        alpha = _coverage(thing.kind, (x - left, y - top), radius, 2 * reach)[: len(patch), : patch.shape[1], None]
        patch += alpha * (np.array(COLOURS[thing.colour], np.float32) - patch)
    pixels: Pixels = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    return pixels


# ---- random scenes


def _colours_on(background: str) -> list[str]:
    return [colour for colour in COLOURS if visible(colour, background)]


def _radius(rng: Generator, sizes: tuple[str, ...]) -> tuple[str, float]:
    size = str(rng.choice(sizes))
    return size, SIZES[size]


def _alone(rng: Generator, look: tuple[str, str], place: str) -> tuple[Thing, ...]:
    """One shape in one of the nine places."""
    size, radius = _radius(rng, tuple(SIZES))
    x, y = (CENTRES[1 + third] for third in PLACES[place])
    return (Thing(look[1], look[0], size, x, y, radius),)


def _apart(rng: Generator, count: int) -> list[Point]:
    """Some of the nine places, none beside another: every shape has its latent cells to itself."""
    while True:
        chosen = rng.choice(9, count, replace=False)
        points = [(CENTRES[place % 3], CENTRES[place // 3]) for place in chosen]
        if all(max(abs(a - x), abs(b - y)) >= SIDE / 2 for (a, b), (x, y) in combinations(points, 2)):
            return points


def _group(rng: Generator, look: tuple[str, str], count: str) -> tuple[Thing, ...]:
    """Two to four shapes that look the same."""
    size, radius = _radius(rng, ("small", "medium"))
    return tuple(Thing(look[1], look[0], size, x, y, radius) for x, y in _apart(rng, COUNTS[count]))


def _pair(rng: Generator, looks: list[tuple[str, str]], relation: str) -> tuple[Thing, ...]:
    """Two shapes at the ends of a row or a column, the first in `relation` to the second."""
    ends = CENTRES[::2] if relation in ("left of", "above") else CENTRES[::-2]
    across = float(rng.choice(CENTRES))
    flat = relation in ("left of", "right of")
    things = []
    for (colour, kind), along in zip(looks, ends, strict=True):
        size, radius = _radius(rng, tuple(SIZES))
        things.append(Thing(kind, colour, size, *((along, across) if flat else (across, along)), radius))
    return tuple(things)


def _look(rng: Generator, colours: list[str]) -> tuple[str, str]:
    return str(rng.choice(colours)), str(rng.choice(KINDS))


def random_scene(rng: Generator) -> Scene:
    """Any scene: a lone shape (3 in 10), a group (3 in 10) or a pair (4 in 10)."""
    background = str(rng.choice(list(BACKGROUNDS)))
    colours = _colours_on(background)
    choice = rng.random()
    if choice < 0.3:
        relation = str(rng.choice(list(PLACES)))
        things = _alone(rng, _look(rng, colours), relation)
    elif choice < 0.6:
        relation = str(rng.choice(list(COUNTS)))
        things = _group(rng, _look(rng, colours), relation)
    else:
        relation = str(rng.choice(RELATIONS))
        looks = [_look(rng, colours) for _ in range(2)]
        while looks[0] == looks[1]:
            looks[1] = _look(rng, colours)
        things = _pair(rng, looks, relation)
    return Scene(things, relation, background, str(rng.choice(TEXTURES)), int(rng.integers(TURNS)) / TURNS)
