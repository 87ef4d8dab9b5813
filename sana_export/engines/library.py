"""The one door to TensorRT-RTX and TensorRT, whose interfaces agree: the module is a parameter."""

import importlib
import importlib.metadata
from enum import Enum
from typing import Any

from sana_runtime.errors import BackendError

__all__ = ["CAPABILITIES", "Library", "load_library", "version_of"]

CAPABILITIES = (75, 80, 86, 89, 120, 121)


class Library(str, Enum):
    """A library that builds engines, by the name of its module."""

    RTX = "tensorrt_rtx"
    TENSORRT = "tensorrt"

    @property
    def extra(self) -> str:
        """What is installed to have it."""
        return {Library.RTX: "rtx", Library.TENSORRT: "tensorrt"}[self]

    @property
    def label(self) -> str:
        """Its name for people."""
        return {Library.RTX: "TensorRT-RTX", Library.TENSORRT: "TensorRT"}[self]


def load_library(library: Library) -> Any:
    """The module; the first logger that a process gives it is its logger for good."""
    try:
        return importlib.import_module(library.value)
    except ImportError as error:
        raise _missing(library) from error


def version_of(library: Library) -> str:
    """Its version, in the form that its engines bear, without loading it."""
    try:
        return importlib.metadata.version(library.value.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(library) from error


def _missing(library: Library) -> BackendError:
    return BackendError(f'{library.label} is not installed; pip install "sana-export[{library.extra}]"')
