"""Which cards engines are built for: those that were named, or this machine's, as the driver's own tool tells."""

import shutil
import subprocess

from sana_runtime.errors import BackendError, UsageError

from sana_export.engines.library import Library, version_of

__all__ = ["capabilities_for"]

QUERY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader,nounits")


def capabilities_for(library: Library, named: tuple[int, ...]) -> tuple[int, ...]:
    """The compute capabilities to build for, such as (86, 89); raises without the library, or without any card."""
    alone = library is Library.TENSORRT
    if alone and named:
        raise UsageError("--sm has no effect with --target tensorrt, which builds for the card at hand; leave it out")
    version_of(library)
    capabilities = named or _here()
    if not capabilities and alone:
        raise BackendError("no NVIDIA card answers here, and --target tensorrt builds for it; choose --target rtx")
    if not capabilities:
        raise UsageError("no NVIDIA card answers here; say which ones the engines are for, such as --sm 86,89,120")
    return capabilities


def _here() -> tuple[int, ...]:
    """Those of the cards at hand, such as (89,)."""
    if not shutil.which(QUERY[0]):
        return ()
    answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=False).stdout
    found = {round(10 * float(line)) for line in answer.split() if line.replace(".", "", 1).isdigit()}
    return tuple(sorted(found))
