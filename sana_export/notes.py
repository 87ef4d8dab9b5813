"""Small files in the user's data folder, which are a help and no more: where they cannot be written, there are none."""

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["write_note"]


def write_note(file: Path, content: bytes) -> None:
    """Let `file` hold `content`, whole or not at all. What an hour was spent on does not fail for it."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.{os.getpid()}")
        fresh.write_bytes(content)
        fresh.replace(file)
