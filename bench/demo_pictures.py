"""Paint the README's picture: six prompts, each under what a bundle made of it.

python bench/demo_pictures.py BUNDLE [OUTPUT]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sana_runtime.picture import Picture
from sana_runtime.pipeline import Pipeline

PROMPTS = (
    "a red circle above a blue square",
    "a yellow star on a dark background",
    "two green hearts",
    "an orange ring in the top right corner",
    "a purple cross left of a pink diamond",
    "three cyan crescents",
)
SCALE, MARGIN, TEXT = 2, 8, 18


def labelled(picture: Picture, prompt: str) -> Image.Image:
    """A picture, enlarged, over its prompt."""
    image = Image.fromarray(picture.pixels)
    image = image.resize((SCALE * image.width, SCALE * image.height), Image.Resampling.LANCZOS)
    card = Image.new("RGB", (image.width + 2 * MARGIN, image.height + 2 * MARGIN + TEXT), "white")
    card.paste(image, (MARGIN, MARGIN))
    ImageDraw.Draw(card).text((MARGIN, image.height + MARGIN + 3), prompt, fill="black")
    return card


def main(bundle: str, output: str = "docs/images/demo.png") -> None:
    """Paint all prompts and put them side by side."""
    with Pipeline.open(bundle) as pipeline:
        cards = []
        for prompt in PROMPTS:
            picture = pipeline.generate(prompt, seed=1)
            assert isinstance(picture, Picture)
            cards.append(np.asarray(labelled(picture, prompt)))
    rows = [np.concatenate(cards[i : i + 3], axis=1) for i in (0, 3)]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(output, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
