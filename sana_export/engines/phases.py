"""How far a build is, from what the library reports of its phases."""

import time

__all__ = ["Phases"]

# Nearly all of a build is spent in one phase that reports nothing of itself. What comes before it takes about a
# twentieth of its time, on any machine, so that foretells how long it will last.
COMPILING = "Determining refit engines"
TITLES = {COMPILING: "compiling", "Optimizing graph": "simplifying the graph"}
BEFORE = 0.05
SLOWER = 1 / BEFORE
LAST = 0.95  # of the whole: more is never claimed before the end


class Phases:
    """The phases of one build."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._compiling: float | None = None
        self._seen = 0
        self._message = "reading the graph"

    def begin(self, name: str) -> None:
        """A phase has begun."""
        self._message = TITLES.get(name, self._message)
        if self._began is None:
            self._began = time.monotonic()
        if name == COMPILING and self._compiling is None:
            self._compiling = time.monotonic()

    def step(self) -> None:
        """A step was taken."""
        self._seen += 1

    def now(self) -> tuple[float, float | None, str]:
        """The fraction that is done, the seconds that are left if that can be known, and what goes on."""
        if self._compiling is None or self._began is None:
            return BEFORE * self._seen / (self._seen + 500), None, self._message
        spent = time.monotonic() - self._compiling
        expected = max(1.0, (self._compiling - self._began) * SLOWER)
        share = min(spent / expected, (spent + expected) / (2 * expected + spent))
        return BEFORE + (LAST - BEFORE) * min(share, 1.0), max(0.0, expected - spent), self._message
