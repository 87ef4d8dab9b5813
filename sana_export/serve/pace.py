"""How fast pictures are painted here, learnt from those that were."""

__all__ = ["Pace"]

NEW_SHARE = 0.4  # of the latest picture in the estimate
TRUSTED_FRACTION = 0.2  # of a picture, after which its own speed tells more than that of others


class Pace:
    """Seconds per unit of work."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def learn(self, work: float, seconds: float) -> None:
        """A picture of this much work took so long."""
        rate = seconds / work
        self._seconds = rate if self._seconds is None else (1 - NEW_SHARE) * self._seconds + NEW_SHARE * rate

    def expect(self, work: float) -> float | None:
        """Seconds that this much work will take; None while nothing is known."""
        return None if self._seconds is None else self._seconds * work

    def left(self, work: float, fraction: float, elapsed: float) -> float | None:
        """Seconds until a picture of this much work is finished, of which `fraction` took `elapsed`."""
        if fraction >= TRUSTED_FRACTION:
            return elapsed / fraction * (1 - fraction)
        expected = self.expect(work)
        return None if expected is None else max(0.0, expected - elapsed)
