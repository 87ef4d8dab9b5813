"""From prompts to what the transformer attends to, remembered so that a prompt is encoded once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sana_runtime.prompt import PromptRules, PromptTokens, TextInputs, batch
from sana_runtime.session import Arrays
from sana_runtime.tokenizer import Tokenizer

__all__ = ["Condition", "Conditioner", "Kept", "Store", "side_by_side"]

ROWS_AT_ONCE = 16  # of text: engines multiply so many numbers together, and what is left over one by one

RunPart = Callable[[str, Mapping[str, NDArray[Any]]], Arrays]


class Store(Protocol):
    """Where arrays outlive the process."""

    def load(self, key: str) -> NDArray[Any] | None:
        """What was stored under `key`, if it is there."""

    def store(self, key: str, array: NDArray[Any]) -> None:
        """Keep `array` under `key`."""


@dataclass(frozen=True)
class Kept:
    """Where prompts outlive the process, what tells these text parts from others there, and which prompts do."""

    store: Store
    source: str
    every: bool = True  # or the empty one alone, which tells nothing of its user

    def keeps(self, tokens: PromptTokens) -> bool:
        """Whether this prompt is kept."""
        return self.every or not tokens.ids


@dataclass(frozen=True)
class Condition:
    """One prompt's keys and values for every block's cross-attention."""

    text_kv: NDArray[Any]  # (depth, 2, 1, L, C)

    @property
    def length(self) -> int:
        """Number of rows that the transformer attends to."""
        return int(self.text_kv.shape[3])


def side_by_side(conditions: Sequence[Condition]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Keys and values (depth, 2, B, L, C) of several prompts, and their mask (B, L); L is a multiple of 16."""
    longest = max(condition.length for condition in conditions)
    longest += -longest % ROWS_AT_ONCE
    mask = np.arange(longest) < np.array([[condition.length] for condition in conditions])
    rows = [np.pad(c.text_kv, ((0, 0),) * 3 + ((0, longest - c.length), (0, 0))) for c in conditions]
    return np.concatenate(rows, axis=2), mask


class Conditioner:
    """Encodes prompts through the bundle's text parts and keeps the latest ones."""

    def __init__(
        self,
        run: RunPart,
        tokenizer: Tokenizer,
        rules: PromptRules,
        *,
        cache_bytes: int = 256 << 20,
        kept: Kept | None = None,
    ) -> None:
        """`kept` says which prompts stay for later runs, and where."""
        self._run = run
        self._tokenizer = tokenizer
        self._rules = rules
        self._on_disk = kept
        self._kept: OrderedDict[PromptTokens, Condition] = OrderedDict()
        self._budget = cache_bytes
        self._lock = threading.Lock()

    def prompt(self, text: str) -> Condition:
        """The condition of a prompt, behind the model's instruction."""
        return self._condition(self._rules.instruct(self._tokenizer, text))

    def negative(self, text: str) -> Condition:
        """The condition of a negative prompt, which no instruction precedes."""
        return self._condition(self._rules.plain(self._tokenizer, text))

    def _condition(self, tokens: PromptTokens) -> Condition:
        with self._lock:
            if tokens in self._kept:
                self._kept.move_to_end(tokens)
                return self._kept[tokens]
        condition = self._encode(tokens)
        with self._lock:
            self._kept[tokens] = condition
            while sum(kept.text_kv.nbytes for kept in self._kept.values()) > self._budget and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return condition

    def _encode(self, tokens: PromptTokens) -> Condition:
        """The condition, read from the store where that has one of the right shape."""
        inputs = batch([tokens])
        kept = self._on_disk
        if kept is None or not kept.keeps(tokens):
            return self._compute(inputs)
        key, rows = f"{kept.source} {tokens}", int(inputs.row_mask.sum())
        found = kept.store.load(key)
        if found is not None and found.ndim == 5 and found.shape[2:4] == (1, rows) and found.dtype.kind == "f":
            return Condition(found)
        made = self._compute(inputs)
        kept.store.store(key, made.text_kv)
        return made

    def _compute(self, inputs: TextInputs) -> Condition:
        feeds = {"input_ids": inputs.input_ids, "text_mask": inputs.text_mask, "instructed": inputs.instructed}
        text = self._run("text_encoder", feeds)["text"]
        return Condition(self._run("caption", {"text": text[:, inputs.row_mask[0]]})["text_kv"])
