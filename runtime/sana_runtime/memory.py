"""How much memory there is."""

import os
from pathlib import Path

__all__ = ["available_memory"]

CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that this process may still take; None where the system does not say."""
    limits = [limit for limit in (_free_of_system(), _free_of_cgroup()) if limit is not None]
    return min(limits, default=None)


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
    """What a container's own limit leaves; files that the system only caches make room when they have to."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        cached = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
        return None if limit == "max" else int(limit) - used + cached
    except (OSError, ValueError, IndexError):
        return None
