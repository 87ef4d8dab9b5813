"""Run everything that needs a card, and say of each stage that it passed, failed, or could not run and why: `make gpu`.

Kernels against float64, kernel times, engines of the nano model against pictures and prompts, step times
of the full model. Without a card nothing is measured and nothing is claimed; the exit code is 1 only when a stage
failed. Results lie in out/gpu.json, beside those that the stages write themselves.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sana_runtime.errors import SanaError

OUT = Path("out")
TOOL = str(Path(sys.executable).with_name("sana-export"))
PRECISIONS = ("fp16", "int8")


@dataclass(frozen=True)
class Stage:
    """One thing to run; `needs` says why it cannot run here, or nothing."""

    name: str
    command: tuple[str, ...]
    needs: Callable[[], str]
    settings: Mapping[str, str] = field(default_factory=dict)  # of the environment


@dataclass(frozen=True)
class Outcome:
    """What became of a stage."""

    name: str
    state: str  # passed, failed or not run
    told: str = ""


def no_cuda() -> str:
    """Why PyTorch cannot use a card."""
    import torch

    return "" if torch.cuda.is_available() else "PyTorch finds no CUDA device"


def no_rtx() -> str:
    """Why TensorRT-RTX cannot run engines."""
    try:
        from sana_runtime.cuda_driver import CudaDriver
        from sana_runtime.engine_library import library_for
        from sana_runtime.engines import CARDS
        from sana_runtime.session import Device

        library_for(Device.RTX)
        capability = CudaDriver().capability
    except SanaError as error:
        return str(error)
    builds = capability in CARDS[Device.RTX]
    return "" if builds else f"TensorRT-RTX builds no engines for compute capability {capability / 10}"


def stages() -> Iterator[Stage]:
    """Everything, in the order in which one builds on another."""
    yield Stage("kernels against float64", (sys.executable, "-m", "pytest", "-q", "-m", "gpu"), no_cuda)
    yield Stage("kernel times", (sys.executable, "bench/gpu_kernels.py"), no_cuda)
    for precision in PRECISIONS:
        bundle = str(OUT / f"gpu-{precision}")
        build = (TOOL, "build", "nano", "--precision", precision, "--output", bundle)
        yield Stage(f"nano {precision}: bundle", build, no_rtx)
        yield Stage(f"nano {precision}: engines", (TOOL, "engine", bundle, "--target", "rtx"), no_rtx)
        yield Stage(f"nano {precision}: golden pictures", (TOOL, "verify", bundle, "--device", "rtx", "--json"), no_rtx)
        evaluate = (TOOL, "evaluate", bundle, "--device", "rtx", "--json")
        yield Stage(f"nano {precision}: prompt-following", evaluate, no_rtx)
    bundle, fused = str(OUT / "gpu-int8"), "nano int8, fused Mix-FFN"
    apart = {"XDG_CACHE_HOME": str((OUT / "gpu-fused").absolute())}  # or these engines would be run in the stages above
    build = (TOOL, "engine", bundle, "--target", "rtx", "--fused-mix-ffn")
    yield Stage(f"{fused}: engines", build, no_rtx, apart)
    verify = (TOOL, "verify", bundle, "--device", "rtx", "--json")
    yield Stage(f"{fused}: golden pictures", verify, no_rtx, apart)
    yield Stage("step times", (sys.executable, "bench/gpu_steps.py"), no_cuda)


def outcome(stage: Stage) -> Outcome:
    """Run a stage if it can run."""
    missing = stage.needs()
    if missing:
        return Outcome(stage.name, "not run", missing)
    environment = {**os.environ, **stage.settings}
    done = subprocess.run(stage.command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    last = done.stdout.strip().splitlines()[-1:] or [""]
    return Outcome(stage.name, "failed" if done.returncode else "passed", last[0])


def main() -> None:
    """Run, tell, write."""
    outcomes = []
    for stage in stages():
        outcomes.append(outcome(stage))
        print(f"{outcomes[-1].state:8} {stage.name}: {outcomes[-1].told}", flush=True)
    OUT.mkdir(exist_ok=True)
    (OUT / "gpu.json").write_text(json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
    raise SystemExit(any(each.state == "failed" for each in outcomes))


if __name__ == "__main__":
    main()
