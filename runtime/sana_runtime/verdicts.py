"""Remember which graphs the guard has let pass, so that the next start need not walk through the same bytes again.

What is remembered is neither a name nor a time: a graph is told by its own bytes and by the sizes of the data files
that it may read, which is all that the guard looks at. The answer is an HMAC under a key that only the user can read,
in the folder of compiled models; if anything is wrong with it, the guard looks again.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sana_runtime.compiled_models import compiled_folder, compiled_secret, keeping
from sana_runtime.errors import SanaError
from sana_runtime.private_files import make_private, make_room, open_private, replace_private, signing_key

__all__ = ["Verdicts", "verdicts"]

RULES = 1  # another number makes every verdict stale: the guard's rules have changed
LIMIT = 1 << 20  # bytes
PATTERN = "*.passed"


class Verdicts:
    """Graphs that passed, on disk."""

    def __init__(self, folder: Path, secret: Path) -> None:
        """`secret` is the file of the key that verdicts are signed with."""
        self._folder = folder
        self._secret = secret

    def passed(self, graph: bytes, data_files: Mapping[str, int]) -> bool:
        """Whether these very bytes have passed before, with data files of these sizes."""
        name = _name(graph, data_files)
        try:
            with open_private(self._folder / name) as file:
                return hmac.compare_digest(file.read(), self._mac(name))
        except (SanaError, ValueError, OSError):
            return False

    def remember(self, graph: bytes, data_files: Mapping[str, int]) -> None:
        """They have passed. Where that cannot be kept, the next start takes a little longer, no more."""
        name = _name(graph, data_files)
        with suppress(SanaError, OSError):
            make_private(self._folder)
            mac = self._mac(name)
            with replace_private(self._folder / name) as file:
                file.write(mac)
            make_room(self._folder, PATTERN, len(mac), LIMIT, keep=self._folder / name)

    def _mac(self, name: str) -> bytes:
        return hmac.digest(signing_key(self._secret), name.encode(), "sha256")


def verdicts() -> Verdicts | None:
    """The user's own, or None where nothing is kept."""
    return Verdicts(compiled_folder(), compiled_secret()) if keeping() else None


def _name(graph: bytes, data_files: Mapping[str, int]) -> str:
    known = hashlib.sha256(json.dumps([RULES, sorted(data_files.items())]).encode())
    known.update(hashlib.sha256(graph).digest())
    return f"{known.hexdigest()}{PATTERN.removeprefix('*')}"
