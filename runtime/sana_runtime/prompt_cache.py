"""Keep what prompts become on the disk, so that one that was painted before needs no text encoder.

The folder is the user's alone. An entry is a .npy file with 32 bytes after it: the SHA-256 of its name and its content.
One that is damaged, cut short, renamed or another user's is not used, and made again. Its name is a hash of everything
that the numbers depend on: the bundle's text parts, the prompt's tokens, who computes them, and where. The parts count
by their own bytes and files, whatever the bundle says of them, or one could have its numbers kept under another's name.
"""

import hashlib
import io
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from sana_runtime.bundle import Bundle
from sana_runtime.compiled_models import compiled_folder, origin
from sana_runtime.errors import BackendError, MemoryLimitError
from sana_runtime.private_files import by_use, make_private, make_room, open_private, remove, replace_private
from sana_runtime.session import Device
from sana_runtime.signature import TEXT_PARTS

__all__ = ["PromptCache", "empty_prompts", "prompt_folder", "text_source"]

LIMIT = 1 << 30  # bytes: about 150 prompts of 20 words for Sana-0.6B
DIGEST_BYTES = 32
FEW = 16 << 20  # bytes: the empty prompt of about sixty text encoders
PATTERN = "*.npy"
ENGINES = (  # of which any may be installed; numbers differ a little from version to version
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "tensorrt-rtx",
    "tensorrt",
)


def prompt_folder() -> Path:
    """Where prompts are kept."""
    return Path(platformdirs.user_cache_dir("sana-export")) / "prompts"


def empty_prompts() -> "PromptCache":
    """Where the empty prompt is kept even where nobody asked for prompts to be: beside the compiled models."""
    return PromptCache(compiled_folder(), limit=FEW)


def text_source(bundle: Bundle, devices: Mapping[str, Device], threads: int) -> str:
    """A hash of all that a prompt's numbers depend on but its tokens."""
    manifest = bundle.manifest
    facts = (
        [
            (part, origin(bundle.graph(part)), held.precision, held.in_place, devices[part].value)
            for part, held in ((part, manifest.parts[part]) for part in TEXT_PARTS)
        ],
        [(engine, _version(engine)) for engine in ("sana-export", *ENGINES)],
        (platform.node(), platform.machine(), threads),
    )
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class PromptCache:
    """Arrays on disk by key, up to `limit` bytes; those used longest ago make room."""

    def __init__(self, folder: Path | None = None, *, limit: int = LIMIT) -> None:
        self.folder = folder or prompt_folder()
        self._limit = limit

    def prepare(self) -> None:
        """Make the folder, private to the user; BackendError where that cannot be."""
        make_private(self.folder)

    def load(self, key: str) -> NDArray[Any] | None:
        """The array that was stored under `key`, whole; None when there is none, or it cannot be trusted."""
        path = self._path(key)
        try:
            array = _read(path, self._limit)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            remove(path)
            return None
        with suppress(OSError):
            os.utime(path)
        return array

    def store(self, key: str, array: NDArray[Any]) -> None:
        """Keep an array. One that is too large, or that the disk does not take, is not kept: it can be made again."""
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=False)
        content = stream.getvalue()
        if len(content) + DIGEST_BYTES > self._limit:
            return
        with suppress(BackendError, MemoryLimitError, OSError):
            self.prepare()
            make_room(self.folder, PATTERN, len(content) + DIGEST_BYTES, self._limit)
            with replace_private(self._path(key)) as file:
                file.write(content)
                file.write(_digest(self._path(key), content))

    def entries(self) -> tuple[Path, ...]:
        """What is kept, the last used first."""
        return tuple(path for path, _, _ in by_use(self.folder, PATTERN))

    def _path(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"


def _read(path: Path, limit: int) -> NDArray[Any]:
    """The checked array in `path`; ValueError when it is not what was stored there."""
    with open_private(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise ValueError("it is too large to be ours")
        held = file.read()
    content, digest = held[:-DIGEST_BYTES], held[-DIGEST_BYTES:]
    if digest != _digest(path, content):
        raise ValueError("it is damaged, or another entry under this one's name")
    array: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return array


def _digest(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + content).digest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
