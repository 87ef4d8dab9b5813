"""How long a start takes, with compiled models kept from an earlier one and without.

    python bench/cpu_start.py [--depth 28] [--size 512] [--threads 2] [--rounds 5] [--folder out/bench]
    python bench/cpu_start.py --bundle BUNDLE [--size 512] …

The INT8 transformer of `cpu_parts.py step`, or a whole bundle. Every start is a process of its own, ways in turn, files
in the system's cache. A start is everything that a first run needs and a second does not: imports, opening, reading,
compiling or reading back. Of a bundle's, the share before the first step is told besides: parts that only come later
are loaded beside. Writes docs/measurements/cpu-start.json, or cpu-start-bundle.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

WAYS = {"compiled anew": "off", "read back": "on"}
PARTS = ("imports", "opening", "compiling")


def start_graph(graph: Path, depth: int, side: int, threads: int) -> dict[str, Any]:
    """Start with one transformer, in this process."""
    clock = _clock()
    from sana_runtime.openvino_session import OpenVinoSession
    from sana_runtime.session import SessionOptions
    from sana_runtime.signature import Sizes, signatures

    signature = signatures(Sizes(depth=depth, dim=1152, text_dim=2304))["transformer"]
    feeds = signature.example_feeds(batch=2, height=side, width=side, rows=26)
    imported = clock()
    session = OpenVinoSession(graph, SessionOptions(threads=threads, signature=signature))
    return _start(imported, clock(), lambda: session.run(feeds), clock)


def start_bundle(bundle: Path, size: int, threads: int) -> dict[str, Any]:
    """Start with a whole bundle, in this process."""
    clock = _clock()
    from sana_runtime.pipeline import Pipeline

    imported = clock()
    pipeline = Pipeline.open(bundle, threads=threads)
    opened = clock()
    begun: list[float] = []
    stepped: list[float] = []

    def on_step(event: Any) -> None:
        if event.stage == "paint" and event.index == 1:
            stepped.append(time.perf_counter())

    def paint() -> None:
        begun.append(time.perf_counter())
        pipeline.generate("a red circle", size=(size, size), steps=2, on_step=on_step)

    found = _start(imported, opened, paint, clock)
    first, second = (after - before for before, after in zip(begun, stepped, strict=True))
    before_step = imported["wall"] + opened["wall"] + first - second
    pipeline.close()
    return {**found, "before_first_step": before_step}


def _clock() -> Callable[[], dict[str, float]]:
    """A function that tells what passed since its last call."""
    last = {"wall": time.perf_counter(), "cpu": time.process_time()}

    def passed() -> dict[str, float]:
        now = {"wall": time.perf_counter(), "cpu": time.process_time()}
        spent = {kind: now[kind] - last[kind] for kind in now}
        last.update(now)
        return spent

    return passed


def _start(
    imported: dict[str, float], opened: dict[str, float], run: Callable[[], Any], clock: Callable[[], dict[str, float]]
) -> dict[str, Any]:
    run()
    first = clock()
    run()
    second = clock()
    compiled = {kind: first[kind] - second[kind] for kind in first}
    phases = dict(zip(PARTS, (imported, opened, compiled), strict=True))
    return {kind: {name: spent[kind] for name, spent in phases.items()} for kind in first}


def measure(chosen: argparse.Namespace, arguments: Sequence[str]) -> dict[str, Any]:
    """Medians by way; the first start of each, which writes what later ones read, is told apart."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as home:
        for _ in range(1 + chosen.rounds):
            for way, switch in WAYS.items():
                homes = {"XDG_CACHE_HOME": f"{home}/cache", "XDG_DATA_HOME": f"{home}/data"}
                environment = {**os.environ, **homes, "SANA_EXPORT_COMPILED": switch}
                command = [sys.executable, __file__, *arguments, "--here"]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
        kept = sum(file.stat().st_size for file in Path(home).rglob("*.model"))
    return {"kept_bytes": kept, "ways": {way: _summary(each) for way, each in runs.items()}}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"first_seconds": round(sum(runs[0]["wall"].values()), 3)}
    if "before_first_step" in runs[0]:
        found["before_first_step_seconds"] = round(median(run["before_first_step"] for run in runs[1:]), 3)
    for kind in ("wall", "cpu"):
        totals = [sum(run[kind].values()) for run in runs[1:]]
        found[f"{kind}_seconds"] = round(median(totals), 3)
        found[f"{kind}_runs"] = [round(each, 3) for each in totals]
        found[kind] = {name: round(median(run[kind][name] for run in runs[1:]), 3) for name in PARTS}
    return found


def main(arguments: Sequence[str]) -> None:
    """Prepare, measure, print and write."""
    parser = argparse.ArgumentParser()
    for name, usual in (("--depth", 28), ("--size", 512), ("--threads", 2), ("--rounds", 5)):
        parser.add_argument(name, type=int, default=usual)
    parser.add_argument("--folder", type=Path, default=Path("out/bench"))
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    folder, side = chosen.folder / f"depth{chosen.depth}", chosen.size // 32
    if chosen.here:
        graph = folder / "int8" / "transformer.onnx"
        bundle, threads = chosen.bundle, chosen.threads
        once = start_bundle(bundle, chosen.size, threads) if bundle else start_graph(graph, chosen.depth, side, threads)
        print(json.dumps(once))
        return
    from cpu_race import RESULTS, machine, versions

    if not chosen.bundle:
        from cpu_graphs import prepare_step
        from cpu_parts import Job
        from limits import preset

        prepare_step(Job(folder, side, chosen.threads, preset(chosen.depth)))
    found = measure(chosen, arguments)
    what = {"bundle": chosen.bundle.name} if chosen.bundle else {"depth": chosen.depth, "of_depth": 28}
    facts = {**what, "size": chosen.size, "threads": chosen.threads, "machine": machine(), "versions": versions()}
    name = "cpu-start-bundle.json" if chosen.bundle else "cpu-start.json"
    (RESULTS / name).write_text(json.dumps({**facts, **found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
