"""Let contenders run in turn, A B C A B C, each in a process of its own, and write down how their times compare.

Every run's wall-clock and CPU time is kept. On a busy machine only CPU time (of all threads of the process) compares
fairly, and the load is in the results; on a quiet one wall-clock time is what people wait for. Peak memory is of the
contender's whole process.
"""

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
# where figures go; `design_table.py` collects those of its own run in another folder
RESULTS = Path(os.environ.get("SANA_BENCH_RESULTS") or ROOT / "docs" / "measurements")
PACKAGES = ("torch", "diffusers", "openvino", "onnxruntime", "optimum-intel")

os.environ.setdefault("SANA_EXPORT_COMPILED", "off")  # ours compiles like everybody else; starts have cpu_start.py
for reports in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(reports, "1")  # in contenders' processes, too

Run = Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class Contender:
    """Somebody's way of doing the work; `load` is called in the contender's own process and returns one run of it."""

    name: str
    load: Callable[[], Run]


@dataclass
class Result:
    """What one contender took."""

    name: str
    load_seconds: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    first: tuple[float, float] = (0.0, 0.0)  # wall clock and CPU time of the first run
    answer: NDArray[Any] | None = None  # of the first run
    difference: float = 0.0  # from the first contender's answer, in units of its largest number
    error: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """As it is written down."""
        if self.error:
            return {"error": self.error}
        spread = {kind: (max(times) - min(times)) / median(times) for kind, times in self._times}
        return {
            **{f"{kind}_seconds": round(median(times), 4) for kind, times in self._times},
            **{f"{kind}_spread": round(value, 3) for kind, value in spread.items()},
            "load_seconds": round(self.load_seconds, 2),  # and the first run
            "first_seconds": round(self.first[0], 4),
            "peak_bytes": self.peak_bytes,
            "difference": float(f"{self.difference:.2e}") if np.isfinite(self.difference) else None,
            "runs": {kind: [round(each, 4) for each in times] for kind, times in self._times},
        }

    @property
    def _times(self) -> tuple[tuple[str, list[float]], ...]:
        return ("wall", self.wall), ("cpu", self.cpu)


def only(contenders: Sequence[Contender], names: Sequence[str] | None) -> list[Contender]:
    """Those of these names; a name that is nobody's stands for all that begin with it. All, if none are given."""
    known = {each.name for each in contenders}
    starts = tuple(name for name in names or [""] if name not in known)
    return [each for each in contenders if each.name in (names or ()) or (starts and each.name.startswith(starts))]


def race(contenders: Sequence[Contender], rounds: int, threads: int) -> list[Result]:
    """Load all, run each once unmeasured, then `rounds` times in turn."""
    os.environ.update(OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE")
    results, lines = [Result(each.name) for each in contenders], []
    for contender, result in zip(contenders, results, strict=True):  # one after the other: loading is timed, too
        lines.append(_start(contender, result))
        result.difference = _difference(result.answer, results[0].answer)
        print(f"loaded {contender.name} in {result.load_seconds:.1f} s {result.error}", flush=True)
    for _ in range(rounds):
        for line, result in zip(lines, results, strict=True):
            if not result.error:
                line.send("run")
                wall, cpu, result.peak_bytes = _reply(line, (float("nan"), float("nan"), 0))
                result.wall.append(wall)
                result.cpu.append(cpu)
    for line, result in zip(lines, results, strict=True):
        if not result.error:
            line.send("stop")
    return results


def race_apart(contenders: Sequence[Contender], rounds: int, threads: int) -> list[Result]:
    """Load and run each once, `rounds` times in turn, never two in memory; the times are of first runs."""
    os.environ.update(OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE")
    results = [Result(each.name) for each in contenders]
    for _ in range(rounds):
        for contender, result in zip(contenders, results, strict=True):
            line = _start(contender, result)
            if not result.error:
                result.wall.append(result.first[0])
                result.cpu.append(result.first[1])
                line.send("stop")
            line.close()
            for process in multiprocessing.active_children():  # its memory is the next one's
                process.join()
            result.difference = _difference(result.answer, results[0].answer)
            print(f"{contender.name}: {result.first[0]:.1f} s {result.error}", flush=True)
    return results


def _start(contender: Contender, result: Result) -> Connection:
    """Start the contender's process and wait for its first run."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there, contender.load), daemon=True)
    process.start()
    there.close()
    ended = (0.0, None, "its process ended", (0.0, 0.0), 0)
    result.load_seconds, result.answer, result.error, result.first, result.peak_bytes = _reply(here, ended)
    return here


def _reply(line: Connection, otherwise: tuple[Any, ...]) -> tuple[Any, ...]:
    try:
        answer: tuple[Any, ...] = line.recv()
    except EOFError:
        return otherwise
    return answer


def _serve(line: Connection, load: Callable[[], Run]) -> None:
    """The contender's process."""
    begun = time.perf_counter()
    try:
        run = load()
        loaded = time.perf_counter() - begun
        answer, *first = _timed(run)
        line.send((loaded + first[0], answer, "", tuple(first), peak_bytes()))
    except Exception as error:  # anything that somebody's program may raise is a result
        line.send((0.0, None, f"{type(error).__name__}: {str(error)[:300]}", (0.0, 0.0), 0))
        return
    while line.recv() == "run":
        line.send((*_timed(run)[1:], peak_bytes()))


def _timed(run: Run) -> tuple[NDArray[Any], float, float]:
    """What a run answers, its wall clock and its CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    answer = run()
    return answer, time.perf_counter() - wall, time.process_time() - cpu


def peak_bytes() -> int:
    """Most memory that this process ever held; `ru_maxrss` would count what its parent held, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def _difference(answer: NDArray[Any] | None, first: NDArray[Any] | None) -> float:
    if answer is None or first is None or answer.shape != first.shape:
        return float("nan")
    return float(np.abs(answer.astype(np.float64) - first).max() / np.abs(first).max())


def report(name: str, results: Sequence[Result], facts: dict[str, Any]) -> str:
    """Write docs/measurements/NAME.json; returns the table of it."""
    document = {
        **facts,
        "machine": machine(),
        "versions": versions(),
        "results": {result.name: result.row for result in results},
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return table(document["results"])


def machine() -> dict[str, Any]:
    """What ran this, and how much else ran beside it."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    known = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in known.items()}
    wanted = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_int8")
    return {
        "processor": facts.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": [name for name in wanted if name in facts.get("flags", "").split()],
        "busy": os.getloadavg(),  # processes that wanted a core, over 1, 5 and 15 minutes; ours is one or two
    }


def versions() -> dict[str, str]:
    """Of the libraries that may have taken part."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The results for people: medians, and how many times as fast as each is than the first."""
    first = next(iter(rows.values()))
    lines = [
        "| contender | CPU time | ratio | wall clock | ratio | spread | peak memory | difference |",
        "| --- " * 8 + "|",
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | {row['error'][:80]} | | | | | | |")
            continue
        lines.append(
            f"| {name} | {row['cpu_seconds']:.3f} s | {first['cpu_seconds'] / row['cpu_seconds']:.2f} "
            f"| {row['wall_seconds']:.3f} s | {first['wall_seconds'] / row['wall_seconds']:.2f} "
            f"| {row['cpu_spread']:.0%} | {row.get('peak_bytes', 0) / 1e9:.2f} GB | {row['difference']} |"
        )
    return "\n".join(lines)
