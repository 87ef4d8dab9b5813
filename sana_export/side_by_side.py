"""Export the text encoder in a process of its own while this one exports the other parts: same files, half the time.

Nearly all of an export is one thread of Python, and the text encoder is as much work as all others together.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sana_runtime import errors
from sana_runtime.errors import BackendError, MemoryLimitError, SanaError

from sana_export.child import Event, Worker, command_for, say, stop_with_input, working
from sana_export.export import OnProgress, Progress, export_parts
from sana_export.plan import APART
from sana_export.precision import Precision
from sana_export.saving import discard_half

if TYPE_CHECKING:
    from sana_reference.checkpoint import Checkpoint
    from sana_reference.config import SanaConfig
    from sana_reference.text_encoder import TextEncoder

    from sana_export.tracing.parts import Source

__all__ = ["export_side_by_side", "main"]

COMMAND = command_for("sana_export.side_by_side")
BEAT = 0.5  # seconds after which Ctrl-C is heard everywhere while we wait
KILLED = -9  # the exit code of what the system stops when memory is full


def export_side_by_side(
    checkpoint: "Checkpoint",
    folder: Path,
    precision: Precision,
    *,
    parts: Sequence[str],
    prefix: Sequence[int],
    on_progress: OnProgress,
) -> None:
    """What `export_parts` does, for `parts` that the text encoder is among; both sides tell `on_progress`.

    An error of the other process is raised here as it would have been. Whatever is raised here stops both and leaves
    no half file; if this process is killed, the other ends.
    """
    try:
        with working(COMMAND, _job(checkpoint, folder, precision, prefix)) as worker:
            other = _Other(worker, on_progress)

            def report(progress: Progress) -> None:
                other.listen()
                on_progress(progress)

            ours = [part for part in parts if part != APART]
            export_parts(checkpoint, folder, precision, parts=ours, on_progress=report)
            other.finish()
    finally:
        discard_half(folder / f"{APART}.onnx")


class _Other:
    """The other side, heard between the steps of ours."""

    def __init__(self, worker: Worker, on_progress: OnProgress) -> None:
        self._worker, self._on_progress = worker, on_progress
        self._at = self._told = Progress(APART, 0.0, "starting a process of its own")
        self._done = False

    def listen(self) -> None:
        """Hear what it has said meanwhile, and tell of it when it does something else than before."""
        for event in self._worker.news():
            self._take(event)
        self._check()
        if self._at.message != self._told.message:
            self._tell()

    def finish(self) -> None:
        """Tell what it does until it is done."""
        self._tell()
        for event in self._worker.events(BEAT):
            self._take(event)
            if self._at is not self._told:
                self._tell()
        self._check()

    def _tell(self) -> None:
        self._told = self._at
        self._on_progress(self._at)

    def _take(self, event: Event) -> None:
        kind = event.get("event")
        if kind == "progress":
            self._at = Progress(APART, event["fraction"], event["message"])
        elif kind == "done":
            self._done = True
        elif kind in FAILURES:
            raise FAILURES[kind](event)

    def _check(self) -> None:
        if not self._worker.ended or self._done:
            return
        code = self._worker.wait()
        if code == KILLED:
            raise MemoryLimitError(
                "the system stopped the export of the text encoder, as it does when memory is full; close other "
                "programs and build again with --resume"
            )
        raise BackendError(f"the process that exports the text encoder ended (exit code {code}); build again")


FAILURES: dict[str, Callable[[Event], Exception]] = {
    "refused": lambda event: cast(SanaError, getattr(errors, event["kind"])(event["message"])),
    "system": lambda event: OSError(event["number"], event["message"], event["file"]),
    "memory": lambda event: MemoryError(),
    "crashed": lambda event: RuntimeError(event["traceback"]),
}


def _job(checkpoint: "Checkpoint", folder: Path, precision: Precision, prefix: Sequence[int]) -> str:
    """What the other process must know, as one line; it reads the very files that were found here."""
    text = checkpoint.text_part
    assert text is not None
    return json.dumps(
        {
            "where": str(text.where),
            "files": [str(file) for file in text.files],
            "config": asdict(checkpoint.config),
            "folder": str(folder),
            "precision": precision.value,
            "prefix": list(prefix),
        }
    )


@dataclass(frozen=True)
class _TextAlone:
    """A source of the text encoder and of nothing else."""

    config: "SanaConfig"
    text_encoder: "Callable[..., TextEncoder]"


def main() -> None:
    """Be the other process."""
    job = json.loads(sys.stdin.readline())
    stop_with_input()
    try:
        _export(job)
        say(event="done")
    except SanaError as error:
        kind = next(kin.__name__ for kin in type(error).__mro__ if kin.__module__ == errors.__name__)
        say(event="refused", kind=kind, message=str(error))
    except MemoryError:
        say(event="memory")
    except OSError as error:
        file = None if error.filename is None else str(error.filename)
        say(event="system", number=error.errno, message=error.strerror or str(error), file=file)
    except Exception:  # our own bug: whoever asked shall see it
        say(event="crashed", traceback=traceback.format_exc())
    os._exit(0)  # without taking gigabytes of graph apart


def _export(job: dict[str, Any]) -> None:
    from sana_reference.checkpoint.parts import text_encoder_in_files
    from sana_reference.config import SanaConfig

    part = text_encoder_in_files(Path(job["where"]), tuple(Path(file) for file in job["files"]))
    source = _TextAlone(SanaConfig(**job["config"]), part.build)

    def report(progress: Progress) -> None:
        say(event="progress", fraction=progress.fraction, message=progress.message)

    export_parts(
        cast("Source", source),
        Path(job["folder"]),
        Precision(job["precision"]),
        parts=(APART,),
        prefix=job["prefix"],
        on_progress=report,
    )
