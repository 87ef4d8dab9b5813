"""What a checkpoint says about its licence."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Licence", "read_licence"]

FIELD = re.compile(r"^(license|license_name|license_link)\s*:\s*(.+?)\s*$", re.MULTILINE)
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
LONGEST = 1 << 20  # a licence is text that people read; anything larger is not one


@dataclass(frozen=True)
class Licence:
    """The fields of a model card and the texts beside it; both may be empty."""

    fields: Mapping[str, str] = field(default_factory=dict)  # license, license_name, license_link
    texts: Mapping[str, str] = field(default_factory=dict)  # file name to text


def read_licence(folder: Path) -> Licence:
    """The licence of the model in `folder`."""
    card = _text(folder / "README.md").replace("\r\n", "\n")
    front = FRONT_MATTER.match(card)
    fields = {name: value.strip("\"'") for name, value in FIELD.findall(front[1])} if front else {}
    files = sorted(path for path in folder.glob("LICENSE*") if path.is_file())
    return Licence(fields, {path.name: _text(path) for path in files})


def _text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > LONGEST:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
