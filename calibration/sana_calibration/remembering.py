"""What was found out is kept in small files, so that nothing is found out twice."""

import hashlib
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
        json.dump({"key": key, "content": content, "sha256": _digest(key, content)}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def recall(file: Path, key: str) -> Any:
    """What was stored under `key`; None if the file is another's, or damaged."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        right = stored["key"] == key and stored["sha256"] == _digest(key, stored["content"])
        return stored["content"] if right else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _digest(key: str, content: Any) -> str:
    """Of the content as JSON has it, in which every key is a string."""
    text = json.dumps([key, json.loads(json.dumps(content))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
