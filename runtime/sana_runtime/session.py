"""What the pipeline asks of an engine library: run a graph, and be interrupted while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sana_runtime.errors import SanaError
from sana_runtime.manifest import Part
from sana_runtime.signature import Signature

__all__ = ["Arrays", "Device", "Interrupted", "Session", "SessionOptions", "contiguous", "open_session"]

Arrays = dict[str, NDArray[Any]]


class Interrupted(SanaError):
    """A run was stopped by `Session.interrupt`."""

    exit_code = 130


class Session(Protocol):
    """One graph, loaded and ready; one run at a time."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Every output by name; raises `Interrupted` when `interrupt` was called meanwhile."""

    def prepare(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Do beforehand what a run with feeds of these shapes would do first."""

    def interrupt(self) -> None:
        """Stop the run that is under way, from any thread; does nothing when none is."""


class Device(str, Enum):
    """Who runs a graph."""

    CPU = "cpu"  # OpenVINO, the fast one, and onnxruntime for parts whose weights are read in place
    ONNXRUNTIME = "onnxruntime"
    CUDA = "cuda"
    DIRECTML = "directml"
    WEBGPU = "webgpu"
    RTX = "rtx"  # TensorRT-RTX
    TENSORRT = "tensorrt"

    @property
    def runs_engines(self) -> bool:
        """Whether it runs engines that were built beforehand, not graphs."""
        return self in (Device.RTX, Device.TENSORRT)


@dataclass(frozen=True)
class SessionOptions:
    """How a graph is run."""

    half_products: bool = False  # bf16 matrix products are allowed: the part is 16-bit float by its manifest
    int8_convolutions: bool = False  # residual convolutions are INT8 where that is faster: its scheme says so
    threads: int = 0  # 0: the library chooses
    signature: Signature | None = None  # with it, a graph may be compiled for the sizes that come
    in_place: bool = False  # weights are read where their file lies in memory, and not packed first

    @classmethod
    def of(cls, part: Part, threads: int = 0) -> "SessionOptions":
        """How a bundle's part is run."""
        return cls(part.half_products, part.int8_convolutions, threads, part.signature, part.in_place)


def open_session(graph: Path, device: Device, options: SessionOptions) -> Session:
    """Load `graph` with the one library that runs it on `device`; `engines.open_engine` is for those with engines."""
    if device is Device.CPU and not options.in_place:
        from sana_runtime.openvino_session import OpenVinoSession

        return OpenVinoSession(graph, options)
    from sana_runtime.onnxruntime_session import OnnxruntimeSession

    return OnnxruntimeSession(graph, Device.ONNXRUNTIME if device is Device.CPU else device, options)


def contiguous(feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """The feeds as engine libraries take them."""
    return {name: np.ascontiguousarray(array) for name, array in feeds.items()}
