"""`sana-export serve`."""

import logging
import sys
from pathlib import Path
from typing import Any

import click
from sana_runtime.errors import BackendError

from sana_export.cli.engine_progress import prepare_engines
from sana_export.cli.options import device_option, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("serve")
@click.argument("bundles", nargs=-1, metavar="[BUNDLE]...", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others need an API key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any free one.")
@click.option(
    "--api-key",
    envvar="SANA_EXPORT_API_KEY",
    show_envvar=True,
    help="Key that clients must send. Other users of this machine can read it here; the variable hides it.",
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="Another name of this server, such as a proxy's.")
@click.option("--queue", type=click.IntRange(1, 1000), default=16, show_default=True, help="Jobs that may wait.")
@click.option("--max-steps", type=click.IntRange(1, 1000), default=100, show_default=True, help="Most steps of a job.")
@click.option(
    "--unfetched",
    type=click.Path(path_type=Path),
    help="Folder for finished pictures that nobody fetched before the server stopped.",
)
@device_option
@json_option
def command(bundles: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Serve each BUNDLE, or the last one built, to programs and on a page in the browser."""
    try:
        from sana_export.serve.server import open_server
    except ImportError as error:
        raise BackendError(f"serving needs {error.name}; run `pip install 'sana-export[serve]'`") from None
    from sana_export.latest import latest_bundle
    from sana_export.verified import advice

    reporter = Reporter(as_json=as_json)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("sana_export.serve").setLevel(logging.WARNING if as_json else logging.INFO)
    paths = bundles or (latest_bundle(),)
    with Reporter() as opening:  # on stderr also with --json: what programs read first is the address
        opening.step("open", 0.0, f"opening {', '.join(map(str, paths))}")
        for path in paths:
            prepare_engines(path, options["device"], opening)
        server = open_server(paths, _options(options))
        for told in filter(None, (advice(path, options["device"]) for path in paths)):
            opening.note(told)
    server.listen(lambda: reporter.result(server.url, url=server.url))
    for path in server.rescued:
        reporter.note(f"nobody fetched it, so it was kept: {path}")


def _options(given: dict[str, Any]) -> Any:
    from sana_export.serve.limits import Limits
    from sana_export.serve.server import Options

    return Options(
        host=given["host"],
        port=given["port"],
        key=given["api_key"],
        names=given["allow_host"],
        device=given["device"],
        limits=Limits(queue=given["queue"], steps=given["max_steps"]),
        unfetched=given["unfetched"],
    )
