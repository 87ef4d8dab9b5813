"""`sana-export info`."""

from dataclasses import asdict
from pathlib import Path

import click

from sana_export.cli.options import json_option
from sana_export.cli.progress import Reporter, escaped

__all__ = ["command"]


@click.command("info")
@click.argument("picture", type=click.Path(path_type=Path))
@json_option
def command(picture: Path, as_json: bool) -> None:
    """Show how the PNG file PICTURE was painted; no model is loaded."""
    from sana_runtime.picture import read_recipe

    fields = asdict(read_recipe(picture))
    height, width = fields["size"]
    low, high = fields["guidance_interval"]
    shown = {**fields, "size": f"{width}x{height}", "interval": f"{low:g}..{high:g}"}
    del shown["guidance_interval"]
    text = "\n".join(f"{name:<9} {escaped(str(value))}" for name, value in shown.items())
    Reporter(as_json=as_json).result(text, **fields)
