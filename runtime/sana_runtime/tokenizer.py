"""Turn text into Gemma's token ids: the one door to the `tokenizers` library."""

from pathlib import Path

import tokenizers

from sana_runtime.errors import BundleError, UsageError

__all__ = ["MAX_PROMPT_BYTES", "Tokenizer", "refuse_unusable"]

MAX_PROMPT_BYTES = 8192  # 300 tokens never need more; merging megabytes would stall the caller


def refuse_unusable(prompt: str) -> None:
    """Raise UsageError, without reading all of it, when `prompt` is too long or is not Unicode text."""
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
        return [self.bos, *self._engine.encode(after + prompt, add_special_tokens=False).ids]

    def _special(self, token: str, file: Path) -> int:
        token_id = self._engine.token_to_id(token)
        if token_id is None:
            raise BundleError(f"{file} has no {token} token, so it is not a Gemma tokenizer; copy the model's own file")
        return int(token_id)


def _load(file: Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise BundleError(f"{file} is missing; copy the tokenizer.json of the model's text encoder there")
    try:
        engine = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every malformed file
        reason = str(error).splitlines()[0]
        raise BundleError(f"{file} is not a tokenizer ({reason}); copy the model's tokenizer.json again") from error
    engine.no_truncation()
    engine.no_padding()
    return engine
