"""What a caller is told while a bundle is made."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FINDING", "BuildStep", "OnBuildStep", "time_left"]

FINDING = "finding"  # the stage of a step that only says what was found on the way


@dataclass(frozen=True)
class BuildStep:
    """Where a build stands."""

    stage: str
    fraction: float  # of the whole build
    message: str


OnBuildStep = Callable[[BuildStep], None]


def time_left(seconds: float | None) -> str:
    """The end of a message; empty while nothing is known."""
    if seconds is None:
        return ""
    return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"
