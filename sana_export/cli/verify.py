"""`sana-export verify`."""

from pathlib import Path

import click
from sana_runtime.errors import UsageError

from sana_export.cli.options import bundle_argument, device_option, json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("verify")
@bundle_argument
@device_option
@click.option(
    "--public-key", type=click.Path(path_type=Path), help="Its maker's key: check BUNDLE's signature, if any."
)
@click.option("--signature", type=click.Path(path_type=Path), help="The signature's file; BUNDLE.sig when left out.")
@click.option("--require-signature", is_flag=True, help="Refuse a bundle without a signature.")
@json_option
def command(
    bundle: Path, device: str, public_key: Path | None, signature: Path | None, require_signature: bool, as_json: bool
) -> None:
    """Read every byte of BUNDLE and paint its golden pictures on this machine."""
    from sana_export.replay import verify
    from sana_export.signing import check_signature, signature_file
    from sana_export.verified import remember_verified

    if (require_signature or signature) and public_key is None:
        raise UsageError("a signature can be checked against a key only; name its maker's with --public-key")
    with Reporter(as_json=as_json) as reporter:
        reporter.step("verify", 0.0, f"checking {bundle}")
        signed = public_key is not None and (require_signature or (signature or signature_file(bundle)).exists())
        if signed and public_key:
            check_signature(bundle, public_key, signature)
        replays = verify(bundle, device, lambda share, message: reporter.step("verify", share, message))
        remember_verified(bundle, device)
        worst = min((done.psnr for done in replays), default=None)
        told = "no golden record" if worst is None else f"{len(replays)} golden pictures at {worst:.1f} dB or better"
        reporter.result(
            f"{bundle}: every byte as {'signed' if signed else 'packed'}; {told}",
            bundle=str(bundle),
            signed=signed,
            replayed=len(replays),
            psnr=worst,
        )
