"""Build engines of full size from random weights: seconds, memory and kernels, into docs/measurements/engines.json.

    python bench/engine_full_size.py [--work FOLDER] [--twice] [CASE …]

No card is needed and none is used: nothing here says how fast an engine runs. Every export and every build has a
process of its own, so that its peak is its own. Figures of cases that are not named are kept, and graphs in FOLDER.
`--twice` builds every engine until two are alike: under load the library's threads now and then race for memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from sana_runtime.engine_shapes import engine_signature
from sana_runtime.signature import signatures

sys.path.insert(0, str(Path(__file__).parent))
import cpu_race

from sana_export.engines.build import build_engine
from sana_export.engines.job import EngineJob
from sana_export.engines.library import Library, version_of
from sana_export.export import sizes_of
from sana_export.plan_reader import read_plan
from sana_export.precision import Precision

RESULTS = cpu_race.RESULTS / "engines.json"
TABLE = RESULTS.with_suffix(".md")
MOST_BUILDS = 6
NARROW = ("int8", "fp8", "int4")
AMPERE_ON, ADA_ON, TURING = (86, 89, 120), (89, 120), (75,)
TITLE = """# Building engines of full size

TensorRT-RTX {version}, random weights, no card, two shared CPU cores; `python bench/engine_full_size.py` repeats it.
Where seconds and CPU seconds differ, others were busy on the machine. Kernels, products and activations are read from
the compiled plan; activations are for the largest shape of the profile. No engine was run. No two weights
are alike, as equal ones would be stored once.

| case | for | MB | s | CPU s | peak GB | kernels | plugins | products | activations MB |
|---|---|---|---|---|---|---|---|---|---|
"""

# preset, blocks (0: all), part, form, capabilities, plugin; whether the middle of the Mix-FFN is one, too
CASES: dict[str, tuple[str, int, str, str, tuple[int, ...], bool, bool]] = {
    "sana-600m fp16": ("sana-600m", 0, "transformer", "fp16", AMPERE_ON, True, False),
    "sana-600m int8": ("sana-600m", 0, "transformer", "int8", AMPERE_ON, True, False),
    "dc-ae bf16 decoder": ("sana-600m", 0, "decoder", "bf16", AMPERE_ON, False, False),
    "dc-ae fp32 decoder": ("sana-600m", 0, "decoder", "fp32", AMPERE_ON, False, False),
    "2 blocks fp16": ("sana-600m", 2, "transformer", "fp16", AMPERE_ON, True, False),
    "2 blocks fp16, no plugin": ("sana-600m", 2, "transformer", "fp16", AMPERE_ON, False, False),
    "2 blocks int8": ("sana-600m", 2, "transformer", "int8", AMPERE_ON, True, False),
    "2 blocks int8, fused Mix-FFN": ("sana-600m", 2, "transformer", "int8", AMPERE_ON, True, True),
    "2 blocks int8, no plugin": ("sana-600m", 2, "transformer", "int8", AMPERE_ON, False, False),
    "2 blocks fp8": ("sana-600m", 2, "transformer", "fp8", ADA_ON, True, False),
    "2 blocks int4": ("sana-600m", 2, "transformer", "int4", AMPERE_ON, True, False),
    "2 blocks fp16 Turing": ("sana-600m", 2, "transformer", "fp16", TURING, True, False),
    "2 blocks int8 Turing": ("sana-600m", 2, "transformer", "int8", TURING, True, False),
    "2 blocks int8 Turing, fused Mix-FFN": ("sana-600m", 2, "transformer", "int8", TURING, True, True),
}


def export(preset: str, blocks: int, part: str, precision: str, folder: Path) -> None:
    """Write the float graph, in this process."""
    from export_full_size import RandomSource
    from sana_reference.config import PRESETS

    from sana_export.export import export_parts

    config = replace(PRESETS[preset], depth=blocks) if blocks else PRESETS[preset]
    export_parts(RandomSource(config), folder, Precision(precision), parts=(part,))


def reform(source: Path, form: str, target: Path) -> None:
    """Write another form of a float graph, in this process."""
    import onnx_ir as ir
    from sana_calibration.quantise import quantise

    from sana_export.engines.narrow import Narrow, narrow
    from sana_export.saving import save_graph

    model = ir.load(source)
    if form == "int8":
        quantise(model)
    else:
        narrow(model, Narrow(form))
    target.parent.mkdir(parents=True)
    save_graph(model, target)


def graph_of(case: str, work: Path) -> Path:
    """The case's graph, written in processes of their own unless it is there."""
    preset, blocks, part, form, *_ = CASES[case]
    precision = "fp16" if form in NARROW else form
    graphs = [work / f"{preset}-{blocks}-{kind}" / f"{part}.onnx" for kind in (precision, form)]
    if not graphs[0].exists():
        _apart("--export", preset, str(blocks), part, precision, str(graphs[0].parent))
    if not graphs[1].exists():
        _apart("--reform", str(graphs[0]), form, str(graphs[1]))
    return graphs[1]


