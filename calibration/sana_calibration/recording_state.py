"""The file in which a recording waits for its continuation."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_calibration.statistics import TokenStatistics

__all__ = ["load_state", "save_state"]

DIGEST = "sha256"  # of all else: a .npz keeps sums of its arrays, and none of their names and number


def save_state(file: Path, key: str, done: int, tokens: Mapping[str, TokenStatistics]) -> None:
    """Store the statistics after `done` prompts; killed at any moment, the file holds the old ones or these."""
    arrays = {f"{name}/{kind}": array for name, each in tokens.items() for kind, array in each.arrays().items()}
    arrays |= {"key": np.array(key), "done": np.array(done)}
    partial = file.with_name(f".{file.name}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("wb") as stream:
        np.savez(stream, **arrays, **{DIGEST: np.array(_digest(arrays))})  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def load_state(file: Path, key: str) -> tuple[int, dict[str, TokenStatistics]] | None:
    """How many prompts are done, and their statistics; None if the file is of another recording, or damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception:  # what numpy and zipfile raise for damage has no common root
        return None
    if str(arrays.pop(DIGEST, "")) != _digest(arrays) or str(arrays["key"]) != key:
        return None
    found: dict[str, dict[str, NDArray[Any]]] = {}
    for path, array in arrays.items():
        name, _, kind = path.rpartition("/")
        if name:
            found.setdefault(name, {})[kind] = array
    return int(arrays["done"]), {name: TokenStatistics.from_arrays(each) for name, each in found.items()}


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
