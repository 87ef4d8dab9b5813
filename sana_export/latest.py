"""Remembers which bundle was built last, so that commands can leave it out."""

import os
from pathlib import Path

import platformdirs
from sana_runtime.errors import UsageError

from sana_export.notes import write_note

__all__ = ["latest_bundle", "remember_bundle"]

NOTE = "last-bundle"


def _note() -> Path:
    return Path(platformdirs.user_data_dir("sana-export")) / NOTE


def remember_bundle(path: Path) -> None:
    """Make `path` the bundle that commands use when none is named."""
    write_note(_note(), os.fsencode(path.absolute()))  # a path may hold bytes that are no text


def latest_bundle() -> Path:
    """The bundle that was built last; UsageError when there is none."""
    try:
        return Path(os.fsdecode(_note().read_bytes()))
    except OSError:
        raise UsageError("no bundle was built yet; name one with --bundle, or run `sana-export build`") from None