def measure(case: str, work: Path, twice: bool = False) -> dict[str, Any]:
    """Build the case's engine and read its plan."""
    from sana_reference.config import PRESETS

    preset, blocks, part, form, capabilities, plugin, fused = CASES[case]
    config = replace(PRESETS[preset], depth=blocks) if blocks else PRESETS[preset]
    precision = Precision("fp16" if form in NARROW else form)
    profiles = engine_signature(signatures(sizes_of(config, precision))[part]).profiles()
    graph, output = graph_of(case, work), work / "engine"
    job = EngineJob(part, graph, output, profiles, capabilities, plugin=plugin, fused_mix_ffn=fused)
    built, engine = build_engine(job), output.read_bytes()
    output.unlink()
    plan = read_plan(engine)
    again = {"builds_until_two_alike": _builds(job, engine)} if twice else {}
    assert plan is not None
    return {
        "capabilities": capabilities,
        "bytes": built.bytes,
        "seconds": round(built.seconds, 1),
        "cpu_seconds": round(built.cpu_seconds, 1),
        "peak_memory": built.peak_memory,
        "kernels": len(plan.operations),
        "plugins": len(plan.plugins),
        "products": dict(Counter(" x ".join(one.operands[:2]) for one in plan.products).most_common()),
        "activations": plan.activations,
        **again,
    }


def _builds(job: EngineJob, engine: bytes) -> int | None:
    """How many builds it takes until one gives the bytes of another; none if MOST_BUILDS all differ."""
    seen = {engine}
    for number in range(2, MOST_BUILDS + 1):
        again = build_engine(job).path.read_bytes()
        job.output.unlink()
        if again in seen:
            return number
        seen.add(again)
    return None


def write(results: dict[str, Any]) -> None:
    """The figures for programs, and as a page."""
    ordered = {case: results[case] for case in CASES if case in results}
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    rows = [_row(case, result) for case, result in ordered.items()]
    TABLE.write_text(TITLE.format(version=version_of(Library.RTX)) + "\n".join(rows) + "\n", encoding="utf-8")


def _row(case: str, result: dict[str, Any]) -> str:
    products = ", ".join(f"{count} {types}" for types, count in result["products"].items())
    fields = (
        case,
        ", ".join(f"{one / 10}" for one in result["capabilities"]),
        f"{result['bytes'] / 1e6:.1f}",
        f"{result['seconds']:.0f}",
        f"{result['cpu_seconds']:.0f}",
        f"{result['peak_memory'] / 1e9:.2f}",
        str(result["kernels"]),
        str(result["plugins"]),
        products,
        f"{result['activations'] / 1e6:.0f}",
    )
    return f"| {' | '.join(fields)} |"


def _apart(*arguments: str) -> None:
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def build_all(arguments: list[str]) -> None:
    """Build the cases that are named, or all, and write down each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--twice", action="store_true")
    chosen = parser.parse_args(arguments)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for case in chosen.cases or CASES:
            results[case] = measure(case, chosen.work or Path(temporary), chosen.twice)
            print(case, results[case], flush=True)
            write(results)


def main(arguments: list[str]) -> None:
    """Run one step of a case here, or cases each in processes of their own."""
    if arguments[:1] == ["--export"]:
        preset, blocks, part, precision, folder = arguments[1:]
        export(preset, int(blocks), part, precision, Path(folder))
    elif arguments[:1] == ["--reform"]:
        reform(Path(arguments[1]), arguments[2], Path(arguments[3]))
    else:
        build_all(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
