"""A process of our own that does one job: it reads it from its standard input and reports in JSON lines.

It is over when its input ends, so it does not outlive whoever asked, however that one ends.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

__all__ = ["INTERRUPTED", "Event", "Worker", "command_for", "say", "stop_with_input", "working"]

PATIENCE = 0.6  # seconds in which a worker that is not wanted any longer ends, or is ended
INTERRUPTED = 130

Event = dict[str, Any]


def command_for(module: str) -> tuple[str, ...]:
    """What starts `main` of a module in a process that imports what this one does, wherever it is started.

    `-m` would look in the current folder first, where a file of the user's may have the name of a library's module.
    """
    return (sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; main()")


class Worker:
    """The process, as whoever asked sees it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout
        self.ended = False
        self._process = process
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_hand_over, args=(process.stdout, self._lines), daemon=True).start()

    def news(self) -> Iterator[Event]:
        """What it has said and nobody has heard yet."""
        with contextlib.suppress(queue.Empty):
            while not self.ended:
                yield from self._heard(self._lines.get_nowait())

    def events(self, beat: float) -> Iterator[Event]:
        """What it says until it ends, and every so often that time has passed."""
        due = time.monotonic()
        while not self.ended:
            try:
                line = self._lines.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                due = time.monotonic() + beat
                yield {"event": "beat"}
                continue
            yield from self._heard(line)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return self._process.wait()

    def _heard(self, line: str | None) -> Iterator[Event]:
        if line is None:
            self.ended = True
        else:
            yield _event(line)


@contextlib.contextmanager
def working(command: Sequence[str], job: str) -> Iterator[Worker]:
    """A process at work on `job`, a line of text; it does not outlive the block, nor its parent."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what matters of it comes as an event
        text=True,
        start_new_session=True,  # Ctrl-C reaches us, and we end the worker
    )
    try:
        with contextlib.suppress(BrokenPipeError):  # it is dead already: its output tells
            assert process.stdin
            process.stdin.write(job + "\n")
            process.stdin.flush()
        yield Worker(process)
    finally:
        _end(process)


def say(**fields: Any) -> None:
    """In the worker: report an event."""
    print(json.dumps(fields), flush=True)


def stop_with_input(before: Callable[[], None] = lambda: None) -> None:
    """In the worker, when it has read its job: be over when whoever asked goes away, or closes the input.

    `before` is called then, and may bring things to an end.
    """

    def stop() -> None:
        sys.stdin.read()
        before()
        os._exit(INTERRUPTED)

    threading.Thread(target=stop, daemon=True).start()


def _hand_over(stream: Iterable[str], lines: "queue.Queue[str | None]") -> None:
    """Put every line, and None for the end."""
    with contextlib.suppress(ValueError):  # closed while we read: the worker was stopped
        for line in stream:
            lines.put(line)
    lines.put(None)


def _end(process: "subprocess.Popen[str]") -> None:
    """Close its input, which stops it; after a moment, stop it for good."""
    assert process.stdin and process.stdout
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _event(line: str) -> Event:
    """A line of ours, or nothing: libraries print, too."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
