"""Run a painting so that Ctrl-C stops it within a step: the pipeline works in a thread, the caller waits."""

import threading
from collections.abc import Callable
from typing import TypeVar

from sana_runtime.pipeline import Pipeline

__all__ = ["interruptible"]

POLL_SECONDS = 0.1  # how soon a signal is noticed while a native run holds the other thread
Result = TypeVar("Result")


def interruptible(pipeline: Pipeline, paint: Callable[[], Result]) -> Result:
    """What `paint` returns; on Ctrl-C the pipeline is cancelled first, and a second Ctrl-C does not wait for it."""
    answers: list[Result] = []
    failures: list[BaseException] = []
    done = threading.Event()  # Thread.join, once interrupted, takes the thread for ended: CPython issue 90882

    def work() -> None:
        try:
            answers.append(paint())
        except BaseException as error:  # handed to the caller's thread, whatever it is
            failures.append(error)
        finally:
            done.set()

    threading.Thread(target=work, daemon=True).start()
    try:
        while not done.wait(POLL_SECONDS):
            pass
    except KeyboardInterrupt:
        pipeline.cancel()
        while not done.wait(POLL_SECONDS):
            pipeline.cancel()  # again: a painting that had not yet begun forgets the first
        raise
    if failures:
        raise failures[0]
    return answers[0]
