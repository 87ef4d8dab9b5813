"""What people are told while engines are built."""

from typing import TYPE_CHECKING

from sana_export.cli.progress import Reporter

if TYPE_CHECKING:
    from sana_export.engines.build import OnBuildProgress
    from sana_export.engines.job import BuildProgress

__all__ = ["engine_progress"]


def engine_progress(reporter: Reporter) -> "OnBuildProgress":
    """Hand the progress of builds to the reporter."""

    def told(progress: "BuildProgress") -> None:
        left = f", {progress.seconds_left:.0f} s left" if progress.seconds_left else ""
        reporter.step(progress.part, progress.fraction, f"{progress.part}: {progress.message}{left}")

    return told
