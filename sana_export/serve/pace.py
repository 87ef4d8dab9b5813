"""How fast pictures are painted here, learnt from those that were."""

from sana_runtime.progress import StepEvent

__all__ = ["Pace"]

NEW_SHARE = 0.4  # of the latest picture in the estimate
DECODING_SHARE = 0.15  # of the time that painting takes, about


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

    def left(self, work: float, event: StepEvent | None, elapsed: float) -> float | None:
        """Seconds until a picture of this much work is finished: its own steps tell best, others' tell before that."""
        if event is not None and event.stage != "text" and event.seconds_left is not None:
            return event.seconds_left * (1 + DECODING_SHARE)
        expected = self.expect(work)
        return None if expected is None else max(0.0, expected - elapsed)
