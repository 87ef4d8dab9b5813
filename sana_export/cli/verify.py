"""`sana-export verify`."""

from pathlib import Path

import click

from sana_export.cli.options import bundle_argument, device_option, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("verify")
@bundle_argument
@device_option
@json_option
def command(bundle: Path, device: str, as_json: bool) -> None:
    """Read every byte of BUNDLE and paint its golden pictures on this machine."""
    from sana_export.replay import verify

    with Reporter(as_json=as_json) as reporter:
        reporter.step("verify", 0.0, f"{bundle}: reading every byte, then painting the golden pictures")
        replays = verify(bundle, device)
        worst = min((done.psnr for done in replays), default=None)
        told = "no golden record" if worst is None else f"{len(replays)} golden pictures at {worst:.1f} dB or better"
        reporter.result(
            f"{bundle}: every byte as packed; {told}", bundle=str(bundle), replayed=len(replays), psnr=worst
        )
