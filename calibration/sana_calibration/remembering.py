"""What was found out is kept in small files, so that nothing is found out twice."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["recall", "remember"]


def remember(file: Path, key: str, content: Any) -> None:
    """Store `content`, which JSON can say; killed at any moment, the file holds the old content or this."""
    partial = file.with_name(f".{file.name}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as stream:
        json.dump({"key": key, "content": content}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def recall(file: Path, key: str) -> Any:
    """What was stored under `key`; None if the file is another's, or damaged."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return stored["content"] if stored["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
