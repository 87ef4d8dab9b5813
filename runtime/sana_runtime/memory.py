"""How much memory there is, and whether a bundle's parts stay loaded side by side."""

import os
from pathlib import Path

__all__ = ["WORKING_SET", "available_memory", "fits_together"]

WORKING_SET = 600 << 20  # libraries, activations of one picture, pixels
CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that this process may still take; None where the system does not say."""
    limits = [limit for limit in (_free_of_system(), _free_of_cgroup()) if limit is not None]
    return min(limits, default=None)


def fits_together(part_bytes: int, available: int | None) -> bool:
    """Whether all parts may stay loaded: they and the working set leave a quarter of the memory to others."""
    return available is not None and part_bytes + WORKING_SET <= available * 3 // 4


def _free_of_system() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, macOS no such value
        return None


def _free_of_cgroup() -> int | None:
    """What a container's own limit leaves."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = (CGROUP / "memory.current").read_text().strip()
        return None if limit == "max" else int(limit) - int(used)
    except (OSError, ValueError):
        return None
