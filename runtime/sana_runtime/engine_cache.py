"""Keep engines that were built on this machine, and hand out none that was not.

An engine is code. The folder is the user's alone, and every entry carries an HMAC under a key that only the user can
read, so that a file that anybody else put there, or a single flipped bit, is found before an engine library sees it.
Such an entry is removed and reported, and the engine is built again.

An entry is the MAC (32 bytes), MAGIC, the length of the note (4 bytes, little-endian), the note (JSON: what the engine
was built from) and the engine; the MAC covers all that follows it.
"""

import hashlib
import hmac
import json
import os
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from sana_runtime.private_files import (
    by_use,
    make_private,
    make_room,
    open_private,
    remove,
    replace_private,
    signing_key,
)

__all__ = ["ALL_SIZES", "EngineCache", "EngineEntry", "EngineKey", "engine_folder", "graph_digest"]

MAGIC = b"SANAENG1"
ALL_SIZES = "all"
RECIPE = "recipe 1"  # another number makes every engine that was built before stale
MAC_BYTES = 32
LONGEST_NOTE = 1 << 16
PATTERN = "*.engine"
LIMIT = 24 << 30  # bytes: about four bundles of Sana-1.6B

# The first 64 bytes of TensorRT-RTX's engines, as version 1.7 writes them; nothing documents it.
RTX_HEADER = 64
RTX_VERSION, RTX_CAPABILITIES = slice(24, 28), slice(32, 36)
RTX_BITS = {75: 0x01, 80: 0x02, 86: 0x04, 89: 0x08, 120: 0x10, 121: 0x20}


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on."""

    part: str
    graph: str  # `graph_digest` of what it was built from
    library: str  # "tensorrt_rtx" or "tensorrt"
    version: str  # of the library, such as "1.7.1.116"
    capabilities: tuple[int, ...]  # compute capabilities that it runs on, such as (86, 89, 120)
    precision: str  # the part's, as the manifest names it
    profile: str  # `profile_digest` of its shapes
    plugin: bool  # whether its attention is a plugin
    sizes: str = ALL_SIZES  # of pictures: all that the bundle allows, or a `Span`, in words
    streams: bool = False  # whether weights may stay off the card, and come when they are needed
    fused_mix_ffn: bool = False  # whether the middle of its Mix-FFN is a plugin, too

    def serves(self, wanted: "EngineKey") -> bool:
        """Whether an engine with this key is one for `wanted`: the same, on at least its capabilities."""
        return (
            set(wanted.capabilities) <= set(self.capabilities)
            and replace(self, capabilities=wanted.capabilities) == wanted
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @property
    def file(self) -> str:
        """Name of the entry."""
        return f"{self.part}-{hashlib.sha256(_note(self)).hexdigest()[:32]}.engine"


@dataclass(frozen=True)
class EngineEntry:
    """One kept engine, by its own account, which `EngineCache.load` alone checks."""

    path: Path
    key: EngineKey
    bytes: int
    used: float  # seconds since the epoch


def graph_digest(hashes: Iterable[str]) -> str:
    """One digest for the sha256 of a graph and of its data, in this order, and for how engines are made of them."""
    return hashlib.sha256("\n".join((*hashes, RECIPE)).encode()).hexdigest()


def engine_folder() -> Path:
    """Where engines are kept."""
    return Path(platformdirs.user_cache_dir("sana-export")) / "engines"


class EngineCache:
    """Engines on disk, up to `limit` bytes; those used longest ago make room."""

    def __init__(
        self,
        folder: Path | None = None,
        secret: Path | None = None,
        *,
        limit: int = LIMIT,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`secret` is the file of the key that entries are signed with; `note` hears of entries that are refused."""
        self.folder = folder or engine_folder()
        self._secret = secret or Path(platformdirs.user_data_dir("sana-export")) / "engine-key"
        self._limit = limit
        self._note = note

    def prepare(self) -> None:
        """Make the folder, private to the user."""
        make_private(self.folder)

    def load(self, key: EngineKey) -> bytes | None:
        """The engine for `key`, whole and ours, or None; what is there but is neither is removed."""
        for path in self._candidates(key):
            try:
                engine = self._read(path, key)
            except (ValueError, OSError) as error:
                self._note(f"{path.name} is not used: {error}; it is removed, and built again when needed")
                remove(path)
                continue
            with suppress(OSError):
                os.utime(path)
            return engine
        return None

    def store(self, key: EngineKey, engine: bytes | memoryview) -> Path:
        """Keep an engine that was just built; the old entry stays until the new one is whole."""
        self.prepare()
        target, note = self.folder / key.file, _note(key)
        head = MAGIC + struct.pack("<I", len(note)) + note
        mac = hmac.new(signing_key(self._secret), head, hashlib.sha256)
        mac.update(engine)
        with replace_private(target) as file:
            for piece in (mac.digest(), head, engine):
                file.write(piece)
        make_room(self.folder, PATTERN, target.stat().st_size, self._limit, keep=target)
        return target

    def entries(self) -> tuple[EngineEntry, ...]:
        """What is kept, the last used first; files that are no entries are left out."""
        found = (_entry(path) for path, _, _ in by_use(self.folder, PATTERN))
        return tuple(entry for entry in found if entry)

    def _candidates(self, key: EngineKey) -> list[Path]:
        """Files that may hold the engine: the one of that name, and those that say they serve more capabilities."""
        if not self.folder.is_dir():
            return []
        make_private(self.folder)
        exact = self.folder / key.file
        others = [entry.path for entry in self.entries() if entry.path != exact and entry.key.serves(key)]
        return [exact, *others] if os.path.lexists(exact) else others

    def _read(self, path: Path, key: EngineKey) -> bytes:
        """The checked engine in `path`; ValueError says what is wrong with it."""
        with open_private(path) as file:
            mac = file.read(MAC_BYTES)
            held, head = _read_note(file)
            engine = file.read()
        expected = hmac.new(signing_key(self._secret), head, hashlib.sha256)
        expected.update(engine)
        if not hmac.compare_digest(mac, expected.digest()):
            raise ValueError("it is damaged, or was not made here")
        if path.name != held.file or not held.serves(key):
            raise ValueError("it is another engine under this one's name")
        _check_header(engine, held)
        return engine


