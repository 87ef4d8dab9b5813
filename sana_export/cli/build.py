"""`sana-export build`."""

from pathlib import Path

import click
from sana_runtime.errors import UsageError

from sana_export.cli.options import json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]

PRECISIONS = ("fp32", "fp16", "bf16")


@click.command("build")
@click.argument("model", default="nano")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; MODEL's name when left out.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="bf16", show_default=True)
@click.option("--resume", is_flag=True, help="Keep the parts that an interrupted build of the same model finished.")
@json_option
@click.pass_context
def command(ctx: click.Context, model: str, output: Path | None, precision: str, resume: bool, as_json: bool) -> None:
    """Make a bundle from MODEL: a diffusers folder, an NVlabs .pth, a Hugging Face id, or `nano`, which is built in."""
    try:
        from sana_export.build import BuildStep, build
    except ImportError as error:
        raise UsageError(f"building needs {error.name}; run `pip install 'sana-export[build]'`") from None
    from sana_export.latest import remember_bundle
    from sana_export.precision import Precision

    with Reporter(as_json=as_json) as reporter:
        if ctx.get_parameter_source("model") is click.core.ParameterSource.DEFAULT:
            reporter.note("no MODEL given: building nano, the small model that is built in")

        def on_step(step: BuildStep) -> None:
            reporter.step(step.stage, step.fraction, step.message)

        target = output or Path(f"{Path(model).name}-{precision}")
        bundle = build(model, target, Precision(precision), resume=resume, on_step=on_step)
        remember_bundle(target)
        reporter.result(str(target), bundle=str(target), digest=bundle.digest, size=bundle.size)
