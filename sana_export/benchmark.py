"""How fast a bundle is on this machine: each part alone and the whole picture, cold and warm, with the memory taken."""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sana_runtime.bundle import Bundle, open_bundle
from sana_runtime.manifest import Manifest
from sana_runtime.pipeline import Pipeline
from sana_runtime.session import Device, Session, SessionOptions, open_session
from sana_runtime.signature import COMPRESSION

from sana_export.painting import interruptible

__all__ = ["Measured", "Settings", "benchmark", "render"]

PROMPT = "a red circle above a blue square"
PAGE_BYTES = 4096
TOKENS = 20  # of the prompt that the text encoder is given


@dataclass(frozen=True)
class Settings:
    """What is measured; None means the bundle's own."""

    repeats: int = 5
    size: tuple[int, int] | None = None  # height, width
    steps: int | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Measured:
    """Seconds of one thing, and the memory that it added, where the system tells."""

    name: str
    load: float  # to open it
    first: float  # the first run, which often prepares things
    runs: tuple[float, ...]  # the following ones
    memory: int | None  # bytes that it keeps once it has run

    @property
    def median(self) -> float:
        """The middle one of the warm runs."""
        return statistics.median(self.runs)

    @property
    def spread(self) -> float:
        """Distance of the slowest warm run from the fastest, as a share of the median."""
        return (max(self.runs) - min(self.runs)) / self.median


OnMeasured = Callable[[str, int, int], None]


def benchmark(path: Path, settings: Settings, on_measured: OnMeasured) -> dict[str, Any]:
    """Everything that `bench` shows."""
    bundle = open_bundle(path)
    Pipeline.open(path, device=settings.device, threads=1).close()  # refuses a device that is none, loads nothing
    parts = ["text_encoder", "caption", "transformer", "decoder"]
    rows = []
    for number, name in enumerate([*parts, "picture"]):
        on_measured(name, number, len(parts) + 1)
        measure = _picture if name == "picture" else _part
        rows.append(measure(bundle, name, settings))
    size = settings.size or bundle.manifest.defaults.size
    return {
        "bundle": str(path),
        "digest": bundle.digest,
        "model": bundle.manifest.model,
        "precision": bundle.manifest.precision,
        "device": settings.device,
        "size": f"{size[1]}x{size[0]}",
        "steps": settings.steps or bundle.manifest.defaults.steps,
        "repeats": settings.repeats,
        "peak_memory": _peak_bytes(),
        "measured": [{**asdict(row), "median": row.median, "spread": row.spread} for row in rows],
    }


def render(found: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        "{bundle}: {model}, {precision}, {size}, {steps} steps, device {device}, {repeats} warm runs".format(**found),
        "",
        f"{'':<14}{'load s':>9}{'cold s':>9}{'warm s':>9}{'spread':>8}{'MB':>8}",
    ]
    for row in found["measured"]:
        memory = "" if row["memory"] is None else f"{row['memory'] / 1e6:.0f}"
        times = f"{row['load']:>9.3f}{row['first']:>9.3f}{row['median']:>9.3f}{row['spread']:>8.0%}"
        lines.append(f"{row['name']:<14}{times}{memory:>8}")
    if found["peak_memory"] is not None:
        lines += ["", f"peak memory of the process: {found['peak_memory'] / 1e6:.0f} MB"]
    return "\n".join(lines)


def _part(bundle: Bundle, name: str, settings: Settings) -> Measured:
    """One graph, fed as a guided picture feeds it."""
    part = bundle.manifest.parts[name]
    device = Device.CPU if settings.device == "auto" else Device(settings.device)
    feeds = part.signature.example_feeds(**_sizes(bundle.manifest, name, settings))
    part.signature.check(feeds)
    before = _resident_bytes()

    def load() -> Session:
        return open_session(bundle.graph(name), device, SessionOptions.of(part))

    session, seconds = _timed(load)
    return _measured(name, seconds, before, lambda: session.run(feeds), settings.repeats)


def _picture(bundle: Bundle, name: str, settings: Settings) -> Measured:
    """The whole way from the prompt to pixels; every run has its own prompt, so that none is remembered."""
    before = _resident_bytes()
    pipeline, seconds = _timed(lambda: Pipeline.open(bundle.path, device=settings.device, size=settings.size))
    count = iter(range(settings.repeats + 1))

    def paint() -> object:
        prompt = f"{PROMPT} {next(count)}"
        return interruptible(
            pipeline, lambda: pipeline.generate(prompt, size=settings.size, steps=settings.steps, seed=1)
        )

    return _measured(name, seconds, before, paint, settings.repeats)


def _sizes(manifest: Manifest, name: str, settings: Settings) -> dict[str, int]:
    """Lengths of the axes: a prompt and its negative side by side, one picture of the size asked for."""
    height, width = settings.size or manifest.defaults.size
    told = any(spec.name == "guidance" for spec in manifest.parts["transformer"].inputs)
    guided = name == "transformer" and manifest.defaults.guidance > 1 and not told
    latent = {"height": height // COMPRESSION, "width": width // COMPRESSION}
    return {"batch": 2 if guided else 1, "tokens": TOKENS, "rows": TOKENS + 1, **latent}


def _measured(name: str, load: float, before: int | None, run: Callable[[], object], repeats: int) -> Measured:
    _, first = _timed(run)
    runs = tuple(_timed(run)[1] for _ in range(repeats))
    after = _resident_bytes()
    memory = None if before is None or after is None else max(0, after - before)
    return Measured(name, load, first, runs, memory)


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = run()
    return result, time.perf_counter() - began


def _resident_bytes() -> int | None:
    """Memory that this process holds; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def _peak_bytes() -> int | None:
    """The most memory that this process ever held; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
