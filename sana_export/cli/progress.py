"""Progress for people, for logs and for programs: a bar, plain lines, or JSON lines."""

import json
import sys
import threading
import time
from types import TracebackType
from typing import Any

import click

from sana_export.steps import FINDING, BuildStep

__all__ = ["Reporter", "escaped"]

# Nothing is silent for more than two seconds: a bar counts them, logs and programs are told again.
QUIET_SECONDS = 1.5  # between two lines of one stage in a log
SILENT_SECONDS = 1.8  # after which a log or a program is told that the work goes on
CHECKS = 20  # of that, in this time


def escaped(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Reporter:
    """Progress on stderr, one result on stdout; with `as_json` every event is a JSON object a line on stdout."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._bar: Any = None
        self._task: Any = None
        self._at = ("start", 0.0, "starting")  # stage, fraction and message
        self._since = self._said = time.monotonic()  # that message came; anything was printed
        self._line_stage = ""
        self._printing = threading.Lock()
        self._over = threading.Event()
        self._beating: threading.Thread | None = None

    def __enter__(self) -> "Reporter":
        if self.as_json or not sys.stderr.isatty():
            self._beating = threading.Thread(target=self._beat, daemon=True)
            self._beating.start()
        else:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("starting", total=1.0)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._beating is not None:
            self._beating.join()
        if self._bar is not None:
            self._bar.stop()

    def build_step(self, step: BuildStep) -> None:
        """Say where a build stands, or what it found out."""
        if step.stage == FINDING:
            self.note(step.message)
        else:
            self.step(step.stage, step.fraction, step.message)

    def step(self, stage: str, fraction: float, message: str) -> None:
        """Say where the work stands; `fraction` is of the whole."""
        self._at, self._since = (stage, fraction, message), time.monotonic()
        if self.as_json:
            self._json(_progress(stage, fraction, message))
        elif self._bar is not None:
            self._bar.update(self._task, completed=fraction, description=escaped(message))
        elif stage != self._line_stage or time.monotonic() - self._said >= QUIET_SECONDS:
            self._line_stage = stage
            self._say(f"{fraction:4.0%} {escaped(message)}", err=True)

    def note(self, message: str) -> None:
        """Something the caller should know."""
        if self.as_json:
            self._json({"event": "note", "message": message})
        else:
            self._say(escaped(message), err=True)

    def result(self, text: str, **fields: object) -> None:
        """The outcome: text for people, the fields for programs."""
        if self.as_json:
            self._json({"event": "result", **fields})
        else:
            self._say(text, err=False)

    def _say(self, text: str, *, err: bool) -> None:
        """Print lines that stay; the bar steps aside meanwhile."""
        if self._bar is not None:
            self._bar.stop()
        with self._printing:
            click.echo(text, err=err)
            self._said = time.monotonic()
        if self._bar is not None and not self._over.is_set():
            self._bar.start()

    def _json(self, fields: dict[str, object]) -> None:
        self._say(json.dumps(fields, ensure_ascii=True), err=False)

    def _beat(self) -> None:
        """Tell a log or a program that a long step is still under way."""
        while not self._over.wait(SILENT_SECONDS / CHECKS):
            with self._printing:
                if time.monotonic() - self._said >= SILENT_SECONDS and not self._still():
                    return

    def _still(self) -> bool:
        """Say where the work stands once more; False when nobody listens any longer."""
        stage, fraction, message = self._at
        seconds = time.monotonic() - self._since
        told = f"still {message} ({seconds:.0f} s)"
        fields = json.dumps(_progress(stage, fraction, told), ensure_ascii=True)
        try:
            click.echo(fields if self.as_json else f"     {escaped(told)}", err=not self.as_json)
        except OSError:
            return False
        self._said = time.monotonic()
        return True


def _progress(stage: str, fraction: float, message: str) -> dict[str, object]:
    return {"event": "progress", "stage": stage, "fraction": round(fraction, 4), "message": message}
