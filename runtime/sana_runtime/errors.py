"""Every failure a caller can meet, each with the exit code of the command line.

SanaError
├── UsageError        2   an argument or a combination that cannot work
├── BundleError       3   a bundle that is refused
├── CheckpointError   3   a checkpoint that is refused
├── MemoryLimitError  4   not enough memory or disk
├── BackendError      5   an engine library that is missing, mismatched or failed
├── QualityError      6   the quality gate did not pass
└── BusyError        75   somebody else is building the same thing
"""

__all__ = [
    "BackendError",
    "BundleError",
    "BusyError",
    "CheckpointError",
    "MemoryLimitError",
    "QualityError",
    "SanaError",
    "UsageError",
]


class SanaError(Exception):
    """Says in one line what failed, why, and what to do next."""

    exit_code = 1


class UsageError(SanaError):
    """An argument, or a combination of arguments, that cannot work."""

    exit_code = 2


class BundleError(SanaError):
    """A bundle that is refused."""

    exit_code = 3


class CheckpointError(SanaError):
    """A checkpoint that is refused."""

    exit_code = 3


class MemoryLimitError(SanaError):
    """Not enough memory or disk for what was asked."""

    exit_code = 4


class BackendError(SanaError):
    """An engine library that is missing, does not match, or failed."""

    exit_code = 5


class QualityError(SanaError):
    """The quality gate did not pass."""

    exit_code = 6


class BusyError(SanaError):
    """Another process holds what this one needs."""

    exit_code = 75
