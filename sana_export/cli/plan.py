"""`sana-export plan`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from sana_runtime.errors import BackendError

from sana_export.cli.build import PRECISIONS
from sana_export.cli.options import SIZE, json_option
from sana_export.cli.progress import Reporter

if TYPE_CHECKING:
    from sana_runtime.memory_plan import PartMemory

    from sana_export.plan import Plan

__all__ = ["command"]


@click.command("plan")
@click.argument("model", default="nano")
@click.option("--precision", type=click.Choice(PRECISIONS), default="int8", show_default=True)
@click.option("--size", type=SIZE, help="WIDTHxHEIGHT of the picture; the model's own when left out.")
@json_option
@click.pass_context
def command(ctx: click.Context, model: str, precision: str, size: tuple[int, int] | None, as_json: bool) -> None:
    """Say what building MODEL and painting with it will take: sizes, memory, time. MODEL may be a finished bundle."""
    with Reporter(as_json=as_json) as reporter:
        reporter.step("plan", 0.0, f"reading the sizes of {model}")
        if (Path(model) / "manifest.json").is_file():
            if ctx.get_parameter_source("precision") is not click.core.ParameterSource.DEFAULT:
                raise click.UsageError("--precision has no effect on a finished bundle; leave it out", ctx)
            text, fields = _of_bundle(Path(model), size)
        else:
            text, fields = _of_model(model, precision, size)
        reporter.result(text, model=model, **fields)


def _of_bundle(path: Path, size: tuple[int, int] | None) -> tuple[str, dict[str, Any]]:
    from sana_runtime.bundle import open_bundle
    from sana_runtime.memory_plan import of_bundle

    bundle = open_bundle(path)
    size = size or bundle.manifest.defaults.size
    return _painting(of_bundle(bundle, size), bundle.manifest.files["tokenizer.json"].size, size)


def _of_model(model: str, precision: str, size: tuple[int, int] | None) -> tuple[str, dict[str, Any]]:
    try:
        from sana_reference.checkpoint import load_checkpoint

        from sana_export.plan import Habits, foresee_painting, plan
    except ImportError as error:
        raise BackendError(f"planning needs {error.name}; run `pip install 'sana-export[build]'`") from None
    from sana_runtime.signature import COMPRESSION

    from sana_export.precision import Precision

    checkpoint, chosen = load_checkpoint(model), Precision(precision)
    side = checkpoint.config.sample_size * COMPRESSION
    size = size or (side, side)
    habits = Habits.of(checkpoint)
    build_text, build_fields = _building(plan(checkpoint, chosen, habits))
    parts = foresee_painting(checkpoint, chosen, size, guided=habits.guided)
    text, fields = _painting(parts, checkpoint.tokenizer.stat().st_size, size)
    return f"{build_text}\n\n{text}", {**build_fields, **fields}


def _building(planned: "Plan") -> tuple[str, dict[str, Any]]:
    lines = [f"{'part':<14}{'type':<10}{'parameters':>14}{'MB':>9}{'peak GB':>9}{'seconds':>9}"]
    lines += [
        f"{part.name:<14}{part.dtype:<10}{part.parameters:>14,}{part.bytes / 1e6:>9.1f}"
        f"{part.peak_bytes / 1e9:>9.1f}{part.seconds:>9.0f}"
        for part in planned.parts
    ]
    lines += [f"{stage.name:<47}{stage.peak_bytes / 1e9:>9.1f}{stage.seconds:>9.0f}" for stage in planned.stages]
    lines += [
        "",
        f"{planned.bytes / 1e6:.1f} MB bundle, {planned.disk_bytes / 1e6:.1f} MB on disk while it is built, at most "
        f"{planned.peak_bytes / 1e9:.1f} GB of memory, about {planned.seconds:.0f} s on two cores; memory and time are "
        "estimates",
    ]
    if planned.side_by_side:
        lines.append("here the text encoder is exported beside the other parts, which memory and cores are enough for")
    totals = {name: getattr(planned, name) for name in ("bytes", "disk_bytes", "peak_bytes", "seconds", "side_by_side")}
    return "\n".join(lines), {
        "parts": [asdict(part) for part in planned.parts],
        "stages": [asdict(stage) for stage in planned.stages],
        **totals,
    }


def _painting(parts: tuple["PartMemory", ...], tokenizer: int, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    from sana_runtime.memory import available_memory
    from sana_runtime.memory_plan import all_loaded, fits, one_at_a_time

    least, most, (height, width) = one_at_a_time(parts, tokenizer), all_loaded(parts, tokenizer), size
    lines = [f"painting {width}x{height}", f"{'part':<14}{'weights MB':>12}{'working MB':>12}"]
    lines += [f"{part.name:<14}{part.weights / 1e6:>12.1f}{part.working / 1e6:>12.1f}" for part in parts]
    lines += [
        "",
        f"about {least / 1e9:.2f} GB of memory with one part loaded at a time, {most / 1e9:.2f} GB with all; "
        "the weight files are mapped besides, as cache that the system takes back",
        "here all parts stay loaded" if (together := fits(most, available_memory())) else "here parts take turns",
    ]
    totals = {"one_at_a_time": least, "all_loaded": most, "stay_loaded": together}
    return "\n".join(lines), {"painting": [asdict(part) for part in parts], **totals}
