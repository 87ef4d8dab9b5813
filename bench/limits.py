"""What this machine can do at best: the transformer's matrix products alone in INT8, bf16 and fp32, and copying.

    python bench/limits.py [--size 512] [--threads 2] [--rounds 7]

The products are the six of a block over the tokens of a step, with nothing between them, run by the library that runs
ours. Here they are those of Sana-0.6B with guidance; `cpu_parts.py` races those of any model. Writes
docs/measurements/cpu-limits.json.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sana_reference.config import PRESETS, SanaConfig
from sana_runtime.openvino_session import ov  # the door: imported by it, it sends no reports

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import Contender, Run, race, report

MODEL = "sana-600m"  # unless another is asked for
COPIED = 256 << 20  # bytes, more than any cache


def preset(depth: int | None = None, name: str = MODEL) -> SanaConfig:
    """A preset with so many of its blocks, or with all."""
    full = PRESETS[name]
    return replace(full, depth=depth or full.depth)


def shapes(model: SanaConfig) -> list[tuple[int, int]]:
    """Rows and columns of a block's weights: Q, K and V; what attention gives; the same of cross-attention; Mix-FFN."""
    dim, hidden = model.dim, model.hidden
    return [(dim, 3 * dim), (dim, dim), (dim, dim), (dim, dim), (dim, 2 * hidden), (hidden, dim)]


def operations(model: SanaConfig, tokens: int) -> int:
    """Multiplications and additions of one block's products."""
    return 2 * tokens * sum(rows * columns for rows, columns in shapes(model))


def save_products(path: Path, model: SanaConfig, tokens: int, kind: str) -> None:
    """A graph of nothing but the products, in `kind` int8 or float."""
    nodes, weights, outputs = [], [], []
    widths = (model.dim, model.hidden)
    for rows in widths:
        nodes += _rounded(f"x{rows}") if kind == "int8" else [helper.make_node("Identity", [f"x{rows}"], [f"t{rows}"])]
    for i, (rows, columns) in enumerate(shapes(model)):
        made, node = _weight(i, rows, columns, kind)
        weights += made
        nodes += node
        nodes.append(helper.make_node("MatMul", [f"t{rows}", f"w{i}"], [f"y{i}"]))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [tokens, columns]))
    inputs = [helper.make_tensor_value_info(f"x{rows}", TensorProto.FLOAT, [tokens, rows]) for rows in widths]
    weights += [numpy_helper.from_array(np.float32(1), "one"), numpy_helper.from_array(np.int8(0), "zero")]
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def _rounded(name: str) -> list[onnx.NodeProto]:
    codes = helper.make_node("QuantizeLinear", [name, "one", "zero"], [f"{name}_codes"])
    return [codes, helper.make_node("DequantizeLinear", [f"{name}_codes", "one", "zero"], [f"t{name[1:]}"])]


def _weight(i: int, rows: int, columns: int, kind: str) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    generator = np.random.default_rng(i)
    if kind != "int8":
        return [numpy_helper.from_array(generator.standard_normal((rows, columns), np.float32), f"w{i}")], []
    arrays = {
        f"codes{i}": generator.integers(-127, 128, (rows, columns), np.int8),
        f"steps{i}": np.full(columns, 0.01, np.float32),
        f"zeros{i}": np.zeros(columns, np.int8),
    }
    node = helper.make_node("DequantizeLinear", list(arrays), [f"w{i}"], axis=1)
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()], [node]


def products(kind: str, model: SanaConfig, tokens: int, threads: int) -> Run:
    """Run one block's products as often as the model has blocks, in int8, bf16 or fp32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.onnx"
        save_products(path, model, tokens, kind)
        hint = "bf16" if kind == "bf16" else "f32"
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        request = ov.Core().compile_model(path, "CPU", settings).create_infer_request()
    generator = np.random.default_rng(0)
    widths = (model.dim, model.hidden)
    feeds = {f"x{rows}": generator.integers(-127, 128, (tokens, rows)).astype(np.float32) for rows in widths}

    def run() -> Any:
        for _ in range(model.depth):
            request.infer(feeds)
        return np.zeros(1)

    return run


def copying() -> Run:
    """Copy an array that no cache holds."""
    source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)

    def run() -> Any:
        np.copyto(target, source)
        return target[:1]

    return run


def contenders(model: SanaConfig, tokens: int, threads: int) -> list[Contender]:
    """The products in each kind of number."""
    kinds = ("int8", "bf16", "fp32")
    return [Contender(f"{kind} products alone", partial(products, kind, model, tokens, threads)) for kind in kinds]


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    for name, usual in (("--size", 512), ("--threads", 2), ("--rounds", 7)):
        parser.add_argument(name, type=int, default=usual)
    chosen = parser.parse_args(arguments)
    block, tokens = preset(depth=1), 2 * (chosen.size // 32) ** 2
    racing = [*contenders(block, tokens, chosen.threads), Contender("copy", copying)]
    results = race(racing, chosen.rounds, chosen.threads)
    work = dict.fromkeys((each.name for each in results), operations(block, tokens)) | {"copy": 2 * COPIED}
    rates = {each.name: {k: round(work[each.name] / t / 1e9, 1) for k, t in best(each)} for each in results}
    print(report("cpu-limits", results, {"threads": chosen.threads, "tokens": tokens, "best_giga_per_second": rates}))
    print(rates)


def best(result: Any) -> list[tuple[str, float]]:
    """The shortest CPU time and wall clock."""
    return [("cpu", min(result.cpu)), ("wall", min(result.wall))]


if __name__ == "__main__":
    main(sys.argv[1:])
