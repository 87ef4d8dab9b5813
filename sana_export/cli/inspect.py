"""`sana-export inspect`."""

from pathlib import Path
from typing import Any

import click
from sana_runtime.errors import UsageError

from sana_export.cli.options import json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--engine", type=click.Path(path_type=Path), help="An engine instead of a bundle: what it really does.")
@click.option("--html", type=click.Path(path_type=Path), help="Page to write besides: every layer, with its precision.")
@json_option
def command(bundle: Path | None, engine: Path | None, html: Path | None, as_json: bool) -> None:
    """Show what is in BUNDLE: parts, precision, sizes, licences and defaults; or what an engine does, by kernel."""
    if bundle and engine:
        raise UsageError("give a bundle or --engine, not both")
    if html and engine:
        raise UsageError("--html shows bundles, not engines; leave it out")
    with Reporter(as_json=as_json) as reporter:
        text, fields = _engine(engine) if engine else _bundle(bundle)
        if html:
            _write_page(html, fields)
            reporter.note(f"the page is {html}")
        reporter.result(text, **fields)


def _bundle(path: Path | None) -> tuple[str, dict[str, Any]]:
    from sana_export.inspect import describe, render
    from sana_export.latest import latest_bundle

    described = describe(path or latest_bundle())
    return render(described), described


def _write_page(path: Path, described: dict[str, Any]) -> None:
    from sana_export.inspect_page import inspection_page

    try:
        path.write_text(inspection_page(described), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}); name another file with --html") from error


def _engine(path: Path) -> tuple[str, dict[str, Any]]:
    from sana_export.engines.report import describe_engine, render_engine

    described = describe_engine(path)
    return render_engine(described), described
