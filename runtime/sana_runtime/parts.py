"""The graphs of one bundle as they are run: loaded when first needed, dropped when memory is short."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from sana_runtime.ahead import Ahead
from sana_runtime.errors import MemoryLimitError
from sana_runtime.session import Arrays, Interrupted, Session
from sana_runtime.soundness import refuse_unsound

__all__ = ["Parts"]


class Parts:
    """Runs parts by name. Alone (`together` false) a part is loaded only after the others have gone."""

    def __init__(
        self,
        load: Callable[[str], Session],
        *,
        together: bool,
        check: Callable[[str, Arrays], None] = refuse_unsound,
        workers: int = 0,
    ) -> None:
        """`check` is given each answer and raises when it cannot be right; `workers` threads load parts ahead."""
        self._load = load
        self._check = check
        self._together = together
        self._ahead = Ahead(workers if together else 0)
        self._loaded: dict[str, Session] = {}
        self._running: Session | None = None
        self._cancelled = threading.Event()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the parts that are in memory."""
        return tuple(self._loaded)

    def expect(self, name: str, feeds: Mapping[str, NDArray[Any]] | None = None) -> None:
        """Begin to load a part that will be run soon, if parts stay together: with feeds of these shapes, if given.

        A part that was expected with other shapes, and has not run, is loaded anew: it takes no memory for both.
        """

        def ready() -> Session:
            session = self._load(name)
            if feeds is not None:
                session.prepare(feeds)
            return session

        if name not in self._loaded:
            shapes = tuple((key, feeds[key].shape) for key in sorted(feeds)) if feeds else None
            self._ahead.begin(name, ready, shapes)

    def run(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """The outputs of part `name`; when memory runs out, once more with every other part dropped."""
        try:
            return self._attempt(name, feeds)
        except MemoryLimitError:
            self.drop(keep=None)
            return self._attempt(name, feeds)

    def drop(self, keep: str | None) -> None:
        """Unload every part but `keep`, also those that are being loaded."""
        self._ahead.stop()
        for name in [name for name in self._loaded if name != keep]:
            del self._loaded[name]

    def interrupt(self) -> None:
        """Stop what runs now, and refuse to run more until `resume`."""
        self._cancelled.set()
        running = self._running
        if running is not None:
            running.interrupt()

    def resume(self) -> None:
        """Allow runs again after an interruption."""
        self._cancelled.clear()

    def _attempt(self, name: str, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        session = self._session(name)
        self._running = session
        try:
            if self._cancelled.is_set():
                raise Interrupted("the painting was cancelled")
            outputs = session.run(feeds)
        finally:
            self._running = None
        self._check(name, outputs)
        return outputs

    def _session(self, name: str) -> Session:
        if name not in self._loaded:
            if not self._together:
                self.drop(keep=name)
            self._loaded[name] = self._ahead.take(name) or self._load(name)
        return self._loaded[name]
