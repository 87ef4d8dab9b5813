"""What bfloat16 between INT8 products costs in quality: pictures of nano's held-out prompts, one way after the other.

    python bench/cpu_int8_between.py FLOAT_BUNDLE INT8_BUNDLE [--each 14]

Both bundles are nano's. `--each` prompts in each of six categories are painted by the float transformer in fp32 and in
bf16, and by the INT8 one with fp32 between its products, with bf16 around its depthwise convolutions as the pipeline
runs it, and with bf16 throughout; all other parts stay fp32. Decibels are of peak signal to noise against the fp32
pictures. Writes docs/measurements/cpu-int8-between.json.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["SANA_EXPORT_COMPILED"] = "off"  # what was compiled one way must not be read back for another
import numpy as np
from numpy.typing import NDArray
from sana_reference.nano.evaluation import Question, questions
from sana_runtime import openvino_session
from sana_runtime.bundle import Bundle, open_bundle
from sana_runtime.parts import Parts
from sana_runtime.picture import Picture
from sana_runtime.pipeline import Pipeline
from sana_runtime.session import Device, Session, SessionOptions, open_session

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import RESULTS, machine, versions

from sana_export.replay import psnr

POOR = 32  # decibels

Pixels = NDArray[np.uint8]


def paint(bundle: Bundle, transformer: Path, half: bool, asked: Sequence[Question]) -> list[Pixels]:
    """The pictures, with this transformer and with bf16 allowed in it or not."""

    def load(name: str) -> Session:
        own = name == "transformer"
        signature = bundle.manifest.parts[name].signature
        options = SessionOptions(half_products=half and own, threads=1, signature=signature)
        return open_session(transformer if own else bundle.graph(name), Device.CPU, options)

    pictures = []
    with Pipeline(bundle, Parts(load, together=True), dict.fromkeys(bundle.manifest.parts, Device.CPU)) as pipeline:
        for seed, question in enumerate(asked):
            picture = pipeline.generate(question.prompt, seed=seed)
            assert isinstance(picture, Picture)
            pictures.append(picture.pixels)
    return pictures


def wide(run: Callable[[], list[Pixels]]) -> list[Pixels]:
    """Run as on a processor without bfloat16."""
    asks = openvino_session.computes_half
    openvino_session.computes_half = lambda: False
    try:
        return run()
    finally:
        openvino_session.computes_half = asks


def likeness(pictures: Sequence[Pixels], exact: Sequence[Pixels]) -> dict[str, Any]:
    """How near they come, over all of them."""
    decibels = np.array([psnr(*pair) for pair in zip(pictures, exact, strict=True)])
    summary = {"median": np.median(decibels), "mean": decibels.mean(), "tenth": np.quantile(decibels, 0.1)}
    return {
        **{name: round(float(value), 2) for name, value in summary.items()},
        "least": round(float(decibels.min()), 2),
        "below_32": int((decibels < POOR).sum()),
        "all": [round(float(each), 2) for each in decibels],
    }


def main(arguments: Sequence[str]) -> None:
    """Paint, compare, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("int8", type=Path)
    parser.add_argument("--each", type=int, default=14)
    chosen = parser.parse_args(arguments)
    bundle, asked = open_bundle(chosen.bundle), questions(chosen.each)
    own, int8 = bundle.graph("transformer"), open_bundle(chosen.int8).graph("transformer")
    exact = paint(bundle, own, False, asked)
    ways: dict[str, Callable[[], list[Pixels]]] = {
        "float, bf16": lambda: paint(bundle, own, True, asked),
        "int8, fp32 between": lambda: wide(lambda: paint(bundle, int8, False, asked)),
        "int8, bf16 around convolutions, as the pipeline": lambda: paint(bundle, int8, False, asked),
        "int8, bf16 between": lambda: paint(bundle, int8, True, asked),
    }
    found = {}
    for name, way in ways.items():
        found[name] = likeness(way(), exact)
        print(name, {key: value for key, value in found[name].items() if key != "all"}, flush=True)
    document = {"pictures": len(asked), "ways": found, "machine": machine(), "versions": versions()}
    (RESULTS / "cpu-int8-between.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
