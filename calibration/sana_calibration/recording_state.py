"""The file in which a recording waits for its continuation."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sana_calibration.statistics import TokenStatistics

__all__ = ["load_state", "save_state"]


def save_state(file: Path, key: str, done: int, tokens: Mapping[str, TokenStatistics]) -> None:
    """Store the statistics after `done` prompts; killed at any moment, the file holds the old ones or these."""
    arrays = {f"{name}/{kind}": array for name, each in tokens.items() for kind, array in each.arrays().items()}
    partial = file.with_name(f".{file.name}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as stream:
        np.savez(stream, key=np.array(key), done=np.array(done), **arrays)  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def load_state(file: Path, key: str) -> tuple[int, dict[str, TokenStatistics]] | None:
    """How many prompts are done, and their statistics; None if the file is of another recording, or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    found: dict[str, dict[str, np.ndarray]] = {}
    for path, array in arrays.items():
        name, _, kind = path.rpartition("/")
        if name:
            found.setdefault(name, {})[kind] = array
    return int(arrays["done"]), {name: TokenStatistics.from_arrays(each) for name, each in found.items()}
