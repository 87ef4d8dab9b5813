"""Write a graph and its weights so that both files are there, whole, or neither is."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

__all__ = ["data_file", "discard_half", "save_graph"]

INLINE_BELOW = 1024  # bytes: engines want shapes and other small constants inside the graph
PAGE = 4096  # weights start on a page, so that engines can map them

OnWritten = Callable[[float], None]  # told the share of the weights that is written


def data_file(graph: Path) -> Path:
    """Where the weights of a graph lie."""
    return graph.with_suffix(".data")


def save_graph(model: ir.Model, graph: Path, on_written: OnWritten = lambda share: None) -> None:
    """Write `graph` and, beside it, its weights, one tensor at a time.

    Same model, same bytes. Interrupted at any moment, `graph` is the old file or the new one, and never half of one.
    """
    with _staging(graph) as staged:
        ir.save(
            model,
            staged,
            external_data=data_file(graph).name,
            size_threshold_bytes=INLINE_BELOW,
            alignment=PAGE,
            callback=lambda tensor, info: on_written((info.index + 1) / info.total),
        )
        _publish(data_file(staged), data_file(graph))
        _publish(staged, graph)


def discard_half(graph: Path) -> None:
    """Remove what a process left that was stopped while it wrote `graph`; nothing when that is whole."""
    shutil.rmtree(_staging_folder(graph), ignore_errors=True)
    if not graph.is_file():
        data_file(graph).unlink(missing_ok=True)


@contextmanager
def _staging(graph: Path) -> Iterator[Path]:
    """A file of the same name in a folder of its own beside it, which goes with everything left in it."""
    folder = _staging_folder(graph)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder / graph.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _staging_folder(graph: Path) -> Path:
    return graph.with_name(f".{graph.name}.partial")


def _publish(staged: Path, final: Path) -> None:
    if not staged.exists() or not staged.stat().st_size:  # a graph of small tensors only
        final.unlink(missing_ok=True)
        return
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    staged.replace(final)
