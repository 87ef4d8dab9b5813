"""How long a start takes, with compiled models kept from an earlier one and without.

    python bench/cpu_start.py [--depth 28] [--size 512] [--threads 2] [--rounds 5] [--folder out/bench]
    python bench/cpu_start.py --bundle BUNDLE [--size 512] …

The INT8 transformer of `cpu_parts.py step`, or a whole bundle. Every start is a process of its own, ways in turn. All
files are read right before it, libraries included, so that they are in the system's cache: some systems drop what
nobody has read for seconds. A start is everything that a first run needs and a second does not: imports, opening,
reading, compiling or reading back, and encoding the prompt. Of a bundle's, the share before the first step is told
besides, as parts that only come later are loaded beside, and how long a second prompt takes to encode. A bundle also
starts with a prompt kept from an earlier start, as `generate --keep-prompts` does. Writes
docs/measurements/cpu-start.json, or cpu-start-bundle.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

ANEW, BACK, KEPT = "compiled anew", "read back", "read back, prompt kept"
WAYS = (ANEW, BACK)
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


def start_bundle(bundle: Path, size: int, threads: int, keep: bool) -> dict[str, Any]:
    """Start with a whole bundle, in this process."""
    clock = _clock()
    from sana_runtime.pipeline import Pipeline
    from sana_runtime.prompt_cache import PromptCache

    imported = clock()
    pipeline = Pipeline.open(bundle, threads=threads, prompt_cache=PromptCache() if keep else None)
    opened = clock()
    begun: list[float] = []
    stages: dict[str, list[float]] = {"text": [], "paint": []}  # when each was done for the first time

    def on_step(event: Any) -> None:
        if event.index == 1 and event.stage in stages:
            stages[event.stage].append(time.perf_counter())

    def paint(prompt: str = "a red circle") -> None:
        begun.append(time.perf_counter())
        pipeline.generate(prompt, size=(size, size), steps=2, on_step=on_step)

    found = _start(imported, opened, paint, clock)
    first, second = (after - before for before, after in zip(begun, stages["paint"], strict=True))
    before_step = imported["wall"] + opened["wall"] + first - second
    paint("a blue square")
    encoding = stages["text"][-1] - begun[-1]
    pipeline.close()
    return {**found, "before_first_step": before_step, "another_prompt": encoding}


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
    ways = (*WAYS, KEPT) if chosen.bundle else WAYS
    read = [chosen.bundle or chosen.folder / f"depth{chosen.depth}" / "int8", *libraries()]
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as home:
        for _ in range(1 + chosen.rounds):
            for way in ways:
                homes = {"XDG_CACHE_HOME": f"{home}/cache", "XDG_DATA_HOME": f"{home}/data"}
                environment = {**os.environ, **homes, "SANA_EXPORT_COMPILED": "off" if way == ANEW else "on"}
                command = [sys.executable, __file__, *arguments, "--here", way]
                fill_cache(*read, Path(home))
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                runs[way].append(json.loads(done.stdout.splitlines()[-1]))
        kept = sum(file.stat().st_size for file in Path(home).rglob("*.model"))
    return {"kept_bytes": kept, "ways": {way: _summary(each) for way, each in runs.items()}}


def libraries() -> list[Path]:
    """Folders of what a start imports that is large."""
    found = [find_spec(name) for name in ("numpy", "openvino", "onnxruntime")]
    return [Path(each.origin).parent for each in found if each is not None and each.origin]


def fill_cache(*folders: Path) -> None:
    """Read every file there."""
    for folder in folders:
        for file in filter(Path.is_file, folder.rglob("*")):
            with file.open("rb") as stream:
                while stream.read(1 << 24):
                    pass


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"first_seconds": round(sum(runs[0]["wall"].values()), 3)}
    for name in ("before_first_step", "another_prompt"):
        if name in runs[0]:
            found[f"{name}_seconds"] = round(median(run[name] for run in runs[1:]), 3)
            found[f"{name}_runs"] = [round(run[name], 3) for run in runs[1:]]
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
    parser.add_argument("--here", help=argparse.SUPPRESS)  # the way, of one start
    chosen = parser.parse_args(arguments)
    folder, side = chosen.folder / f"depth{chosen.depth}", chosen.size // 32
    if chosen.here:
        graph = folder / "int8" / "transformer.onnx"
        bundle, threads, keep = chosen.bundle, chosen.threads, chosen.here == KEPT
        if bundle:
            print(json.dumps(start_bundle(bundle, chosen.size, threads, keep)))
        else:
            print(json.dumps(start_graph(graph, chosen.depth, side, threads)))
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
