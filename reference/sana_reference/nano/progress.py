"""What a training leaves behind while it runs: a resumable state, a log and grids of pictures."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Diary", "save_grid"]


class Diary:
    """The files of one training in its folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.since = time.monotonic()

    def note(self, **figures: float) -> None:
        """Add a line to log.jsonl and show it."""
        line = json.dumps({name: round(value, 6) for name, value in figures.items()})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")

    def seconds(self) -> float:
        """Time since the last call, or since the beginning."""
        now = time.monotonic()
        elapsed, self.since = now - self.since, now
        return elapsed

    def keep(self, state: dict[str, Any]) -> None:
        """Replace the state from which training resumes; killed at any moment, one whole state remains."""
        part = self.folder / "state.part"
        torch.save(state, part)
        part.replace(self.folder / "state.pt")

    def kept(self) -> dict[str, Any] | None:
        """The state kept last, if any."""
        path = self.folder / "state.pt"
        return torch.load(path, weights_only=True) if path.is_file() else None


def save_grid(pictures: NDArray[np.uint8], columns: int, path: Path) -> None:
    """Write pictures (count, H, W, 3) as one PNG, row by row."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, 3), np.uint8)
    sheet[:count] = pictures
    grid = sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    Image.fromarray(grid).save(path)
