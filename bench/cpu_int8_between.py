"""What bf16 between INT8 products costs in quality: pictures of one float bundle, its transformer rounded, both ways.

    python bench/cpu_int8_between.py FLOAT_BUNDLE [INT8_BUNDLE] [--pictures 8] [--size 128]

The same prompts and seeds are painted by the float bundle in fp32 and in bf16, and with the INT8 transformer, of
INT8_BUNDLE if one is given and plainly rounded otherwise, with fp32 and with bf16 between its products. Decibels are of
peak signal to noise against the fp32 pictures; other parts stay fp32. Writes docs/measurements/cpu-int8-between.json.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from sana_calibration.quantise import quantise
from sana_runtime.bundle import Bundle, open_bundle
from sana_runtime.parts import Parts
from sana_runtime.pipeline import Pipeline
from sana_runtime.session import Device, Session, SessionOptions, open_session

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import RESULTS, machine, versions

from sana_export.saving import save_graph

PROMPTS = (
    "a red circle above a blue square",
    "three yellow stars",
    "a green triangle left of a purple circle",
    "two orange squares",
)


def paint(bundle: Bundle, transformer: Path, half: bool, requests: Sequence[tuple[str, int]], side: int) -> list[Any]:
    """The pictures, with this transformer and with bf16 allowed in it or not."""

    def load(name: str) -> Session:
        own = name == "transformer"
        signature = bundle.manifest.parts[name].signature
        options = SessionOptions(half_products=half and own, threads=1, signature=signature)
        return open_session(transformer if own else bundle.graph(name), Device.CPU, options)

    devices = dict.fromkeys(bundle.manifest.parts, Device.CPU)
    with Pipeline(bundle, Parts(load, together=True), devices) as pipeline:
        return [pipeline.generate(prompt, seed=seed, size=(side, side)).pixels for prompt, seed in requests]


def rounded(bundle: Bundle, folder: Path) -> Path:
    """The float bundle's transformer with every eligible product in INT8, nothing smoothed."""
    model = ir.load(bundle.graph("transformer"))
    quantise(model)
    save_graph(model, folder / "transformer.onnx")
    return folder / "transformer.onnx"


def psnr(actual: NDArray[np.uint8], exact: NDArray[np.uint8]) -> float:
    """Decibels; 99 for equal pictures."""
    error = np.mean((actual.astype(np.float64) - exact) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else 99.0


def main(arguments: Sequence[str]) -> None:
    """Paint, compare, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("int8", type=Path, nargs="?")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    chosen = parser.parse_args(arguments)
    bundle = open_bundle(chosen.bundle)
    requests = [(PROMPTS[i % len(PROMPTS)], 1000 + i) for i in range(chosen.pictures)]
    with tempfile.TemporaryDirectory() as folder:
        int8 = open_bundle(chosen.int8).graph("transformer") if chosen.int8 else rounded(bundle, Path(folder))
        own = bundle.graph("transformer")
        exact = paint(bundle, own, False, requests, chosen.size)
        ways = {"float, bf16": (own, True), "int8, fp32 between": (int8, False), "int8, bf16 between": (int8, True)}
        found = {}
        for name, (graph, half) in ways.items():
            pictures = paint(bundle, graph, half, requests, chosen.size)
            decibels = [round(psnr(*pair), 2) for pair in zip(pictures, exact, strict=True)]
            found[name] = {"median_psnr": median(decibels), "least_psnr": min(decibels), "all": decibels}
            print(f"{name}: median {median(decibels):.1f} dB, least {min(decibels):.1f} dB")
    facts = {"pictures": chosen.pictures, "size": chosen.size, "plainly_rounded": chosen.int8 is None}
    document = {**facts, "ways": found, "machine": machine(), "versions": versions()}
    (RESULTS / "cpu-int8-between.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
