"""Build an INT8 bundle from nothing and watch: wall clock, CPU time, most memory, and how long each stage took.

    python bench/full_size_build.py MODEL BUNDLE

MODEL is a folder that `full_size_folder.py` wrote, or any other. No cache is reused. Memory is anonymous memory of the
build and all of its processes together, sampled: mapped weight files are the system's cache. Linux only. Writes
docs/measurements/full-size-build.json; what the build says goes to BUNDLE.jsonl.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import RESULTS, machine, versions

TOOL = str(Path(sys.executable).with_name("sana-export"))
SAMPLE_SECONDS = 0.1
AGAIN = "still "  # how a message begins that only says that the work goes on


def tree(process: int) -> list[int]:
    """A process and all that it started, directly or not."""
    found = [process]
    with suppress(OSError):  # it ended meanwhile
        for listed in list(Path(f"/proc/{process}/task").glob("*/children")):
            for child in listed.read_text().split():
                found += tree(int(child))
    return found


def anonymous(process: int) -> int:
    """Bytes that a process holds for itself; none once it has ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")), 0)
    return 0


class Watch(threading.Thread):
    """Samples what a process and its children hold."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = 0, threading.Event()
        self._process = process

    def run(self) -> None:
        """Sample until it is over."""
        while not self.over.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(anonymous(each) for each in tree(self._process)))


def stages(said: Sequence[tuple[float, dict[str, Any]]], total: float) -> list[dict[str, Any]]:
    """What a build did one after the other, and the seconds of each, from what it said and when."""
    begun: list[tuple[float, str, str]] = []
    for at, event in said:
        told = event.get("event") == "progress" and not event["message"].startswith(AGAIN)
        if told and (not begun or begun[-1][1] != event["stage"]):
            begun.append((at, event["stage"], event["message"]))
    ends = [at for at, *_ in begun[1:]] + [total]
    return [
        {"stage": stage, "first": message, "seconds": round(end - at, 1)}
        for (at, stage, message), end in zip(begun, ends, strict=True)
    ]


def measure(model: str, bundle: Path) -> dict[str, Any]:
    """One build."""
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.parent.mkdir(parents=True, exist_ok=True)
    said: list[tuple[float, dict[str, Any]]] = []
    log = bundle.with_name(f"{bundle.name}.jsonl")
    with tempfile.TemporaryDirectory(dir=bundle.parent) as home, log.open("w") as kept:
        homes = {"XDG_CACHE_HOME": f"{home}/cache", "XDG_DATA_HOME": f"{home}/data"}
        environment = {**os.environ, **homes, "SANA_EXPORT_COMPILED": "on"}  # as it is for a user
        command = [TOOL, "build", model, "--precision", "int8", "--json", "--output", str(bundle)]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as build:
            watch = Watch(build.pid)
            watch.start()
            assert build.stdout is not None
            for line in build.stdout:
                said.append((time.perf_counter() - begun, json.loads(line)))
                print(line, end="", file=kept, flush=True)
        total, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        watch.over.set()
        watch.join()
    if build.returncode:
        raise SystemExit(f"sana-export build ended with {build.returncode}; see {log}")
    return {
        "wall_seconds": round(total, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "peak_anonymous_bytes": watch.peak,
        "bundle_bytes": said[-1][1]["size"],
        "notes": [event["message"] for _, event in said if event["event"] == "note"],
        "stages": stages(said, total),
    }


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("bundle", type=Path)
    chosen = parser.parse_args(arguments)
    found = {**measure(chosen.model, chosen.bundle), "machine": machine(), "versions": versions()}
    (RESULTS / "full-size-build.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
