"""Turn text into Gemma's token ids."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from sana_runtime.byte_pairs import BytePairs, byte_pairs
from sana_runtime.compiled_models import CompiledModels, identity, keeping
from sana_runtime.errors import BundleError, SanaError, UsageError

__all__ = ["MAX_PROMPT_BYTES", "Tokenizer", "refuse_unusable"]

RECIPE = 1  # another number makes every form that was kept before stale
WORTH_KEEPING = 0.25  # seconds of reading
MAX_PROMPT_BYTES = 8192  # 300 tokens never need more; merging megabytes would stall the caller


def refuse_unusable(prompt: str) -> None:
    """Raise UsageError, without reading all of it, when `prompt` is too long or is not Unicode text."""
    if not isinstance(prompt, str):
        raise UsageError(f"the prompt is of the type {type(prompt).__name__}, must be text")
    if len(prompt) > MAX_PROMPT_BYTES:  # a character takes at least one byte
        raise UsageError(_too_long(f"{len(prompt)} characters"))
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the prompt's character {error.start} is half of a surrogate pair, which is not Unicode text; remove it"
        ) from error
    if size > MAX_PROMPT_BYTES:
        raise UsageError(_too_long(f"{size} bytes"))


def _too_long(length: str) -> str:
    return f"the prompt has {length}, more than the {MAX_PROMPT_BYTES} bytes of UTF-8 that are read; shorten it"


class Tokenizer:
    """Gemma's tokenizer, read from a `tokenizer.json`.

    `bos`, `eos` and `pad` are the ids of the special tokens. The file's own truncation, padding and
    post-processing are not used: BOS is put in front here, and nothing else is added.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise BundleError(f"{file} is missing; copy the tokenizer.json of the model's text encoder there")
        self._engine = _opened(file)
        self.bos = self._special("<bos>", file)
        self.eos = self._special("<eos>", file)
        self.pad = self._special("<pad>", file)

    def __len__(self) -> int:
        """Number of ids, added tokens included."""
        return self._engine.count

    def encode(self, prompt: str, *, after: str = "") -> list[int]:
        """BOS and the tokens of `after` + `prompt`; only the prompt is refused when too long."""
        refuse_unusable(prompt)
        return [self.bos, *self._engine.ids(after + prompt)]

    def _special(self, token: str, file: Path) -> int:
        token_id = self._engine.id_of(token)
        if token_id is None:
            raise BundleError(f"{file} has no {token} token, so it is not a Gemma tokenizer; copy the model's own file")
        return token_id


class Engine(Protocol):
    """Who turns text into ids."""

    @property
    def count(self) -> int:
        """Number of ids, added tokens included."""

    def id_of(self, token: str) -> int | None:
        """The id of a special token, if there is one."""

    def ids(self, text: str) -> list[int]:
        """What the text becomes."""


def _opened(file: Path) -> Engine:
    """Byte pairs, kept from an earlier start or made now; the library where the file is of another kind."""
    made_of = {"part": "tokenizer", "file": identity(file), "recipe": RECIPE}
    models = CompiledModels() if keeping() else None
    if models and (kept := models.load(made_of)) is not None:
        return BytePairs.unpack(kept)
    begun = time.perf_counter()
    made = byte_pairs(file.read_bytes())
    if made and models and time.perf_counter() - begun >= WORTH_KEEPING:
        with suppress(SanaError):  # without it the next start is slower, no more
            models.store(made_of, memoryview(made.pack()))
    return made or _by_library(file)


def _by_library(file: Path) -> Engine:
    from sana_runtime.tokenizer_library import LibraryTokenizer

    return LibraryTokenizer(file)
