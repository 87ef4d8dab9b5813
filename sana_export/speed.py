"""The same feeds through the float and the INT8 form of a part, in turn, on this machine."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from numpy.typing import NDArray
from sana_runtime.session import Device, Session, SessionOptions, open_session
from sana_runtime.signature import Signature

__all__ = ["Speed", "measure_speed"]

RUNS = 7
ENOUGH_SECONDS = 60.0  # after which no further run is begun
LEAST_RUNS = 3


@dataclass(frozen=True)
class Speed:
    """Medians of runs that took turns."""

    float_ms: float
    int8_ms: float
    runs: int
    shape: tuple[int, ...]  # of the first input
    engine: str
    cores: int

    @property
    def ratio(self) -> float:
        """How many times as fast INT8 is."""
        return self.float_ms / self.int8_ms


def measure_speed(
    float_graph: Path,
    int8_graph: Path,
    signature: Signature,
    feeds: Mapping[str, NDArray[Any]],
    in_place: bool = False,
) -> Speed:
    """Time both on the same feeds, opened as the pipeline does; float may use 16-bit products, its fastest form.

    With `in_place` the other one has INT8 weights alone, which are read where they lie.
    """
    sessions = (
        open_session(float_graph, Device.CPU, SessionOptions(half_products=True, signature=signature)),
        open_session(int8_graph, Device.CPU, SessionOptions(in_place=in_place, signature=signature)),
    )
    for session in sessions:
        session.run(feeds)
    taken: tuple[list[float], list[float]] = ([], [])
    began = time.monotonic()
    while len(taken[0]) < RUNS and (len(taken[0]) < LEAST_RUNS or time.monotonic() - began < ENOUGH_SECONDS):
        for session, each in zip(sessions, taken, strict=True):
            each.append(_seconds(session, feeds))
    float_ms, int8_ms = (round(median(each) * 1000, 3) for each in taken)
    engine = f"openvino {version('openvino')}"
    if in_place:
        engine += f", INT8 by onnxruntime {version('onnxruntime')}"
    shape = feeds[signature.inputs[0].name].shape
    return Speed(float_ms, int8_ms, len(taken[0]), shape, engine, os.cpu_count() or 1)


def _seconds(session: Session, feeds: Mapping[str, NDArray[Any]]) -> float:
    began = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - began
