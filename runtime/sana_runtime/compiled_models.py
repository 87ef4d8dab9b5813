"""Keep graphs as the CPU's library compiled them: the next start reads them back in half the time.

What is read back decides what is computed, so the rules of engines hold: the folder is the user's alone, every entry
carries an HMAC under a key that only the user can read, and one that was not made here, or was damaged, is removed
before the library sees it. Weights are not kept a second time: an entry names their places in the graph's data file.

An entry is the MAC (32 bytes), MAGIC, what the model was made of (JSON, with spaces up to PAGE bytes) and the model.
The MAC covers all that follows it. The model begins on a page of its own because it is mapped, not read: its pages are
the system's cache, as those of a bundle's weights are.
"""

import hashlib
import hmac
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from sana_runtime.errors import SanaError
from sana_runtime.private_files import (
    by_use,
    make_private,
    make_room,
    open_private,
    remove,
    replace_private,
    signing_key,
)

__all__ = [
    "SWITCH",
    "CompiledModels",
    "KeptModel",
    "compiled_folder",
    "compiled_secret",
    "identity",
    "keeping",
    "nothing_kept",
    "origin",
]

SWITCH = "SANA_EXPORT_COMPILED"  # "off" in the environment: nothing is kept, and nothing kept is used
MAGIC = b"SANACPU1"
MAC_BYTES, PAGE = 32, 4096
LIMIT = 8 << 30  # bytes; Sana-0.6B takes 15 MB for each size of picture, more where weights are stored converted
PATTERN = "*.model"

_passing: ContextVar[bool] = ContextVar("passing", default=False)

MadeOf = Mapping[str, Any]  # everything that the compiled model depends on, as JSON has it; "part" names it


@dataclass(frozen=True)
class KeptModel:
    """One kept model, by its own account, which `CompiledModels.load` alone checks."""

    path: Path
    bytes: int
    used: float  # seconds since the epoch
    made_of: MadeOf


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Keep no model that this thread compiles meanwhile: its graph will be gone again before the next start."""
    token = _passing.set(True)
    try:
        yield
    finally:
        _passing.reset(token)


def keeping() -> bool:
    """Whether compiled models are kept at all."""
    return not _passing.get() and os.environ.get(SWITCH, "").lower() not in ("off", "0", "no")


def compiled_folder() -> Path:
    """Where compiled models are kept."""
    return Path(platformdirs.user_cache_dir("sana-export")) / "compiled"


def compiled_secret() -> Path:
    """The file of the key that they are signed with."""
    return Path(platformdirs.user_data_dir("sana-export")) / "compiled-key"


def origin(graph: Path) -> str:
    """Which graph this is: the digest of its own bytes and of who its data files are.

    A bundle's word on the digest of its weights is not taken, or one bundle could have its model kept under another's
    name; and reading them would take as long as is gained.
    """
    digest = hashlib.sha256(graph.read_bytes())
    for file in sorted(graph.parent.glob("*.data")):
        digest.update(identity(file).encode())
    return digest.hexdigest()


def identity(file: Path) -> str:
    """What tells a file from any other, and from what it was before: its place, number, size and times."""
    held = file.lstat()
    numbers = (held.st_dev, held.st_ino, held.st_size, held.st_mtime_ns, held.st_ctime_ns)
    return repr((file.name, *numbers))


class CompiledModels:
    """Compiled models on disk, up to `limit` bytes; those used longest ago make room."""

    def __init__(self, folder: Path | None = None, secret: Path | None = None, *, limit: int = LIMIT) -> None:
        """`secret` is the file of the key that entries are signed with."""
        self.folder = folder or compiled_folder()
        self._secret = secret or compiled_secret()
        self._limit = limit

    def load(self, made_of: MadeOf) -> NDArray[np.uint8] | None:
        """The model that was made of this, mapped, whole and ours, or None; what is there but is neither is removed."""
        path = self.folder / _file_name(made_of)
        if not os.path.lexists(path):
            return None
        try:
            model = self._read(path, _head(made_of))
            os.utime(path)
        except SanaError:  # no fault of the file's
            return None
        except (ValueError, OSError):
            remove(path)
            return None
        return model

    def store(self, made_of: MadeOf, model: memoryview) -> Path:
        """Keep a model that was just compiled."""
        make_private(self.folder)
        head, target = _head(made_of), self.folder / _file_name(made_of)
        mac = hmac.new(signing_key(self._secret), head, hashlib.sha256)
        mac.update(model)
        with replace_private(target) as file:
            for piece in (mac.digest(), head, model):
                file.write(piece)
        make_room(self.folder, PATTERN, target.stat().st_size, self._limit, keep=target)
        return target

    def entries(self) -> tuple[KeptModel, ...]:
        """What is kept, the last used first; files that are no entries are left out."""
        found = (_entry(path) for path, _, _ in by_use(self.folder, PATTERN))
        return tuple(entry for entry in found if entry)

    def _read(self, path: Path, head: bytes) -> NDArray[np.uint8]:
        """The checked model in `path`, mapped; ValueError says what is wrong with it."""
        with open_private(path) as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # libraries want memory that can be written
        content = np.frombuffer(whole, np.uint8)
        mac = hmac.new(signing_key(self._secret), content.data[MAC_BYTES:], hashlib.sha256)
        if not hmac.compare_digest(bytes(content[:MAC_BYTES]), mac.digest()):
            raise ValueError("it is damaged, or was not made here")
        if bytes(content[MAC_BYTES:PAGE]) != head:
            raise ValueError("it is another model under this one's name")
        return content[PAGE:]


def _text(made_of: MadeOf) -> bytes:
    return json.dumps(made_of, sort_keys=True).encode()


def _head(made_of: MadeOf) -> bytes:
    """What lies between the MAC and the model."""
    head = (MAGIC + _text(made_of)).ljust(PAGE - MAC_BYTES)
    if len(head) > PAGE - MAC_BYTES:
        raise ValueError(f"{len(head)} bytes are too many to describe a compiled model")
    return head


def _file_name(made_of: MadeOf) -> str:
    return f"{made_of['part']}-{hashlib.sha256(_text(made_of)).hexdigest()[:32]}.model"


def _entry(path: Path) -> KeptModel | None:
    with suppress(OSError, ValueError), open_private(path) as file:
        held, head = os.fstat(file.fileno()), file.read(PAGE)[MAC_BYTES:]
        if head.startswith(MAGIC):
            return KeptModel(path, held.st_size, held.st_mtime, json.loads(head[len(MAGIC) :]))
    return None
