"""How cost grows: attention, a step, decoding and building, by everything that makes them larger.

    python bench/scale.py [attention step decode build] [--folder out/bench/depth2] [--threads 2] [--largest 4096]

Each size is run in turn, several times; CPU time is kept, for it does not depend on who else is on the machine. Peak
memory is that of a process of its own, and so is the time of decoding and of building. The step is that of
`cpu_parts.py step --depth 2`, whose graphs are used and made if need be: two of 28 blocks. The full decoder stops at
1024²; beside it one of a quarter of the width, a sixteenth of the work, goes on. What is built is the INT8 transformer,
at full width, with 1 to 8 blocks. Writes docs/measurements/scale.json and docs/images/scale.png (`scale_plot.py`); each
part alone keeps what the others wrote.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from sana_runtime.openvino_graph import op, ov
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.session import SessionOptions
from sana_runtime.signature import Sizes, signatures

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import RESULTS, machine, peak_bytes, versions
from scale_plot import plot, slope

PLOT = RESULTS.parent / "images" / "scale.png"
HEADS, WIDTH = 36, 32  # of Sana-0.6B's self-attention
ROUNDS = 3
DEPTH = 2
SIDES = (8, 12, 16, 24, 32, 48, 64, 96, 128)  # of latents: pictures of 256 to 4096 pixels
NARROW = "decoder-quarter"
FULL_UP_TO = 1024  # pixels, of the full decoder
WHOLE_UP_TO = 2048  # of the narrow one in one piece
TILE, OVERLAP = 512, 64

Times = dict[int, float]  # seconds by size


def timed(ways: dict[int, Callable[[], Any]]) -> Times:
    """The median CPU time of each way; sizes take turns, and a first run of each does not count."""
    times: dict[int, list[float]] = {size: [] for size in ways}
    for _ in range(1 + ROUNDS):
        for size, run in ways.items():
            begun = time.process_time()
            run()
            times[size].append(time.process_time() - begun)
    return {size: round(median(each[1:]), 5) for size, each in times.items()}


def attention(kind: str, tokens: int, threads: int) -> Callable[[], Any]:
    """One self-attention over (1, heads, tokens, width) in fp32, as OpenVINO runs it."""
    q, k, v = (op.parameter([1, HEADS, tokens, WIDTH], np.float32) for _ in range(3))
    if kind == "softmax":
        result = op.scaled_dot_product_attention(q, k, v)
    else:
        seen, looked = op.relu(k), op.relu(q)
        total = op.matmul(looked, op.reduce_sum(seen, op.constant([2]), True), False, True)
        result = op.divide(op.matmul(looked, op.matmul(seen, v, True, False), False, False), total)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(ov.Model([result], [q, k, v]), "CPU", settings).create_infer_request()
    feeds = [np.random.default_rng(i).standard_normal((1, HEADS, tokens, WIDTH), np.float32) for i in range(3)]
    return lambda: request.infer(feeds)


def measure_attention(folder: Path, threads: int, largest: int) -> dict[str, Any]:
    """Self-attention alone, by tokens."""
    sizes = [256 << i for i in range(8) if 256 << i <= (largest // 32) ** 2 * 4]
    found = {
        "linear": timed({n: attention("linear", n, threads) for n in sizes}),
        "softmax": timed({n: attention("softmax", n, threads) for n in sizes if n <= (largest // 32) ** 2}),
    }
    return {f"{kind}_attention_by_tokens": times for kind, times in found.items()}


def step(folder: Path, threads: int, side: int, batch: int = 2, rows: int = 26, steps: int = 1) -> Callable[[], Any]:
    """`steps` runs of our INT8 transformer of a few blocks, compiled for one size."""
    from cpu_parts import INT8

    signature = signatures(Sizes(depth=DEPTH, dim=1152, text_dim=2304, sample_size=side))["transformer"]
    options = SessionOptions(half_products=True, threads=threads, signature=signature)
    session = OpenVinoSession(folder / INT8 / "transformer.onnx", options)
    feeds = signature.example_feeds(batch=batch, height=side, width=side, rows=rows)

    def run() -> None:
        for _ in range(steps):
            session.run(feeds)

    return run


def measure_step(folder: Path, threads: int, largest: int) -> dict[str, Any]:
    """A step by tokens, pictures, rows of text and number of steps."""
    from cpu_graphs import prepare_step
    from cpu_parts import Job
    from limits import preset

    prepare_step(Job(folder, 16, threads, preset(DEPTH)))
    sides = [side for side in SIDES if 32 * side <= largest]
    apart = {(32 * side) ** 2: _apart("step", str(folder), threads, side) for side in sides[::2]}
    return {
        "step_bytes_by_pixels": {pixels: peak for pixels, (_, peak) in apart.items()},
        "step_by_tokens": timed({side * side: step(folder, threads, side) for side in sides}),
        "step_by_batch": timed({batch: step(folder, threads, 16, batch) for batch in (1, 2, 4, 8)}),
        "step_by_text": timed({rows: step(folder, threads, 16, 2, rows) for rows in (2, 26, 75, 150, 300)}),
        "steps": timed({steps: step(folder, threads, 8, 2, 26, steps) for steps in (1, 2, 4, 8)}),
    }


def measure_decode(folder: Path, threads: int, largest: int) -> dict[str, Any]:
    """Decoding by pixels, whole and in tiles, by the full decoder and by a narrow one."""
    from cpu_graphs import prepare_decode, prepare_narrow

    prepare_decode(folder)
    prepare_narrow(folder / NARROW)
    found: dict[str, Any] = {}
    sizes = [size for size in (256, 512, 1024, 2048, 4096) if size <= largest]
    for decoder, limit in (("fp32", FULL_UP_TO), (NARROW, largest)):
        for way, tile in (("whole", 0), ("tiled", TILE)):
            runs = {
                size**2: _apart("decode", str(folder / decoder), threads, size, tile)
                for size in sizes
                if tile < size <= (limit if tile else min(limit, WHOLE_UP_TO))
            }
            name = f"{'narrow_' * (decoder == NARROW)}decode_{way}"
            found[f"{name}_by_pixels"] = {size: seconds for size, (seconds, _) in runs.items()}
            found[f"{name}_bytes_by_pixels"] = {size: peak for size, (_, peak) in runs.items()}
    return found


def measure_build(folder: Path, threads: int, largest: int) -> dict[str, Any]:
    """Making an INT8 transformer by its parameters."""
    runs = {depth: _apart("build", depth, threads) for depth in (1, 2, 4, 8)}
    return {
        "build_by_parameters": {int(parameters): seconds for seconds, _, parameters in runs.values()},
        "build_bytes_by_parameters": {int(parameters): peak for _, peak, parameters in runs.values()},
    }


def _apart(what: str, *arguments: Any) -> tuple[float, ...]:
    """What a process of its own says: CPU seconds, peak bytes and more."""
    command = [sys.executable, __file__, "--here", what, json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print(what, *arguments, done.stdout.splitlines()[-1], flush=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def step_here(folder: str, threads: int, side: int) -> list[float]:
    """One step in this process: CPU time and peak memory."""
    run = step(Path(folder), threads, side)
    run()
    begun = time.process_time()
    run()
    return [time.process_time() - begun, peak_bytes()]


def decode_here(folder: str, threads: int, size: int, tile: int) -> list[float]:
    """Decode once in this process: CPU time, compiling included, and peak memory."""
    from sana_runtime.tiling import decode_tiled

    session = OpenVinoSession(Path(folder) / "decoder.onnx", SessionOptions(half_products=True, threads=threads))
    side = size // 32
    latent = np.random.default_rng(0).standard_normal((1, 32, side, side)).astype(np.float32)
    begun = time.process_time()
    if tile:
        decode_tiled(lambda window: session.run({"latent": window})["image"], latent, tile, OVERLAP)
    else:
        session.run({"latent": latent})
    return [time.process_time() - begun, peak_bytes()]


def build_here(depth: int, threads: int) -> list[float]:
    """Export a random transformer and round it: CPU time, peak memory, parameters."""
    import torch
    from cpu_graphs import random_transformer, round_to_int8

    from sana_export.export import export_parts

    torch.set_num_threads(threads)
    model = random_transformer(depth)
    source = SimpleNamespace(config=model.config, transformer=model.to)
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as made:
        part = export_parts(source, Path(made), parts=("transformer",))["transformer"]
        (Path(made) / "int8").mkdir()
        round_to_int8(part.graph, Path(made) / "int8")
    return [time.process_time() - begun, peak_bytes(), sum(each.numel() for each in model.parameters())]


def main(arguments: Sequence[str]) -> None:
    """Measure what was asked for, and draw everything that is known."""
    parts = {"attention": measure_attention, "step": measure_step, "decode": measure_decode, "build": measure_build}
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", choices=[*parts, []])
    parser.add_argument("--folder", type=Path, default=Path("out/bench/depth2"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--largest", type=int, default=4096)
    chosen = parser.parse_args(arguments)
    file = RESULTS / "scale.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    for part in chosen.part or parts:
        found |= parts[part](chosen.folder, chosen.threads, chosen.largest) | {"machine": machine()}
        found |= {"versions": versions(), "threads": chosen.threads}
        file.write_text(json.dumps(found, indent=1) + "\n")
        for name, times in found.items():
            if isinstance(times, dict) and len(times) > 1 and "by" in name:
                print(name, times, f"slope {slope({int(size): each for size, each in times.items()})}")
    plot(json.loads(file.read_text()), PLOT)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        here = {"step": step_here, "decode": decode_here, "build": build_here}[sys.argv[2]]
        print(json.dumps(here(*json.loads(sys.argv[3]))))
    else:
        main(sys.argv[1:])
