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
@click.option("--sm", callback=_capabilities, help="Compute capabilities, such as 75,86,89,120; this machine's.")
@click.option("--plugin/--no-plugin", default=True, show_default=True, help="Attention in our kernels or TensorRT's.")
@click.option(
    "--sizes",
    default="all",
    show_default=True,
    help="Of pictures: 1024 for the formats of about as many pixels as that square, or some, as 1024x1024,1216x832.",
)
@click.option("--fused-mix-ffn", is_flag=True, help="Also the middle of an INT8 Mix-FFN in our kernel; not measured.")
@click.option("--stream-weights", is_flag=True, help="Let weights that the card has no room for stay off it.")
@click.option("--part", "parts", multiple=True, help="Only this part; may be given more than once.")
@json_option
def command(bundle: Path, as_json: bool, **options: Any) -> None:
    """Build the engines of BUNDLE into the cache; for RTX cards that needs no card."""
    from sana_runtime.bundle import open_bundle
    from sana_runtime.engine_cache import EngineCache

    from sana_export.cli.engine_progress import engine_progress
    from sana_export.engines.bundle import EngineRequest, build_engines
    from sana_export.engines.cards import capabilities_for
    from sana_export.engines.library import Library
    from sana_export.engines.report import describe_outcomes, render_outcomes
    from sana_export.engines.sizes import span_of

    library = Library(TARGETS[options["target"]])
    with Reporter(as_json=as_json) as reporter:
        capabilities, opened = capabilities_for(library, options["sm"]), open_bundle(bundle)
        span = span_of(options["sizes"], opened.manifest)
        request = EngineRequest(
            capabilities,
            library,
            plugin=options["plugin"],
            parts=options["parts"],
            span=span,
            streams=options["stream_weights"],
            fused_mix_ffn=options["fused_mix_ffn"],
        )
        outcomes = build_engines(opened, request, EngineCache(note=reporter.note), engine_progress(reporter))
    described = describe_outcomes(outcomes)
    reporter.result(render_outcomes(described), engines=described)
