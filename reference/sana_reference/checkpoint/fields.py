"""A checkpoint's JSON files, read field by field, so that no setting is passed over unseen."""

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sana_runtime.errors import CheckpointError

__all__ = ["TOKENIZER_BYTES", "Fields", "is_number", "read_json", "refuse_strange"]

LARGEST = 1e9
JSON_BYTES = 32 << 20  # settings take kilobytes, the list of where 10,000 tensors lie one megabyte
TOKENIZER_BYTES = 128 << 20  # as a bundle may hold


def refuse_strange(path: Path, most: int | None = None) -> None:
    """Refuse what is there but is no file, such as a pipe that nobody fills, and a file of more than `most` bytes."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no file; download it again")
    if most is not None and path.exists() and path.stat().st_size > most:
        raise CheckpointError(f"{path} is larger than {most >> 20} MB, which no checkpoint's is; download it again")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; `-Infinity`, which diffusers writes, is a number here."""
    refuse_strange(path, JSON_BYTES)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; download the checkpoint again, with all its parts") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again")
    return content


def is_number(value: Any) -> bool:
    """Whether a JSON value is a positive number of a size that settings have."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= LARGEST


def _quoted(value: Any) -> str:
    """A value of somebody else's file on one line, and no longer than one."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


class Fields:
    """The fields of one JSON file; those that nobody asked for are refused at the end unless they are off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content = read_json(path)
        self._asked: set[str] = set()

    def any(self, name: str, default: Any = None) -> Any:
        """The value of a field, whatever it is."""
        self._asked.add(name)
        return self._content.get(name, default)

    def refuse(self, name: str, supported: str) -> CheckpointError:
        """The error for a field whose value we do not support."""
        return CheckpointError(
            f"{self.path}: {name} = {_quoted(self.any(name))} is not supported, only {supported}; "
            "choose another checkpoint"
        )

    def only(self, name: str, *supported: Any, default: Any) -> Any:
        """The value of a field of which we support some values; `default` is what its absence means."""
        value = self.any(name, default)
        if not any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in supported):
            raise self.refuse(name, " or ".join(map(repr, supported)))
        return value

    def whole(self, name: str, default: int, most: int = 1 << 20) -> int:
        """A positive whole number; `most` keeps a damaged file from asking for endless work."""
        value = self.any(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self.refuse(name, f"a whole number from 1 to {most}")
        return value

    def number(self, name: str, default: float) -> float:
        """A positive number that can be reckoned with."""
        value = self.any(name, default)
        if not is_number(value):
            raise self.refuse(name, f"a number above 0, up to {LARGEST:g}")
        return float(value)

    def wholes(self, name: str, default: Sequence[int], most: int) -> tuple[int, ...]:
        """As many whole numbers as there are in `default`, zero included."""
        value = self.any(name, list(default))
        fitting = isinstance(value, list) and len(value) == len(default)
        if not fitting or not all(type(item) is int and 0 <= item <= most for item in value):
            raise self.refuse(name, f"{len(default)} whole numbers up to {most}")
        return tuple(value)

    def finish(self, harmless: Collection[str] = ()) -> None:
        """Refuse what is left: a setting we never heard of, and switched on, would change the pictures."""
        for name, value in self._content.items():
            known = name in self._asked or name in harmless or name.startswith("_")
            if not known and value not in (None, False):
                raise CheckpointError(
                    f"{self.path}: {_quoted(name)[1:-1]} = {_quoted(value)} is not a setting we know; "
                    "choose another checkpoint"
                )
