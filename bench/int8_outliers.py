"""Outlier channels up to a hundred times larger: plain rounding breaks, calibration does not.

    python bench/int8_outliers.py FP32_BUNDLE

In front of every product, channels of the transformer are scaled by log-normal powers of two, and the weights behind
them by the inverse: in float not a bit of a result changes. The figures go to docs/measurements/int8-outliers.json.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
from sana_calibration.gate import Evidence, Limits, compare
from sana_calibration.loaded import Loaded, Substitutes
from sana_calibration.products import chosen
from sana_calibration.quantise import quantise
from sana_calibration.smooth import smooth, smoothable
from sana_runtime.bundle import Bundle, open_bundle, seal

sys.path.insert(0, str(Path(__file__).parent))
import cpu_race

from sana_export.plans import make_plans
from sana_export.quantising import Int8Settings, calibrate
from sana_export.saving import save_graph

RESULTS = cpu_race.RESULTS / "int8-outliers.json"
SPREAD = 1.5  # of the natural logarithms
LARGEST = 100.0
IDENTICAL = 99.0  # decibels that stand for equal pictures


def with_outliers(source: Bundle, folder: Path) -> Bundle:
    """A bundle that computes the same and is hard to round."""
    rng = np.random.default_rng(0)
    transformer, caption = (ir.load(source.graph(part)) for part in ("transformer", "caption"))
    factors = {}
    for product in chosen(transformer):
        if smoothable(product.name):
            scales = np.exp(rng.standard_normal(product.rows) * SPREAD).clip(1 / LARGEST, LARGEST)
            factors[product.name] = np.exp2(-np.trunc(np.log2(scales))).astype(np.float32)
    smooth(transformer, caption, factors)  # with factors that do the opposite of smoothing
    _rename(transformer.graph)
    folder.mkdir()
    for name in source.manifest.files:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source.file(name), folder / name)
    for model, name in ((transformer, "transformer"), (caption, "caption")):
        save_graph(model, folder / f"{name}.onnx")
    return seal(folder, source.manifest)


def _rename(graph: ir.Graph) -> None:
    """Take the names that smoothing gave, which it will want again."""
    for name in [name for name in graph.initializers if name.endswith(".inverse")]:
        value = graph.initializers.pop(name)
        value.name = name.replace(".inverse", ".outliers")
        graph.register_initializer(value)
    for node in graph:
        if node.name and ".smooth." in node.name:
            node.name = node.name.replace(".smooth.", ".outliers.")
            node.outputs[0].name = node.name


def judged(reference: Bundle, candidate: Loaded) -> dict[str, Any]:
    """What the gate says of a candidate."""
    source, plan = Loaded(reference), make_plans(reference).gate
    return _told(compare(source.contender(plan), candidate.contender(plan)))


def _told(evidence: Evidence) -> dict[str, Any]:
    return {
        "psnr_median": round(min(median(evidence.psnrs), IDENTICAL), 2),
        "worst_velocity_error": round(max(map(median, evidence.velocity_errors.values())), 4),
        "complaints": list(evidence.complaints(Limits())),
    }


def plainly_rounded(bundle: Bundle, folder: Path) -> Loaded:
    """Every eligible product in INT8, nothing smoothed, nothing left float."""
    transformer = ir.load(bundle.graph("transformer"))
    quantise(transformer)
    folder.mkdir()
    save_graph(transformer, folder / "transformer.onnx")
    return Loaded(bundle, Substitutes({"transformer": folder / "transformer.onnx"}, "plain"))


def main(source: Path) -> None:
    """Judge the plain rounding and the calibrated one of the same outliers."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        original = open_bundle(source)
        hard = with_outliers(original, folder / "hard")
        same = judged(original, Loaded(hard))
        plain = judged(hard, plainly_rounded(hard, folder / "plain"))
        ours = calibrate(hard.path, folder / "int8", Int8Settings(force=True))
        report = json.loads(ours.file("report.json").read_text())
        told = {
            "float_with_outliers": same,
            "plain_rounding": plain,
            "calibrated": {
                "psnr_median": report["gate"]["median_psnr"],
                "worst_velocity_error": max(each["median"] for each in report["gate"]["velocity_errors"]),
                "complaints": report["gate"]["complaints"],
                "int8_share": report["int8_share"],
            },
        }
    RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
