"""One 3×3 convolution of the decoder, directly and by Winograd's algorithm as graph operations, in OpenVINO.

    python bench/winograd.py [--rounds 3]

F(m×m, 3×3) computes m×m pixels of a channel with (m+2)² products instead of 9m². Here its transforms are slices and
sums of whole pictures, and the products matrix products. bf16, one thread: the CPU time of a convolution is a third of
the difference between chains of four and of one; the error is that of one, Euclidean, against fp32. Writes
docs/measurements/winograd.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sana_runtime.openvino_graph import op, ov

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import RESULTS, machine, versions

SHAPES = ((512, 128), (256, 256), (128, 512))  # channels and side of the residual blocks in a decode at 512²
CHAIN = 4
# of F(2×2) and F(4×4): what pictures, kernels and products are multiplied by from both sides
INPUT = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
KERNEL = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
OUTPUT = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}


def whole(values: Sequence[int]) -> Any:
    """A constant of whole numbers."""
    return op.constant(np.array(values, np.int64))


def real(values: Any) -> Any:
    """A constant of floats."""
    return op.constant(np.asarray(values, np.float32))


def weighed(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """The sum of values times weights."""
    terms = [v if w == 1 else op.multiply(v, real(w)) for v, w in zip(values, weights, strict=True) if w]
    total = terms[0]
    for term in terms[1:]:
        total = op.add(total, term)
    return total


def part(x: Any, axis: int, first: int, count: int, place: int) -> Any:
    """`count` tiles from `first` on, and of these the pixels at `place`, along rows (axis 0) or columns (axis 2)."""
    tiles = op.slice(x, whole([first]), whole([first + count]), whole([1]), whole([axis]))
    return op.slice(tiles, whole([place]), whole([place + 1]), whole([1]), whole([axis + 1]))


def winograd(x: Any, kernel: NDArray[np.float32], m: int, side: int) -> Any:
    """The convolution of (1, side, side, C) pictures."""
    channels, n, tiles = kernel.shape[0], m + 2, side // m
    factors = np.einsum("ai,ocij,bj->abco", KERNEL[m], kernel, KERNEL[m]).reshape(n * n, channels, channels)
    padded = op.pad(x, whole([0, 1, 1, 0]), whole([0, m - 1, m - 1, 0]), "constant", real(0))
    apart = op.reshape(padded, whole([tiles + 1, m, tiles + 1, m, channels]), False)
    rows = [part(apart, 0, k // m, tiles, k % m) for k in range(n)]
    planes = []
    for row in INPUT[m]:
        mixed = weighed(rows, row)
        columns = [part(mixed, 2, k // m, tiles, k % m) for k in range(n)]
        planes += [op.reshape(weighed(columns, c), whole([1, tiles**2, channels]), False) for c in INPUT[m]]
    products = op.split(op.matmul(op.concat(planes, 0), real(factors), False, False), whole(0), n * n).outputs()
    lines = []
    for row in OUTPUT[m]:
        mixed = [weighed([products[a * n + b] for a in range(n)], row) for b in range(n)]
        pixels = [op.reshape(weighed(mixed, c), whole([tiles, 1, tiles, 1, channels]), False) for c in OUTPUT[m]]
        lines.append(op.concat(pixels, 3))
    return op.reshape(op.concat(lines, 1), whole([1, side, side, channels]), False)


def chain(m: int, channels: int, side: int, length: int) -> ov.Model:
    """So many convolutions one after the other; m of 0 is the direct one."""
    kernel = np.random.default_rng(0).standard_normal((channels, channels, 3, 3), np.float32) / (9 * channels) ** 0.5
    kernel = kernel.astype(np.float32)
    picture = op.parameter([1, channels, side, side], np.float32)
    x: Any = op.transpose(picture, whole([0, 2, 3, 1])) if m else picture
    for _ in range(length):
        x = winograd(x, kernel, m, side) if m else op.convolution(x, real(kernel), [1, 1], [1, 1], [1, 1], [1, 1])
    return ov.Model([op.transpose(x, whole([0, 3, 1, 2])) if m else x], [picture], "chain")


def request(model: ov.Model, hint: str = "bf16") -> ov.InferRequest:
    """The model on one thread."""
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    return ov.Core().compile_model(model, "CPU", settings).create_infer_request()


def measure(channels: int, side: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and error of each way, in turn."""
    picture = np.random.default_rng(1).standard_normal((1, channels, side, side), np.float32)
    exact = request(chain(0, channels, side, 1), "f32").infer([picture])[0].copy()
    names = {0: "direct", 2: "F(2x2)", 4: "F(4x4)"}
    requests = {(m, length): request(chain(m, channels, side, length)) for m in names for length in (1, CHAIN)}
    taken: dict[tuple[int, int], list[float]] = {key: [] for key in requests}
    for _ in range(rounds + 1):
        for key, each in requests.items():
            begun = time.process_time()
            each.infer([picture])
            taken[key].append((time.process_time() - begun) * 1000)
    found = {}
    for m, name in names.items():
        one, many = (median(taken[m, length][1:]) for length in (1, CHAIN))
        error = np.linalg.norm(requests[m, 1].get_output_tensor(0).data - exact) / np.linalg.norm(exact)
        found[name] = {"milliseconds": round((many - one) / (CHAIN - 1), 1), "error": float(f"{error:.2g}")}
    return found


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args(arguments).rounds
    found = {}
    for channels, side in SHAPES:
        found[f"{channels} channels at {side}"] = measure(channels, side, rounds)
        print(channels, side, found[f"{channels} channels at {side}"], flush=True)
    facts = {"rounds": rounds, "convolutions": found, "machine": machine(), "versions": versions()}
    (RESULTS / "winograd.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
