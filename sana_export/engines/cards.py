"""Which compute capabilities the cards of this machine have, as the driver's own tool tells."""

import shutil
import subprocess

from sana_runtime.errors import UsageError

__all__ = ["capabilities_here"]

QUERY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader,nounits")


def capabilities_here() -> tuple[int, ...]:
    """Such as (89,); UsageError when there is no card."""
    found: set[int] = set()
    if shutil.which(QUERY[0]):
        answer = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=False).stdout
        found = {round(10 * float(line)) for line in answer.split() if line.replace(".", "", 1).isdigit()}
    if not found:
        raise UsageError("no NVIDIA card answers here; say which ones the engines are for, such as --sm 86,89,120")
    return tuple(sorted(found))
