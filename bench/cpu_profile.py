"""Where a step's time goes on the CPU, operation by operation, before and after it is compiled for its size.

    python bench/cpu_profile.py [--depth 2] [--size 512] [--rounds 20] [--folder out/bench]

The INT8 transformer of `cpu_parts.py step`, on one thread, as OpenVINO counts it: of each operation the shortest of
all rounds, so that others on the machine are left out as far as they can be. Writes docs/measurements/cpu-profile.json
and docs/images/cpu-profile.png.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sana_runtime.openvino_session import OpenVinoSession, ov
from sana_runtime.session import SessionOptions
from sana_runtime.signature import Signature

sys.path.insert(0, str(Path(__file__).parent))
from cpu_parts import INT8, TOKENS, Job
from cpu_race import RESULTS, machine, versions
from limits import preset

PLOT = RESULTS.parent / "images" / "cpu-profile.png"
WAYS = {
    "any size, fp32 between products": (False, False),
    "any size, bf16 between": (False, True),
    "one size, fp32 between": (True, False),
    "one size, bf16 between": (True, True),
}


class Profiled(OpenVinoSession):
    """A session that counts."""

    def __init__(self, graph: Path, options: SessionOptions) -> None:
        super().__init__(graph, options)
        self._properties["PERF_COUNT"] = "YES"
        self._pieces = 1  # one request tells of all operations
        self._requests.clear()  # what was compiled before does not count

    @property
    def request(self) -> ov.InferRequest:
        """The one that ran last."""
        return list(self._requests.values())[-1][-1]


def profile(graph: Path, signature: Signature | None, feeds: dict[str, Any], half: bool, rounds: int) -> dict[str, Any]:
    """Milliseconds and count by kind of operation; `signature` is None where the size is not to be known."""
    session = Profiled(graph, SessionOptions(half_products=half, threads=1, signature=signature))
    (times,) = shortest([lambda: (session.run(feeds), session.request)[1]], rounds)
    kinds: dict[str, list[float]] = defaultdict(list)
    for node in session.request.get_compiled_model().get_runtime_model().get_ordered_ops():
        spent = times.get(node.get_friendly_name(), 0.0)
        if spent:
            kinds[kind(node)].append(spent)
    ordered = sorted(kinds.items(), key=lambda item: -sum(item[1]))
    return {name: {"milliseconds": round(sum(each), 2), "nodes": len(each)} for name, each in ordered}


def shortest(runs: Sequence[Callable[[], ov.InferRequest]], rounds: int) -> list[dict[str, float]]:
    """Milliseconds by node, the least of all rounds, of runs in turn; each returns the request that it ran."""
    times: list[dict[str, float]] = [{} for _ in runs]
    for _ in range(rounds):
        for run, least in zip(runs, times, strict=True):
            for node in run().profiling_info:
                spent = node.real_time.total_seconds() * 1000
                least[node.node_name] = min(spent, least.get(node.node_name, spent))
    return times


def kind(node: Any) -> str:
    """What a node does, and in which numbers."""
    notes = node.get_rt_info()
    return f"{notes['layerType'].astype(str)} {notes['runtimePrecision'].astype(str)}"


def draw(found: dict[str, Any]) -> None:
    """One bar for each way, kinds on top of each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 4.5))
    names = list(dict.fromkeys(name for kinds in found.values() for name in list(kinds)[:8]))
    left = np.zeros(len(found))
    for name in names:
        widths = np.array([kinds.get(name, {}).get("milliseconds", 0.0) for kinds in found.values()])
        axis.barh(list(found), widths, left=left, label=name)
        left += widths
    axis.invert_yaxis()
    axis.set(xlabel="milliseconds on one thread", title="two blocks of Sana-0.6B, INT8")
    axis.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(PLOT, dpi=90)


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write and draw."""
    parser = argparse.ArgumentParser()
    for name, usual in (("--depth", 2), ("--size", 512), ("--rounds", 20)):
        parser.add_argument(name, type=int, default=usual)
    parser.add_argument("--folder", type=Path, default=Path("out/bench"))
    chosen = parser.parse_args(arguments)
    job = Job(chosen.folder / f"depth{chosen.depth}", chosen.size // 32, 1, preset(chosen.depth))
    feeds = job.signature.example_feeds(batch=job.batch, height=job.side, width=job.side, rows=max(TOKENS))
    graph = job.folder / INT8 / "transformer.onnx"
    found = {}
    for name, (known, half) in WAYS.items():
        found[name] = profile(graph, job.signature if known else None, feeds, half, chosen.rounds)
        print(f"{name}: {sum(each['milliseconds'] for each in found[name].values()):.1f} ms")
        for what, each in list(found[name].items())[:12]:
            print(f"    {each['milliseconds']:8.2f} ms {each['nodes']:4d} {what}")
    facts = {"depth": chosen.depth, "size": chosen.size, "machine": machine(), "versions": versions()}
    (RESULTS / "cpu-profile.json").write_text(json.dumps({**facts, "ways": found}, indent=1) + "\n")
    draw(found)


if __name__ == "__main__":
    main(sys.argv[1:])
