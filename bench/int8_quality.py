"""What INT8 costs nano: how often pictures show what held-out prompts say, float and INT8, and how alike they are.

    python bench/int8_quality.py FLOAT_BUNDLE INT8_BUNDLE [--each 84] [--device cpu --device onnxruntime]

Both bundles paint the same prompts with the same seeds, `--each` in each of six categories. The difference of the
shares is paired: its interval counts only prompts that one bundle answers and the other does not. Results go to
docs/measurements/int8-quality.json.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sana_reference.nano.evaluation import Question, evaluate, questions
from sana_runtime.bundle import open_bundle
from sana_runtime.picture import Picture
from sana_runtime.pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).parent))
import cpu_race

from sana_export.replay import psnr

RESULTS = cpu_race.RESULTS / "int8-quality.json"
DEVICES = ("cpu", "onnxruntime")

Pixels = NDArray[np.uint8]


def paint_all(bundle: Path, device: str, asked: Sequence[Question]) -> tuple[list[bool], list[Pixels]]:
    """Which prompts a bundle's pictures answer, and the pictures."""
    pictures: list[Pixels] = []
    with Pipeline.open(bundle, device=device) as pipeline:

        def paint(prompts: Sequence[str], seeds: Sequence[int]) -> Pixels:
            for prompt, seed in zip(prompts, seeds, strict=True):
                picture = pipeline.generate(prompt, seed=seed)
                assert isinstance(picture, Picture)
                pictures.append(picture.pixels)
            print(f"{device} {bundle}: {len(pictures)} of {len(asked)}", flush=True)
            return np.stack(pictures[-len(prompts) :])

        return evaluate(paint, asked), pictures


def difference(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """Share of `second` less that of `first`, in points, with the 95 % interval of paired shares."""
    won = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    count = len(first)
    spread = 1.96 * math.sqrt(won + lost - (won - lost) ** 2 / count) / count
    middle = (won - lost) / count
    return 100 * middle, 100 * (middle - spread), 100 * (middle + spread)


def measure(bundles: Sequence[Path], device: str, asked: Sequence[Question]) -> dict[str, Any]:
    """Both bundles on one device."""
    (float_right, float_pictures), (int8_right, int8_pictures) = (paint_all(each, device, asked) for each in bundles)
    alike = [psnr(a, b) for a, b in zip(int8_pictures, float_pictures, strict=True)]
    middle, low, high = difference(float_right, int8_right)
    return {
        "prompts": len(asked),
        "float_right": sum(float_right),
        "int8_right": sum(int8_right),
        "difference_points": round(middle, 2),
        "difference_interval": [round(low, 2), round(high, 2)],
        "psnr_median": round(median(alike), 2),
        "psnr_worst": round(min(alike), 2),
        "psnr_below_32": sum(each < 32 for each in alike),
    }


def main() -> None:
    """Measure on every device, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs=2, metavar="BUNDLE")
    parser.add_argument("--each", type=int, default=84)
    parser.add_argument("--device", action="append", choices=DEVICES)
    options = parser.parse_args()
    asked = questions(options.each)
    results = {device: measure(options.bundles, device, asked) for device in options.device or DEVICES}
    named = {name: open_bundle(path).digest for name, path in zip(("float", "int8"), options.bundles, strict=True)}
    RESULTS.write_text(json.dumps({"bundles": named, "devices": results}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
