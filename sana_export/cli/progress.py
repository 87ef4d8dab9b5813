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

QUIET_SECONDS = 5.0  # between two lines of one stage in a log
SILENT_SECONDS = 5.0  # after which a log is told that the work goes on


def escaped(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Reporter:
    """Progress on stderr, one result on stdout; with `as_json` every event is a JSON object a line on stdout."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._bar: Any = None
        self._task: Any = None
        self._last = (0.0, "")
        self._message = "starting"
        self._over = threading.Event()

    def __enter__(self) -> "Reporter":
        if not self.as_json and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("starting", total=1.0)
            self._bar.start()
        elif not self.as_json:
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
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
        self._message = message
        if self.as_json:
            self._json({"event": "progress", "stage": stage, "fraction": round(fraction, 4), "message": message})
        elif self._bar is not None:
            self._bar.update(self._task, completed=fraction, description=escaped(message))
        else:
            self._line(stage, fraction, message)

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
        click.echo(text, err=err)
        if self._bar is not None and not self._over.is_set():
            self._bar.start()

    def _line(self, stage: str, fraction: float, message: str) -> None:
        at, before = self._last
        if stage != before or time.monotonic() - at >= QUIET_SECONDS:
            self._last = (time.monotonic(), stage)
            click.echo(f"{fraction:4.0%} {escaped(message)}", err=True)

    def _beat(self) -> None:
        """Tell a log that a long step is still under way."""
        began = time.monotonic()
        while not self._over.wait(SILENT_SECONDS / 3):
            if time.monotonic() - max(self._last[0], began) >= SILENT_SECONDS:
                began = time.monotonic()
                click.echo(f"     still {escaped(self._message)}", err=True)

    def _json(self, fields: dict[str, object]) -> None:
        click.echo(json.dumps(fields, ensure_ascii=True))
