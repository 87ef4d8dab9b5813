"""`sana-export plan`."""

from dataclasses import asdict

import click
from sana_runtime.errors import BackendError

from sana_export.cli.options import json_option
from sana_export.cli.progress import Reporter

__all__ = ["command"]


@click.command("plan")
@click.argument("model", default="nano")
@click.option("--precision", type=click.Choice(("fp32", "fp16", "bf16")), default="bf16", show_default=True)
@json_option
def command(model: str, precision: str, as_json: bool) -> None:
    """Say what building MODEL will take: sizes, memory and time; nothing is built."""
    try:
        from sana_reference.checkpoint import load_checkpoint

        from sana_export.plan import plan
    except ImportError as error:
        raise BackendError(f"planning needs {error.name}; run `pip install 'sana-export[build]'`") from None
    from sana_export.precision import Precision

    planned = plan(load_checkpoint(model), Precision(precision))
    lines = [f"{'part':<14}{'type':<10}{'parameters':>14}{'MB':>9}{'peak GB':>9}{'seconds':>9}"]
    lines += [
        f"{part.name:<14}{part.dtype:<10}{part.parameters:>14,}{part.bytes / 1e6:>9.1f}"
        f"{part.peak_bytes / 1e9:>9.1f}{part.seconds:>9.0f}"
        for part in planned.parts
    ]
    whole = f"{planned.bytes / 1e6:.1f} MB on disk, at most {planned.peak_bytes / 1e9:.1f} GB of memory"
    lines += ["", f"{whole}, about {planned.seconds:.0f} s on two cores; memory and time are estimates"]
    parts = [asdict(part) for part in planned.parts]
    totals = {"bytes": planned.bytes, "peak_bytes": planned.peak_bytes, "seconds": planned.seconds}
    Reporter(as_json=as_json).result("\n".join(lines), model=model, parts=parts, **totals)
