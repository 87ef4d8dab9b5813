"""Turn text into Gemma's token ids: the one door to the `tokenizers` library."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from sana_runtime.errors import BundleError, UsageError

__all__ = ["MAX_PROMPT_BYTES", "Tokenizer", "refuse_unusable"]

MOST_STEPS = 16  # of a normaliser; Gemma's has one
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
        self._engine = _load(file)
        self.bos = self._special("<bos>", file)
        self.eos = self._special("<eos>", file)
        self.pad = self._special("<pad>", file)

    def __len__(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._engine.get_vocab_size(with_added_tokens=True))

    def encode(self, prompt: str, *, after: str = "") -> list[int]:
        """BOS and the tokens of `after` + `prompt`; only the prompt is refused when too long."""
        refuse_unusable(prompt)
        with _translated("the tokenizer fails at this prompt"):
            return [self.bos, *self._engine.encode(after + prompt, add_special_tokens=False).ids]

    def _special(self, token: str, file: Path) -> int:
        token_id = self._engine.token_to_id(token)
        if token_id is None:
            raise BundleError(f"{file} has no {token} token, so it is not a Gemma tokenizer; copy the model's own file")
        return int(token_id)


def _load(file: Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise BundleError(f"{file} is missing; copy the tokenizer.json of the model's text encoder there")
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
