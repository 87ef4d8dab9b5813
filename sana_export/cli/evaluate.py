"""`sana-export evaluate`."""

from pathlib import Path
from typing import Any

import click

from sana_export.cli.options import INTERVAL, bundle_argument, device_option, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("evaluate")
@bundle_argument
@click.option("--each", type=click.IntRange(1, 1000), default=20, show_default=True, help="Prompts in each category.")
@click.option("--steps", type=int, help="Solver steps.")
@click.option("--guidance", type=float, help="How strongly the prompt is emphasised.")
@click.option("--guidance-interval", type=INTERVAL, help="Timesteps, of 1000 (noise) to 0, that --guidance is for.")
@click.option("--sheet", type=click.Path(path_type=Path), help="PNG to write with the first pictures.")
@device_option
@json_option
def command(bundle: Path, as_json: bool, **options: Any) -> None:
    """Measure how well BUNDLE follows prompts about drawn shapes; the pictures are read by their pixels."""
    with Reporter(as_json=as_json) as reporter:
        reporter.step("open", 0.0, f"opening {bundle}")
        from sana_export.evaluate import Settings, evaluate, render

        def on_pictures(done: int, total: int) -> None:
            reporter.step("evaluate", done / total, f"{done} of {total} pictures painted and read")

        scores = evaluate(bundle, Settings(**options), on_pictures)
        fields = {name: {"right": score.right, "asked": score.asked} for name, score in scores.items()}
        reporter.result(render(scores), scores=fields)
