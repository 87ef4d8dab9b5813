"""`sana-export sign`."""

from pathlib import Path

import click

from sana_export.cli.options import bundle_argument, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("sign")
@bundle_argument
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Your private key, a PEM file.")
@click.option("--signature", type=click.Path(path_type=Path), help="File to write; BUNDLE.sig when left out.")
@json_option
def command(bundle: Path, key: Path, signature: Path | None, as_json: bool) -> None:
    """Sign every file of BUNDLE, so that others can check who made it."""
    from sana_export.signing import sign

    with Reporter(as_json=as_json) as reporter:
        reporter.step("sign", 0.0, f"{bundle}: reading every byte")
        written = sign(bundle, key, signature)
        reporter.result(str(written), bundle=str(bundle), signature=str(written))
