"""Whether rotating tokens before they are rounded helps, alone or after smoothing: by product, on recorded tokens.

    python bench/int8_rotation.py FP32_BUNDLE [--samples 2]

A Hadamard rotation spreads every channel evenly over a block of channels, and the weight's rows are rotated with it, so
the product stays the same. Blocks are the largest power of two that divides the width. Errors are relative, of the INT8
product against the float one, once as the model is and once with channels up to 100 times larger than others, as in
`int8_outliers.py`. Writes docs/measurements/int8-rotation.json.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from sana_calibration.choose_factors import choose_factors
from sana_calibration.edit import replace_weight, weight_array
from sana_calibration.likeness import relative_error
from sana_calibration.loaded import Loaded, Substitutes
from sana_calibration.products import Product, chosen
from sana_calibration.record import SAMPLED_INPUT, record
from sana_calibration.recording_graph import write_recording_graph
from sana_calibration.rounding import rounded_columns, rounded_tokens
from sana_calibration.smooth import smoothable
from sana_calibration.statistics import PER_OCTAVE, TokenStatistics
from sana_runtime.bundle import Bundle, open_bundle

from sana_export.plans import make_plans
from sana_export.saving import data_file

RESULTS = Path(__file__).parents[1] / "docs" / "measurements" / "int8-rotation.json"
SPREAD, LARGEST = 1.5, 100.0  # of the outliers

Floats = NDArray[np.float32]
Tokens = Mapping[str, TokenStatistics]


def rotation(channels: int) -> Floats:
    """An orthogonal matrix (C, C) of Hadamard blocks."""
    block, size = np.ones((1, 1), np.float32), channels & -channels
    while len(block) < size:
        block = np.block([[block, block], [block, -block]])
    return np.asarray(np.kron(np.eye(channels // size, dtype=np.float32), block / np.float32(size**0.5)))


def error(tokens: Floats, weight: Floats) -> float:
    """Of the INT8 product."""
    return relative_error(rounded_tokens(tokens) @ rounded_columns(weight), tokens @ weight)


def errors(tokens: Floats, weight: Floats, factors: Floats) -> dict[str, float]:
    """Of one product, in each of four ways."""
    turn = rotation(len(weight))
    smooth_tokens, smooth_weight = tokens / factors, weight * factors[:, None]
    return {
        "plain": error(tokens, weight),
        "rotated": error(tokens @ turn, turn.T @ weight),
        "smoothed": error(smooth_tokens, smooth_weight),
        "smoothed and rotated": error(smooth_tokens @ turn, turn.T @ smooth_weight),
    }


def recorded(bundle: Bundle, samples: int) -> Tokens:
    """Tokens of every product, as the float model paints."""
    plan = make_plans(bundle, samples=samples).recording
    with tempfile.TemporaryDirectory() as place:
        folder, original = Path(place), bundle.graph("transformer")
        for file in (original, data_file(original)):
            shutil.copyfile(file, folder / file.name)
        channels = write_recording_graph(folder / original.name, folder / "recording.onnx")
        loaded = Loaded(bundle, Substitutes({"transformer": folder / "recording.onnx"}, besides=[SAMPLED_INPUT]))
        painter = loaded.contender(plan).painter
        return record(loaded.run, channels, painter, folder / "recording.npz", lambda progress: None).tokens


def with_outliers(products: Sequence[Product], tokens: Tokens) -> None:
    """Scale channels of tokens by log-normal powers of two, and the weights' rows by the inverse."""
    rng = np.random.default_rng(0)
    for product in products:
        scales = np.exp(rng.standard_normal(product.rows) * SPREAD).clip(1 / LARGEST, LARGEST)
        factors = np.exp2(np.trunc(np.log2(scales))).astype(np.float32)
        seen = tokens[product.name]
        seen.kept, seen.largest = seen.kept * factors, seen.largest * factors
        moves = PER_OCTAVE * np.log2(factors).astype(int)
        seen.counts = np.stack([np.roll(row, bins) for row, bins in zip(seen.counts, moves, strict=True)])
        replace_weight(product.weight, partial(_divided, factors=factors))


def _divided(weight: NDArray[Any], factors: Floats) -> NDArray[Any]:
    return np.asarray(weight / factors[:, None])


def measured(model: ir.Model, tokens: Tokens) -> dict[str, dict[str, float]]:
    """Median errors over the blocks, for each kind of product."""
    choices, kinds = choose_factors(model, tokens), defaultdict(list)
    for product in chosen(model, tokens):
        if product.name in choices:
            weight = weight_array(product.weight).astype(np.float32)
            found = errors(tokens[product.name].kept, weight, choices[product.name].factors)
            kinds[product.name.split(".", 2)[-1]].append(found)
    return {
        kind: {way: round(median(each[way] for each in all_), 5) for way in all_[0]} for kind, all_ in kinds.items()
    }


def main(arguments: Sequence[str]) -> None:
    """Record, measure as it is and with outliers, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--samples", type=int, default=2)
    wanted = parser.parse_args(arguments)
    bundle = open_bundle(wanted.bundle)
    tokens, model = recorded(bundle, wanted.samples), ir.load(bundle.graph("transformer"))
    told: dict[str, Any] = {"samples": wanted.samples, "as it is": measured(model, tokens)}
    with_outliers([product for product in chosen(model, tokens) if smoothable(product.name)], tokens)
    told["with outliers"] = measured(model, tokens)
    RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
