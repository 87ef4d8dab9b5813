"""The names that scenes, captions and the scorer share: shapes, colours, sizes, places, relations."""

__all__ = ["BACKGROUNDS", "COLOURS", "COUNTS", "KINDS", "OPPOSITE", "PLACES", "RELATIONS", "SIZES", "TEXTURES", "Rgb"]

Rgb = tuple[int, int, int]

KINDS = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart", "crescent", "bar")

COLOURS: dict[str, Rgb] = {
    "red": (220, 40, 40),
    "orange": (245, 135, 20),
    "yellow": (245, 220, 40),
    "green": (40, 160, 70),
    "cyan": (40, 200, 220),
    "blue": (40, 80, 220),
    "purple": (130, 50, 175),
    "pink": (250, 130, 190),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
    "white": (252, 252, 252),
}

BACKGROUNDS: dict[str, Rgb] = {
    "white": (242, 242, 240),
    "gray": (150, 152, 156),
    "beige": (226, 208, 176),
    "mint": (186, 224, 203),
    "dark": (38, 44, 68),
}

TEXTURES = ("plain", "gradient", "striped", "dotted")

SIZES: dict[str, float] = {"small": 16.0, "medium": 20.0, "large": 25.0}
"""Radius in 128ths of the picture's side."""

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))

PLACES: dict[str, tuple[int, int]] = {
    "top left corner": (-1, -1),
    "top": (0, -1),
    "top right corner": (1, -1),
    "left": (-1, 0),
    "center": (0, 0),
    "right": (1, 0),
    "bottom left corner": (-1, 1),
    "bottom": (0, 1),
    "bottom right corner": (1, 1),
}
"""Where a lone shape stands: third of the picture across and down, from -1 to 1."""

COUNTS: dict[str, int] = {"two": 2, "three": 3, "four": 4}
