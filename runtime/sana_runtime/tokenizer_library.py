"""Tokenizers of any kind that is safe to use: the one door to the `tokenizers` library."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from sana_runtime.errors import BundleError

__all__ = ["LibraryTokenizer"]

MOST_STEPS = 16  # of a normaliser; Gemma's has one


class LibraryTokenizer:
    """A tokenizer that the library reads. The file's own truncation, padding and special tokens are not used."""

    def __init__(self, file: Path) -> None:
        self._engine = _load(file)

    @property
    def count(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._engine.get_vocab_size(with_added_tokens=True))

    def id_of(self, token: str) -> int | None:
        """The id of a token, if there is one."""
        found = self._engine.token_to_id(token)
        return None if found is None else int(found)

    def ids(self, text: str) -> list[int]:
        """What the text becomes."""
        with _translated("the tokenizer fails at this prompt"):
            return list(self._engine.encode(text, add_special_tokens=False).ids)


def _load(file: Path) -> tokenizers.Tokenizer:
    with _translated(f"{file} is not a tokenizer"):
        engine = tokenizers.Tokenizer.from_file(str(file))
    if complaint := _complaint(engine):
        raise BundleError(f"{file} {complaint}, which Gemma's tokenizers never do; copy the model's own file")
    engine.no_truncation()
    engine.no_padding()
    return engine


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """One line for what goes wrong in the library, which raises bare Exception, or panics, which is not even that."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        reason = ascii(str(error).partition("\n")[0])[1:-1][:200]
        raise BundleError(f"{what} ({reason}); copy the model's tokenizer.json again") from error


def _complaint(engine: tokenizers.Tokenizer) -> str:
    """What a tokenizer does that could stall, kill or surprise its caller; empty when nothing."""
    if not isinstance(engine.model, tokenizers.models.BPE) or engine.model.dropout:
        return "is not made of fixed byte pairs"
    if engine.encode_special_tokens:
        return "reads special tokens as text"
    for component in (engine.normalizer, engine.pre_tokenizer):
        if component is not None and (strange := _strange(json.loads(component.__getstate__()))):
            return f"has the component {strange}"
    return ""


def _strange(component: dict[str, Any]) -> str:
    """What a component does beyond replacing or splitting at fixed strings, a few times; empty when nothing.

    A pattern may backtrack for ever, and forty replacements of one letter by two make a terabyte of it.
    """
    steps = list(_steps(component))
    if len(steps) > MOST_STEPS:
        return f"Sequence, of {len(steps)} steps"
    for step in steps:
        if step["type"] not in ("Replace", "Split") or list(step["pattern"]) != ["String"]:
            return ascii(step["type"])[1:-1]
        if len(step.get("content", "")) > len(step["pattern"]["String"]):
            return "Replace, which lengthens its text"
    return ""


def _steps(component: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The component, or those that a sequence consists of."""
    if component["type"] != "Sequence":
        yield component
    for inner in (*component.get("normalizers", ()), *component.get("pretokenizers", ())):
        yield from _steps(inner)
