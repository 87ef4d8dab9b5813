"""`sana-export calibrate`."""

from pathlib import Path

import click
from sana_runtime.errors import BackendError

from sana_export.cli.options import calibration_options, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("calibrate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write; BUNDLE-int8 when left out.")
@calibration_options
@json_option
def command(
    bundle: Path, output: Path | None, prompts: Path | None, samples: int | None, force: bool, as_json: bool
) -> None:
    """Make an INT8 bundle from BUNDLE, which was built with --precision fp32; needs no checkpoint and no torch."""
    with Reporter(as_json=as_json) as reporter:
        reporter.step("start", 0.0, "starting")
        try:
            from sana_export.quantising import Int8Settings, calibrate
        except ImportError as error:
            raise BackendError(f"calibration needs {error.name}; run `pip install 'sana-export[build]'`") from None
        from sana_export.latest import remember_bundle
        from sana_export.verified import remember_verified

        target = output or bundle.resolve().with_name(f"{bundle.resolve().name}-int8")
        made = calibrate(bundle, target, Int8Settings(prompts, samples, force), reporter.build_step)
        remember_bundle(target)
        remember_verified(target, "auto")  # its golden pictures were painted on it a moment ago
        reporter.result(str(target), bundle=str(target), digest=made.digest, size=made.size)
