"""`sana-export doctor`."""

import click

from sana_export.cli.options import json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Say in one screen what this machine can run, and what to install for more."""
    from sana_export.doctor import examine, render

    found = examine()
    Reporter(as_json=as_json).result(render(found), **found)
