"""From prompts to what the text encoder takes: clean-up, the instruction before them, and the 300-token rule.

Sana was trained with the Complex Human Instruction in front of every prompt. The transformer then sees
the state of BOS and of the tokens from `start` on, at most 300 in all; the instruction's own tokens
before `start` act only as context. That context is the same for every prompt, so the text encoder
holds it ready and is fed the prompt's own tokens alone.
"""

import json
import string
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.errors import BundleError, UsageError
from sana_runtime.tokenizer import MAX_PROMPT_BYTES, Tokenizer, refuse_unusable

__all__ = ["INSTRUCTION", "PromptRules", "PromptTokens", "TextInputs", "batch", "clean"]

INSTRUCTION = "\n".join(
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for "
        "image generation. Evaluate the level of detail in the user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
        "relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly without "
        "overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
        "peacefully on a warm sunny windowsill, surrounded by pots of blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street "
        "lamps, a diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass "
        "skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including any additional "
        "commentary or evaluations:",
        "User Prompt: ",
    )
)

# First characters of prompts that tell how far into the instruction a merge can reach.
PROBES = (
    "",
    *string.ascii_lowercase,
    *string.digits,
    *string.punctuation,
    "the ",
    "é",
    "я",
    "中",
    "あ",
    "ع",
    "🙂",
    "▁",
)


def clean(prompt: str) -> str:
    """The prompt as Sana's pipeline reads it: lower case, no white space around it."""
    refuse_unusable(prompt)
    return prompt.lower().strip()


@dataclass(frozen=True)
class PromptTokens:
    """The tokens of one prompt that have to be computed, after BOS or after the whole prefix.

    The first `hidden` of them belong to the instruction: context that the transformer does not see.
    """

    ids: tuple[int, ...]
    instructed: bool
    hidden: int = 0


@dataclass(frozen=True)
class TextInputs:
    """What the text encoder takes for a batch (B prompts, L tokens in the longest), and which rows it gives count.

    The encoder answers with L+1 rows, row 0 being the state of BOS; `row_mask` marks those to attend to.
    """

    input_ids: NDArray[np.int64]  # (B, L), right padded
    text_mask: NDArray[np.bool_]  # (B, L), true where there is a token
    instructed: NDArray[np.bool_]  # (B), true where the tokens follow the prefix, false where they follow BOS
    row_mask: NDArray[np.bool_]  # (B, L+1)


def batch(prompts: Sequence[PromptTokens]) -> TextInputs:
    """Put prompts side by side, padded to the longest (and to one token at least)."""
    length = max([1, *(len(prompt.ids) for prompt in prompts)])
    input_ids = np.zeros((len(prompts), length), np.int64)
    text_mask = np.zeros((len(prompts), length), np.bool_)
    row_mask = np.zeros((len(prompts), length + 1), np.bool_)
    row_mask[:, 0] = True
    for row, prompt in enumerate(prompts):
        count = len(prompt.ids)
        input_ids[row, :count] = prompt.ids
        text_mask[row, :count] = True
        row_mask[row, 1 + prompt.hidden : 1 + count] = True
    return TextInputs(input_ids, text_mask, np.array([prompt.instructed for prompt in prompts], np.bool_), row_mask)


@dataclass(frozen=True)
class PromptRules:
    """How prompts of one model become tokens; kept as `prompt.json` in a bundle."""

    instruction: str
    prefix: tuple[int, ...]  # BOS and the tokens of the instruction that no prompt is expected to change
    start: int  # index, in instruction + prompt, of the first token after BOS that the transformer sees
    max_tokens: int = 300  # rows that the transformer sees at most, BOS included

    @classmethod
    def derive(cls, tokenizer: Tokenizer, instruction: str = INSTRUCTION) -> "PromptRules":
        """The rules that follow from a tokenizer: its prefix is what a set of probing prompts leaves unchanged."""
        alone = tokenizer.encode("", after=instruction)
        start = max(1, len(alone) - 1)  # the instruction's last token, a space, merges with most prompts
        kept = min(_shared(alone, tokenizer.encode(probe, after=instruction)) for probe in PROBES)
        return cls(instruction, tuple(alone[: min(start, kept)]), start)

    def instruct(self, tokenizer: Tokenizer, prompt: str) -> PromptTokens:
        """The tokens of a prompt behind the instruction.

        When the prompt changes the prefix itself, the whole text is computed: slower, the same states.
        """
        tokens = tuple(tokenizer.encode(clean(prompt), after=self.instruction)[: self.start + self.max_tokens - 1])
        instructed = tokens[: len(self.prefix)] == self.prefix
        known = len(self.prefix) if instructed else 1
        return PromptTokens(tokens[known:], instructed, hidden=self.start - known)

    def plain(self, tokenizer: Tokenizer, prompt: str) -> PromptTokens:
        """The tokens of a negative prompt, which no instruction precedes."""
        return PromptTokens(tuple(tokenizer.encode(clean(prompt))[1 : self.max_tokens]), instructed=False)

    def to_json(self) -> str:
        """The text of `prompt.json`; the same rules give the same bytes."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "PromptRules":
        """Read `prompt.json`, or raise BundleError when it is not one."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"prompt.json is not JSON ({error}); build the bundle again") from error
        complaint = _complaint(values)
        if complaint:
            raise BundleError(f"prompt.json {complaint}; build the bundle again")
        return cls(**{**values, "prefix": tuple(values["prefix"])})


def _shared(first: Iterable[int], second: Iterable[int]) -> int:
    """Number of leading tokens that two texts have in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _complaint(values: Any) -> str:
    """What is wrong with the fields of a prompt.json; empty when nothing is."""
    names = sorted(field.name for field in fields(PromptRules))
    if not isinstance(values, dict) or sorted(values) != names:
        return f"must hold exactly {', '.join(names)}"
    prefix, start, most = values["prefix"], values["start"], values["max_tokens"]
    if not isinstance(values["instruction"], str) or not _is_usable(values["instruction"]):
        return f"must hold the instruction as Unicode text of at most {MAX_PROMPT_BYTES} bytes"
    if not isinstance(prefix, list) or not prefix or not all(_is_count(token) for token in prefix):
        return "must hold the prefix as token ids, BOS first"
    if not _is_count(start) or not _is_count(most) or start < len(prefix) or most < 1:
        return f"has start {start!r} and max_tokens {most!r}, which do not fit a prefix of {len(prefix)} tokens"
    return ""


def _is_usable(text: str) -> bool:
    """Whether the tokenizer takes `text`."""
    try:
        refuse_unusable(text)
    except UsageError:
        return False
    return True


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
