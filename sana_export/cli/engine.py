"""`sana-export engine`."""

from pathlib import Path
from typing import Any

import click
from sana_runtime.errors import UsageError

from sana_export.cli.options import bundle_argument, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]

TARGETS = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}


def _capabilities(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    words = value.split(",") if value else []
    if not all(word.isdecimal() for word in words):
        raise UsageError(f"--sm {value}: give compute capabilities without the dot, such as 75,86,89,120")
    return tuple(dict.fromkeys(int(word) for word in words))


@click.command("engine")
@bundle_argument
@click.option("--target", type=click.Choice(tuple(TARGETS)), default="rtx", show_default=True)
@click.option(
    "--sm", "capabilities", callback=_capabilities, help="Compute capabilities, such as 75,86,89,120; this machine's."
)
@click.option("--plugin/--no-plugin", default=True, show_default=True, help="Attention in our kernels or TensorRT's.")
@click.option("--part", "parts", multiple=True, help="Only this part; may be given more than once.")
@json_option
def command(
    bundle: Path, target: str, capabilities: tuple[int, ...], plugin: bool, parts: tuple[str, ...], as_json: bool
) -> None:
    """Build the engines of BUNDLE into the cache; for RTX cards that needs no card."""
    from sana_runtime.bundle import open_bundle
    from sana_runtime.engine_cache import EngineCache

    from sana_export.engines.bundle import EngineRequest, build_engines
    from sana_export.engines.cards import capabilities_here
    from sana_export.engines.job import BuildProgress
    from sana_export.engines.library import Library
    from sana_export.engines.report import describe_outcomes, render_outcomes

    if capabilities and target == "tensorrt":
        raise UsageError("--sm has no effect with --target tensorrt, which builds for the card at hand; leave it out")
    with Reporter(as_json=as_json) as reporter:

        def on_progress(progress: BuildProgress) -> None:
            left = f", {progress.seconds_left:.0f} s left" if progress.seconds_left else ""
            reporter.step(progress.part, progress.fraction, f"{progress.part}: {progress.message}{left}")

        request = EngineRequest(capabilities or capabilities_here(), Library(TARGETS[target]), plugin, parts)
        cache = EngineCache(note=reporter.note)
        outcomes = build_engines(open_bundle(bundle), request, cache, on_progress)
    described: list[dict[str, Any]] = describe_outcomes(outcomes)
    reporter.result(render_outcomes(described), engines=described)
