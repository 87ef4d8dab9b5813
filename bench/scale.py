"""How cost grows: a step with resolution, pictures, text and steps; attention alone, linear and softmax; decoding.

    python bench/scale.py [attention step decode] [--folder out/bench/depth2] [--threads 2] [--largest 2048]

Each size is run in turn, several times; CPU time is kept, for it does not depend on who else is on the machine, and of
decoding the peak memory. Slopes are of log time over log size: 1 is linear, 2 quadratic. The step is that of
`cpu_parts.py step --depth 2`, whose graphs are used and made if need be. Writes docs/measurements/scale.json and
docs/images/scale.png; each part alone keeps what the others wrote.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset14 as op

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import RESULTS, machine, versions

PLOT = RESULTS.parent / "images" / "scale.png"
HEADS, WIDTH = 36, 32  # of Sana-0.6B's self-attention
ROUNDS = 3
DEPTH = 2

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


def slope(times: Times, last: int = 3) -> float:
    """Of log time over log size, for the largest sizes: small ones are all overhead."""
    sizes, seconds = (np.log(list(values)[-last:]) for values in (times.keys(), times.values()))
    return round(float(np.polyfit(sizes, seconds, 1)[0]), 2)


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
        "softmax": timed({n: attention("softmax", n, threads) for n in sizes if n <= 8192}),
    }
    return {f"{kind}_attention_by_tokens": times for kind, times in found.items()}


def step(folder: Path, threads: int, side: int, batch: int = 2, rows: int = 26, steps: int = 1) -> Callable[[], Any]:
    """`steps` runs of our INT8 transformer of a few blocks, compiled for one size."""
    from cpu_parts import INT8
    from sana_runtime.openvino_session import OpenVinoSession
    from sana_runtime.session import SessionOptions
    from sana_runtime.signature import Sizes, signatures

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

    prepare_step(folder, DEPTH, 16, naive=False)
    sides = [side for side in (8, 12, 16, 24, 32, 48, 64, 96, 128) if 32 * side <= largest]
    return {
        "step_by_tokens": timed({side * side: step(folder, threads, side) for side in sides}),
        "step_by_batch": timed({batch: step(folder, threads, 16, batch) for batch in (1, 2, 4, 8)}),
        "step_by_text": timed({rows: step(folder, threads, 16, 2, rows) for rows in (2, 26, 75, 150, 300)}),
        "steps": timed({steps: step(folder, threads, 8, 2, 26, steps) for steps in (1, 2, 4, 8)}),
    }


def measure_decode(folder: Path, threads: int, largest: int) -> dict[str, Any]:
    """Decoding by pixels, whole and in tiles of 512; each in a process of its own, for its peak memory."""
    from cpu_graphs import prepare_decode

    prepare_decode(folder)
    sizes = [size for size in (256, 512, 1024, 2048) if size <= largest]
    found: dict[str, Any] = {}
    for name, tile in (("whole", 0), ("tiled", 512)):
        runs = {
            size: _apart(folder, threads, size, tile) for size in sizes if size > tile and size <= (tile or 1024) * 4
        }
        found[f"decode_{name}_by_pixels"] = {size**2: seconds for size, (seconds, _) in runs.items()}
        found[f"decode_{name}_bytes_by_pixels"] = {size**2: peak for size, (_, peak) in runs.items()}
    return found


def _apart(folder: Path, threads: int, size: int, tile: int) -> tuple[float, int]:
    arguments = [sys.executable, __file__, "--here", str(folder), str(threads), str(size), str(tile)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def decode_here(folder: str, threads: str, size: str, tile: str) -> None:
    """Decode once in this process; prints CPU time and peak memory."""
    from sana_runtime.openvino_session import OpenVinoSession
    from sana_runtime.session import SessionOptions
    from sana_runtime.tiling import decode_tiled

    session = OpenVinoSession(Path(folder) / "fp32" / "decoder.onnx", SessionOptions(True, int(threads)))
    side = int(size) // 32
    latent = np.random.default_rng(0).standard_normal((1, 32, side, side)).astype(np.float32)
    begun = time.process_time()
    if int(tile):
        decode_tiled(lambda window: session.run({"latent": window})["image"], latent, int(tile), 64)
    else:
        session.run({"latent": latent})
    print(json.dumps([time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10]))


def plot(found: dict[str, Any]) -> None:
    """Time over size on logarithmic axes, with the slopes that theory gives."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("self-attention alone", "tokens", ("linear_attention_by_tokens", "softmax_attention_by_tokens")),
        ("two blocks of Sana-0.6B, INT8", "tokens a picture", ("step_by_tokens",)),
        ("the same at 512²", "pictures, rows of text, steps", ("step_by_batch", "step_by_text", "steps")),
        ("decoding", "pixels", ("decode_whole_by_pixels", "decode_tiled_by_pixels")),
    )
    known = [panel for panel in panels if any(name in found for name in panel[2])]
    figure, axes = pyplot.subplots(1, len(known), figsize=(5 * len(known), 4.2), squeeze=False)
    for axis, (title, what, names) in zip(axes[0], known, strict=True):
        for name in (name for name in names if found.get(name)):
            times = {int(size): seconds for size, seconds in found[name].items()}
            (line,) = axis.loglog(list(times), list(times.values()), "o-", label=f"{name} (slope {slope(times)})")
            power = 2 if name.startswith("softmax") else 1
            last = max(times)
            expected = [times[last] * (size / last) ** power for size in times]
            if "text" not in name:
                axis.loglog(list(times), expected, ":", color=line.get_color())
        axis.set(title=title, xlabel=what, ylabel="CPU seconds")
        axis.legend(fontsize=7)
    figure.suptitle("dotted: linear, and quadratic for softmax")
    figure.tight_layout()
    figure.savefig(PLOT, dpi=90)


def main(arguments: Sequence[str]) -> None:
    """Measure what was asked for, and draw everything that is known."""
    parts = {"attention": measure_attention, "step": measure_step, "decode": measure_decode}
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", choices=[*parts, []], default=list(parts))
    parser.add_argument("--folder", type=Path, default=Path("out/bench/depth2"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--largest", type=int, default=2048)
    chosen = parser.parse_args(arguments)
    file = RESULTS / "scale.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    for part in chosen.part:
        found |= parts[part](chosen.folder, chosen.threads, chosen.largest) | {"machine": machine()}
        found |= {"versions": versions(), "threads": chosen.threads}
        file.write_text(json.dumps(found, indent=1) + "\n")
        for name, times in found.items():
            if isinstance(times, dict) and len(times) > 1 and "by" in name:
                print(name, times, f"slope {slope({int(size): each for size, each in times.items()})}")
    plot(json.loads(file.read_text()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        decode_here(*sys.argv[2:])
    else:
        main(sys.argv[1:])
