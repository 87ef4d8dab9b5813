"""Start a worker that builds the same engine every time.

With a plugin in the graph, TensorRT-RTX 1.7 numbers what it knows of shapes in the order of addresses in memory. Linux
draws those anew for every process, unless the process that becomes it has asked for fixed ones. And the library's
threads ask for memory in the order in which they come to run, which on one core is nearly always the same: 54 builds of
54 on a quiet machine, two in three beside work of higher priority. Compiling hardly ever uses a second core.
"""

import ctypes
import os
import random

from sana_export.child import command_for

__all__ = ["main"]

WORKER = command_for("sana_export.engines.worker")
ASK, FIXED_ADDRESSES = 0xFFFFFFFF, 0x0040000  # of personality(2)


def main() -> None:
    """Become the worker."""
    personality = ctypes.CDLL(None).personality
    personality(personality(ASK) | FIXED_ADDRESSES)  # where that is forbidden, builds differ in a few bytes
    os.sched_setaffinity(0, {random.choice(sorted(os.sched_getaffinity(0)))})
    os.execv(WORKER[0], WORKER)
