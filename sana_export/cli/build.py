"""`sana-export build`."""

from pathlib import Path

import click
from sana_runtime.errors import BackendError

from sana_export.cli.options import calibration_options, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]

PRECISIONS = ("int8", "bf16", "fp16", "fp32")


@click.command("build")
@click.argument("model", default="nano")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; MODEL's name when left out.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="int8", show_default=True)
@click.option("--autoencoder", help="Folder, file or id of the DC-AE, for a .pth that has none, or to replace it.")
@click.option("--text-encoder", help="Folder or id of the Gemma-2, for a .pth that has none, or to replace it.")
@click.option("--revision", help="Branch or commit of a Hugging Face id.")
@click.option("--variant", help="Kind of weight files, such as fp16.")
@click.option("--resume", is_flag=True, help="Keep the parts that an interrupted build of the same model finished.")
@calibration_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    model: str,
    output: Path | None,
    precision: str,
    resume: bool,
    as_json: bool,
    prompts: Path | None,
    samples: int | None,
    force: bool,
    **origin: str | None,
) -> None:
    """Make a bundle from MODEL: a diffusers folder, an NVlabs .pth, a Hugging Face id, or `nano`, which is built in."""
    with Reporter(as_json=as_json) as reporter:
        reporter.step("start", 0.0, "starting")
        try:
            from sana_export.build import build
            from sana_export.quantising import Int8Settings
        except ImportError as error:
            raise BackendError(f"building needs {error.name}; run `pip install 'sana-export[build]'`") from None
        from sana_export.latest import remember_bundle
        from sana_export.origin import Origin
        from sana_export.precision import Precision
        from sana_export.verified import remember_verified

        if ctx.get_parameter_source("model") is click.core.ParameterSource.DEFAULT:
            reporter.note("no MODEL given: building nano, the small model that is built in")

        target = output or _usual_output(model, precision)
        source, int8, tell = Origin(model, **origin), Int8Settings(prompts, samples, force), reporter.build_step
        bundle = build(source, target, Precision(precision), resume=resume, int8=int8, on_step=tell)
        remember_bundle(target)
        remember_verified(target, "auto")  # its golden pictures were painted on it a moment ago
        reporter.result(str(target), bundle=str(target), digest=bundle.digest, size=bundle.size)


def _usual_output(model: str, precision: str) -> Path:
    """A folder here, named after the model: also when that is `.` or a file."""
    return Path(f"{Path(model).resolve().name.removesuffix('.pth')}-{precision}")
