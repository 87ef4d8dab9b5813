"""Engines while they are built: what people are told, and the building at first use."""

from pathlib import Path
from typing import TYPE_CHECKING

from sana_export.cli.progress import Reporter

if TYPE_CHECKING:
    from sana_export.engines.build import OnBuildProgress
    from sana_export.engines.job import BuildProgress

__all__ = ["engine_progress", "prepare_engines"]

ENGINE_DEVICES = ("rtx", "tensorrt")


def prepare_engines(bundle: Path, device: str, reporter: Reporter) -> None:
    """Have the engines that the device runs, if it runs any."""
    if device not in ENGINE_DEVICES:
        return
    from sana_runtime.session import Device

    from sana_export.engines.first_use import build_missing

    build_missing(bundle, Device(device), reporter.note, engine_progress(reporter))


def engine_progress(reporter: Reporter) -> "OnBuildProgress":
    """Hand the progress of builds to the reporter."""

    def told(progress: "BuildProgress") -> None:
        left = f", {progress.seconds_left:.0f} s left" if progress.seconds_left else ""
        reporter.step(progress.part, progress.fraction, f"{progress.part}: {progress.message}{left}")

    return told
