"""Load a library without the part of it that reports to its maker."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["declining", "without"]


@contextmanager
def without(reporter: str) -> Iterator[None]:
    """Let the package `reporter` seem not to be installed while another one is imported."""
    loaded = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment]  # what importlib takes for "not there"
    try:
        yield
    finally:
        del sys.modules[reporter]
        if loaded is not None:
            sys.modules[reporter] = loaded


@contextmanager
def declining(variable: str) -> Iterator[None]:
    """Set the variable by which a library is told so before it is imported, unless the user has set it."""
    os.environ.setdefault(variable, "1")  # it stays, for processes that are started from here
    yield
