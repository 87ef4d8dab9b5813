"""Options that several commands share, and the types they are read as."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from sana_runtime.errors import UsageError

__all__ = [
    "INTERVAL",
    "SIZE",
    "bundle_argument",
    "bundle_option",
    "calibration_options",
    "device_option",
    "json_option",
]


class Size(click.ParamType[tuple[int, int]]):
    """WIDTHxHEIGHT, kept as (height, width) as everywhere in Python."""

    name = "WIDTHxHEIGHT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Read the option's text."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", value)
        if not match:
            raise UsageError(f"size {value}: give WIDTHxHEIGHT, such as 1024x1024")
        return int(match[2]), int(match[1])


class Interval(click.ParamType[tuple[float, float]]):
    """LOW..HIGH, as two numbers."""

    name = "LOW..HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Read the option's text."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\.\.(\d+(?:\.\d+)?)", value)
        if not match:
            raise UsageError(f"interval {value}: give LOW..HIGH, such as 600..1000")
        return float(match[1]), float(match[2])


SIZE = Size()
INTERVAL = Interval()

Command = Callable[..., Any]


def _latest(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path:
    """The bundle that was named, or the last one built."""
    if value is not None:
        return value
    from sana_export.latest import latest_bundle

    return latest_bundle()


bundle_option = click.option(
    "-b",
    "--bundle",
    type=click.Path(path_type=Path),
    callback=_latest,
    help="Folder of the bundle; the last one built when left out.",
)
bundle_argument = click.argument("bundle", type=click.Path(path_type=Path), required=False, callback=_latest)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="auto, cpu (OpenVINO), onnxruntime, cuda, directml or webgpu; with engines: rtx or tensorrt.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")


def calibration_options(command: Command) -> Command:
    """--prompts, --samples and --force, which say how INT8 is calibrated and judged."""
    for option in (
        click.option(
            "--force",
            is_flag=True,
            help="Build where memory or disk seem too small, and publish what fails the quality gate; the manifest "
            "says so.",
        ),
        click.option("--samples", type=click.IntRange(min=1), help="How many of them to paint."),
        click.option("--prompts", type=click.Path(path_type=Path), help="Prompts to calibrate on: txt, jsonl or csv."),
    ):
        command = option(command)
    return command