def _note(key: EngineKey) -> bytes:
    return json.dumps(key.to_dict(), sort_keys=True).encode()


def _read_note(file: BinaryIO) -> tuple[EngineKey, bytes]:
    """What an entry says it is, and the bytes it says it with; ValueError when they make no sense."""
    start = file.read(len(MAGIC) + 4)
    length = struct.unpack("<I", start[-4:])[0] if len(start) == len(MAGIC) + 4 else LONGEST_NOTE + 1
    if not start.startswith(MAGIC) or length > LONGEST_NOTE:
        raise ValueError("it is no engine of ours")
    text = file.read(length)
    try:
        fields: dict[str, Any] = json.loads(text)
        key = EngineKey(**{**fields, "capabilities": tuple(fields["capabilities"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError("its description is damaged") from error
    return key, start + text


def _entry(path: Path) -> EngineEntry | None:
    with suppress(OSError, ValueError), open_private(path) as file:
        file.seek(MAC_BYTES)
        held = os.fstat(file.fileno())
        return EngineEntry(path, _read_note(file)[0], held.st_size, held.st_mtime)
    return None


def _check_header(engine: bytes, key: EngineKey) -> None:
    """Whether the engine itself says what its description says, before a library reads it."""
    if key.library != "tensorrt_rtx":
        return  # TensorRT's own check at loading is all there is
    if len(engine) < RTX_HEADER:
        raise ValueError("it is too short for an engine")
    version = ".".join(str(byte) for byte in engine[RTX_VERSION])
    if version != key.version:
        raise ValueError(f"it was built by TensorRT-RTX {version}, not by {key.version}")
    mask = int.from_bytes(engine[RTX_CAPABILITIES], "little")
    missing = [capability for capability in key.capabilities if not mask & RTX_BITS.get(capability, 0)]
    if missing:
        raise ValueError(f"it does not run on compute capability {missing[0] / 10}")
