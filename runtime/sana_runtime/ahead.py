"""Load parts beside what else a start does: compiling and reading back leave other cores idle."""

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial

from sana_runtime.session import Session

__all__ = ["Ahead", "cores", "workers"]

MOST = 3  # the parts of a picture, but for the one that is needed first


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(threads: int) -> int:
    """How many parts to load at once, where `threads` of the processor may be used (0: all); 0 where one is all."""
    usable = min(threads or cores(), cores())
    return 0 if usable < 2 else min(usable, MOST)


@dataclass(eq=False)
class Wish:
    """A session to make, of which kind it then is, and whether a thread is done with it."""

    make: Callable[[], Session]
    kind: Hashable
    met: bool = False


class Ahead:
    """Sessions by name that are made ready in threads. Begin, take and stop are one thread's at a time."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._begun: dict[str, Future[Session]] = {}
        self._wishes: dict[str, Wish] = {}  # the latest by name
        self._changing = threading.Lock()

    def begin(self, name: str, make: Callable[[], Session], kind: Hashable = None) -> None:
        """Make a session in a thread, unless one of this kind was begun (None: of any); one of another goes first."""
        before = self._wishes.get(name)
        if not self._workers or (before is not None and kind in (None, before.kind)):
            return
        with self._changing:  # a thread that is still at it goes on with the new wish
            self._wishes[name] = Wish(partial(copy_context().run, make), kind)
            begun = before is not None and not before.met
        if not begun:
            self._begun.pop(name, None)  # and with it its session, before another is made
            self._pool = self._pool or ThreadPoolExecutor(self._workers, "sana-load")
            self._begun[name] = self._pool.submit(self._made, name)

    def take(self, name: str) -> Session | None:
        """The session, waited for; None if nobody works on it, or it failed: where it is needed it then fails again."""
        begun = self._begun.pop(name, None)
        failed = begun is None or begun.cancel() or begun.exception() is not None
        self._wishes.pop(name, None)
        if not self._begun:
            self.stop()
        return None if begun is None or failed else begun.result()

    def stop(self) -> None:
        """Wait for what is under way, and forget it all; no thread is left."""
        self._begun.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        self._wishes.clear()

    def _made(self, name: str) -> Session:
        """The session that was wished for last."""
        while True:
            wish = self._wishes[name]
            try:
                session = wish.make()
            finally:
                with self._changing:
                    wish.met = wish is self._wishes[name]
            if wish.met:
                return session
            del session
