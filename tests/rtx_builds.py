"""Build graphs with TensorRT-RTX in a process of its own: the first logger a process makes is its logger for good.

Runs as a program, too: jobs as JSON on standard input, one JSON answer a line on standard output.
"""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Job:
    """One graph, the architecture to build it for, and its inputs' smallest, usual and largest shapes."""

    graph: str
    architecture: str
    profiles: dict[str, Shapes]
    engine: str = ""  # where to write it, if anywhere


@dataclass(frozen=True)
class Build:
    """What came of a job: the size of the engine in bytes, 0 if there is none, the errors, the layers by kind."""

    engine_bytes: int
    errors: list[str]
    layers: dict[str, int]


def build_all(jobs: list[Job], *, plugin: bool = False) -> list[Build]:
    """Build every job, with the plugins or without, or skip the test where TensorRT-RTX is not installed."""
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed; pip install sana-export[rtx]")
    done = subprocess.run(
        [sys.executable, Path(__file__), *(["plugin"] if plugin else [])],
        input=json.dumps([asdict(job) for job in jobs]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [Build(**json.loads(line)) for line in done.stdout.splitlines()]


def _serve() -> None:
    import tensorrt_rtx as trt
    from sana_runtime.engine_library import error_log

    log = error_log(trt)
    if "plugin" in sys.argv:
        from sana_plugins.tensorrt.plugin import register

        register(trt)
    for job in json.load(sys.stdin):
        log.lines.clear()
        engine, layers = _build(trt, log, Job(**job))
        if engine and job["engine"]:
            Path(job["engine"]).write_bytes(engine)
        print(json.dumps(asdict(Build(engine.nbytes if engine else 0, log.lines, layers))), flush=True)


def _build(trt: Any, log: Any, job: Job) -> tuple[Any, dict[str, int]]:
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job.graph):
        return None, {}
    settings = builder.create_builder_config()
    settings.num_compute_capabilities = 1
    settings.set_compute_capability(getattr(trt.ComputeCapability, job.architecture), 0)
    profile = builder.create_optimization_profile()
    for name, shapes in job.profiles.items():
        profile.set_shape(name, *shapes)
    settings.add_optimization_profile(profile)
    layers = dict(Counter(network.get_layer(i).type.name for i in range(network.num_layers)))
    return builder.build_serialized_network(network, settings), layers


if __name__ == "__main__":
    _serve()
