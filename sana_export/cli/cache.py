"""`sana-export cache`."""

import click

from sana_export.cli.options import json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.group("cache")
def command() -> None:
    """Show or clear what is kept between runs."""


@command.command("path")
@json_option
def path(as_json: bool) -> None:
    """Say where it is kept."""
    from sana_export.cache import cache_folder

    Reporter(as_json=as_json).result(str(cache_folder()), path=str(cache_folder()))


@command.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List what is kept, with sizes."""
    from sana_export.cache import engines, entries, prompts, render

    kept, built, encoded = entries(), engines(), prompts()
    described = [{"name": name, "bytes": size} for name, size in kept]
    text = render(kept, built, encoded)
    Reporter(as_json=as_json).result(text, entries=described, engines=built, prompts=encoded)


@command.command("clear")
@click.argument("name", required=False)
@json_option
def clear(name: str | None, as_json: bool) -> None:
    """Remove what `ls` lists as NAME, or everything; it is made again when needed."""
    from sana_export.cache import clear_cache

    freed = clear_cache(name)
    Reporter(as_json=as_json).result(f"freed {freed / 1e6:.1f} MB", bytes=freed)
