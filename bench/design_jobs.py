"""What `design_table.py` runs: a job for each comparison, with the script that makes it, in order."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

TOOL = str(Path(sys.executable).with_name("sana-export"))
PEERS = Path("out/bench/optimum")  # where cpu_parts.py looks for optimum-intel
GRAPHS = Path("out/bench")  # where cpu_parts.py keeps what it made
RACING = (
    "diffusers fp32",
    "diffusers bf16",
    "ours bf16",
    "ours int8",
    "ours int8, bf16 between",
    "int8 products alone",
    "bf16 products alone",
)
PEERS_RACING = (
    "optimum-intel int8 weights, bf16",
    "optimum-intel hybrid int8, bf16",
    "optimum-intel static int8, bf16",
    "ours int8",
    "ours int8, bf16 between",
)
DECODING = ("diffusers fp32", "diffusers bf16", "ours bf16", "ours int8")
ENGINE = "2 blocks int8"  # of `engine_full_size.py`

Command = tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """What the jobs work on; `quick` only tries whether they work."""

    work: Path
    model: Path | None = None
    tokenizer: Path | None = None
    quick: bool = False

    @property
    def bundle(self) -> Path:
        """The INT8 bundle that is built of the model."""
        return self.work / "full-size"

    @property
    def gemma(self) -> Path | None:
        """Gemma's tokenizer: the model has one."""
        return self.tokenizer or (self.model / "tokenizer" if self.model else None)

    def pick(self, full: object, quick: object) -> str:
        """A value for real, or for a try."""
        return str(quick if self.quick else full)


def nothing(setting: Setting) -> str:
    """It can always run."""
    return ""


@dataclass(frozen=True)
class Job:
    """Commands that leave figures in files; `missing` says why they cannot be run here, or nothing."""

    name: str
    commands: Callable[[Setting], list[Command]]
    writes: tuple[str, ...]  # in the folder of results, without .json
    missing: Callable[[Setting], str] = nothing


def bench(script: str, *arguments: str) -> Command:
    """A script of this folder."""
    return (sys.executable, f"bench/{script}.py", *arguments)


def _start_up(setting: Setting) -> list[Command]:
    return [bench("start_up", "--rounds", setting.pick(7, 2))]


def _limits(setting: Setting) -> list[Command]:
    return [bench("limits", "--size", "512", "--threads", "2", "--rounds", setting.pick(7, 1))]


def _step(setting: Setting) -> list[Command]:
    how = ("--depth", setting.pick(28, 2), "--threads", "2", "--rounds", setting.pick(7, 1))
    return [bench("cpu_parts", "step", *how, "--only", *RACING)]


def _optimum(setting: Setting) -> list[Command]:
    how = ("--depth", "2", "--threads", "1", "--rounds", setting.pick(9, 1), "--to", "cpu-step-optimum")
    return [bench("cpu_parts", "step", *how, "--only", *PEERS_RACING)]


def _no_optimum(setting: Setting) -> str:
    return "" if PEERS.is_dir() else f"pip install --no-deps --target {PEERS} -r bench/cpu_optimum.txt"


def _text(setting: Setting) -> list[Command]:
    how = ("--layers", setting.pick(3, 1), "--threads", "2", "--rounds", setting.pick(7, 1))
    return [bench("text_encoding", str(setting.gemma), *how)]


def _no_tokenizer(setting: Setting) -> str:
    return "" if setting.gemma else "give --model, or --tokenizer and a folder with Gemma's tokenizer"


def _decode(setting: Setting) -> list[Command]:
    how = ("--size", setting.pick(512, 128), "--threads", "2", "--rounds", setting.pick(3, 1))
    return [bench("cpu_parts", "decode", *how, "--only", *DECODING)]


def _engine(setting: Setting) -> list[Command]:
    return [bench("engine_full_size", "--twice", ENGINE)]


def _no_rtx(setting: Setting) -> str:
    return "" if find_spec("tensorrt_rtx") else "pip install 'sana-export[rtx]'"


def _quality(setting: Setting) -> list[Command]:
    bundles = {precision: str(setting.work / f"nano-{precision}") for precision in ("fp32", "int8")}
    return [
        *((TOOL, "build", "nano", "--precision", each, "--output", at) for each, at in bundles.items()),
        bench("int8_quality", *bundles.values(), "--each", setting.pick(28, 2), "--device", "cpu"),
    ]


def _outliers(setting: Setting) -> list[Command]:
    return [bench("int8_outliers", str(setting.work / "nano-fp32"))]


def _no_float(setting: Setting) -> str:
    there = (setting.work / "nano-fp32" / "manifest.json").is_file()
    return "" if there else "needs a bundle that the job `quality` makes; run that first"


def _gpu(setting: Setting) -> list[Command]:
    return [bench("gpu_suite")]


def _no_cuda(setting: Setting) -> str:
    from gpu_suite import no_cuda

    return no_cuda() or "a card is here, and has a command of its own: `make gpu`"


def _build(setting: Setting) -> list[Command]:
    return [bench("full_size_build", str(setting.model), str(setting.bundle))]


def _no_model(setting: Setting) -> str:
    return "" if setting.model else "give --model and a folder that bench/full_size_folder.py wrote"


def _memory(setting: Setting) -> list[Command]:
    return [bench("painting_memory", str(setting.bundle), "--size", setting.pick("512x512", "128x128"))]


def _warm(setting: Setting) -> list[Command]:
    how = ("--size", setting.pick(512, 128), "--threads", "2", "--rounds", setting.pick(3, 1))
    return [bench("cpu_start", "--bundle", str(setting.bundle), *how)]


def _no_bundle(setting: Setting) -> str:
    there = (setting.bundle / "manifest.json").is_file()
    return "" if there else "needs the bundle that the build makes; run that first"


JOBS = {
    job.name: job
    for job in (
        Job("start-up", _start_up, ("start-up",)),
        Job("limits", _limits, ("cpu-limits",)),
        Job("step", _step, ("cpu-step",)),
        Job("decode", _decode, ("cpu-decode",)),
        Job("optimum", _optimum, ("cpu-step-optimum",), _no_optimum),
        Job("text", _text, ("text-encoding",), _no_tokenizer),
        Job("engine", _engine, ("engines",), _no_rtx),
        Job("quality", _quality, ("int8-quality",)),
        Job("outliers", _outliers, ("int8-outliers",), _no_float),
        Job("gpu", _gpu, (), _no_cuda),
        Job("build", _build, ("full-size-build",), _no_model),
        Job("memory", _memory, ("painting-memory",), _no_bundle),
        Job("warm-start", _warm, ("cpu-start-bundle",), _no_bundle),
    )
}
