"""`sana-export generate`."""

from pathlib import Path
from typing import Any

import click
from sana_runtime.errors import UsageError

from sana_export.cli.engine_progress import prepare_engines
from sana_export.cli.options import INTERVAL, SIZE, bundle_option, device_option, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]

STAGES = {"text": (0.0, 0.05), "paint": (0.05, 0.9), "decode": (0.9, 1.0)}  # share of the whole, about


@click.command("generate")
@click.argument("prompt", required=False)
@bundle_option
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("out.png"), show_default=True)
@click.option("--size", type=SIZE, help="WIDTHxHEIGHT in pixels; the bundle's own when left out.")
@click.option("--steps", type=int, help="Solver steps.")
@click.option("--guidance", type=float, help="How strongly the prompt is emphasised; 1 or less turns guidance off.")
@click.option("--guidance-interval", type=INTERVAL, help="Timesteps, of 1000 (noise) to 0, that --guidance is for.")
@click.option("--negative", help="What the picture should not show.")
@click.option("--seed", type=int, help="Picture i of several has seed + i. [default: 42]")
@click.option("--solver", type=click.Choice(["flow-dpm", "flow-euler", "scm"]))
@click.option("--count", type=int, default=1, show_default=True, help="Pictures per prompt.")
@click.option("--prompts", type=click.Path(path_type=Path), help="File with one prompt a line, in place of PROMPT.")
@click.option("--image", type=click.Path(path_type=Path), help="Picture to repaint.")
@click.option("--strength", type=float, help="Share of the steps that repaint --image. [default: 0.6]")
@click.option("--like", type=click.Path(path_type=Path), help="PNG whose recipe to repeat; other options override it.")
@click.option("--preview", is_flag=True, help="Write OUTPUT.preview.png after every step.")
@click.option("--no-metadata", is_flag=True, help="Leave the recipe out of the PNG.")
@click.option("--keep-prompts", is_flag=True, help="Keep encoded prompts on disk: again, they need no text encoder.")
@device_option
@json_option
def command(bundle: Path, as_json: bool, **options: Any) -> None:
    """Paint PROMPT and write a PNG; its path is printed."""
    from sana_export.generate import Order, generate
    from sana_export.verified import advice

    if options["strength"] is not None and options["image"] is None:
        raise UsageError("--strength has no effect without --image; add --image or leave it out")
    with Reporter(as_json=as_json) as reporter:
        order = Order(**options)
        order.prompt_list()  # what cannot be painted is refused before minutes go into engines
        prepare_engines(bundle, order.device, reporter)
        reporter.step("open", 0.0, f"opening {bundle}")

        def on_step(done: int, total: int, stage: str, index: int, of: int, left: float | None) -> None:
            low, high = STAGES[stage]
            fraction = (done + low + (high - low) * index / of) / total
            told = "" if left is None else f", {left:.0f} s left"
            reporter.step(stage, fraction, f"picture {done + 1} of {total}: {stage} {index}/{of}{told}")

        for number, painted in enumerate(generate(bundle, order, on_step)):
            if number == 0 and (told := advice(bundle, order.device)):
                reporter.note(told)
            reporter.result(str(painted.path), path=str(painted.path), seed=painted.seed, seconds=painted.seconds)
