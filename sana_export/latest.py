"""Remembers which bundle was built last, so that commands can leave it out."""

import os
from pathlib import Path

import platformdirs
from sana_runtime.errors import UsageError

__all__ = ["latest_bundle", "remember_bundle"]

NOTE = "last-bundle"


def _note() -> Path:
    return Path(platformdirs.user_data_dir("sana-export")) / NOTE


def remember_bundle(path: Path) -> None:
    """Make `path` the bundle that commands use when none is named."""
    note = _note()
    note.parent.mkdir(parents=True, exist_ok=True)
    fresh = note.with_name(f"{NOTE}.{os.getpid()}")
    fresh.write_text(str(path.absolute()), encoding="utf-8")
    fresh.replace(note)


def latest_bundle() -> Path:
    """The bundle that was built last; UsageError when there is none."""
    try:
        return Path(_note().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UsageError("no bundle was built yet; name one with --bundle, or run `sana-export build`") from None
