"""`sana-export inspect`."""

from pathlib import Path

import click

from sana_export.cli.options import bundle_argument, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("inspect")
@bundle_argument
@json_option
def command(bundle: Path, as_json: bool) -> None:
    """Show what is in BUNDLE: parts, precision, sizes, licences and defaults."""
    from sana_export.inspect import describe, render

    described = describe(bundle)
    Reporter(as_json=as_json).result(render(described), **described)
