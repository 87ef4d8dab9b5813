"""What INT8 and INT4 do to parts other than the transformer, and to its products with steps fixed beforehand.

    python bench/int8_parts.py text    [--layers 1] [--tokens 26] [--threads 2] [--rounds 7]
    python bench/int8_parts.py decoder [--channels 256] [--side 128] …
    python bench/int8_parts.py static  [--layers 2] [--tokens 256] …

`text`: layers of Gemma-2-2b's width, a prompt of 20 words. `decoder`: a residual block of DC-AE's width, three times.
`static`: blocks of Sana-0.6B at 512², INT8 with a step found for each token, and with one fixed step for all of them.
Weights are random; where it says so, some channels are 20 times larger than others. Every form runs in onnxruntime and
in OpenVINO, there with fp32 and with bf16 between INT8 products, and text as the pipeline runs it, with weights read in
place; errors are relative to fp32, Euclidean. Writes docs/measurements/int8-KIND.json.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from sana_calibration.likeness import relative_error
from sana_runtime.onnxruntime_session import ort  # the door: imported by it, it sends no reports
from sana_runtime.session import Device, SessionOptions, open_session

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import Contender, Run, race, report

Feeds = Mapping[str, NDArray[Any]]

KINDS = ("text", "decoder", "static")
ENGINES = ("openvino fp32", "openvino bf16", "onnxruntime")
IN_PLACE = "in place"


def session_run(graph: Path, engine: str, threads: int, feeds: Feeds) -> Run:
    """One run of a graph."""
    if engine == "onnxruntime":
        return _onnxruntime_run(graph, threads, feeds)
    options = SessionOptions(half_products=engine.endswith("bf16"), threads=threads, in_place=engine == IN_PLACE)
    session = open_session(graph, Device.CPU, options)

    def run() -> NDArray[Any]:
        (answer,) = session.run(feeds).values()
        return answer

    return run


def _onnxruntime_run(graph: Path, threads: int, feeds: Feeds) -> Run:
    """Not by way of our session, which reads no INT4."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = threads, 3
    session = ort.InferenceSession(graph, settings, disabled_optimizers=["MatMulAddFusion"])

    def run() -> NDArray[Any]:
        answer: NDArray[Any] = session.run(None, feeds)[0]
        return answer

    return run


def graph_bytes(graph: Path) -> int:
    """Of the graph and what lies beside it."""
    return sum(file.stat().st_size for file in graph.parent.glob(f"{graph.stem}.*"))


def _written(folder: Path, wanted: argparse.Namespace) -> tuple[Feeds, list[str]]:
    """Write the float graph and every form of it; returns what they are fed, and the forms' names."""
    from int8_graphs import GRAPHS, write_forms  # here: the processes that only run graphs need no torch

    save, forms = GRAPHS[wanted.kind]
    feeds = save(folder / "float.onnx", wanted)
    names = [name for name in forms if wanted.forms is None or name in wanted.forms]
    write_forms(folder, {name: forms[name] for name in names}, feeds)
    return feeds, names


def main(arguments: Sequence[str]) -> None:
    """Make the graphs, race them, measure their errors, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    defaults = {"layers": 1, "tokens": 26, "channels": 256, "side": 128, "threads": 2, "rounds": 7}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--forms", nargs="*")  # all of the kind, when left out
    wanted = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        feeds, names = _written(folder, wanted)
        runs = {
            f"{name}, {engine}": partial(session_run, folder / f"{name}.onnx", engine, wanted.threads, feeds)
            for name in ("float", *names)
            for engine in (*ENGINES, *([IN_PLACE] if wanted.kind == "text" and not name.startswith("int4") else []))
        }
        exact = runs["float, openvino fp32"]()()
        errors = {name: float(f"{relative_error(make()(), exact):.3g}") for name, make in runs.items()}
        results = race([Contender(name, make) for name, make in runs.items()], wanted.rounds, wanted.threads)
        sizes = {name: graph_bytes(folder / f"{name}.onnx") for name in ("float", *names)}
    print(report(f"int8-{wanted.kind}", results, {"bytes": sizes, "errors": errors, "arguments": vars(wanted)}))
    for name, error in errors.items():
        print(f"{name}: {sizes[name.split(',')[0]] / 1e6:.1f} MB, error {error:.2e}")


if __name__ == "__main__":
    main(sys.argv[1:])
