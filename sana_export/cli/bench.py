"""`sana-export bench`."""

from pathlib import Path

import click

from sana_export.cli.options import SIZE, bundle_argument, device_option, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("bench")
@bundle_argument
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True, help="Warm runs of each.")
@click.option("--size", type=SIZE, help="WIDTHxHEIGHT in pixels; the bundle's own when left out.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Solver steps of the whole picture.")
@device_option
@json_option
def command(
    bundle: Path, repeats: int, size: tuple[int, int] | None, steps: int | None, device: str, as_json: bool
) -> None:
    """Time BUNDLE on this machine: each part and a whole picture, cold and warm, with the memory taken."""
    with Reporter(as_json=as_json) as reporter:
        reporter.step("open", 0.0, f"opening {bundle}")
        from sana_export.benchmark import Settings, benchmark, render

        def on_measured(name: str, done: int, total: int) -> None:
            reporter.step(name, done / total, f"{name}: loading, one cold run, {repeats} warm ones")

        found = benchmark(bundle, Settings(repeats, size, steps, device), on_measured)
        reporter.result(render(found), **found)
