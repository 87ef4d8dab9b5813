"""Captions of all training scenes as token ids, ready to be drawn from by score."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from sana_runtime.prompt import PromptRules
from sana_runtime.tokenizer import Tokenizer
from torch import Tensor

from sana_reference.nano.captions import Caption, captions
from sana_reference.nano.scenes import Scene

__all__ = ["TextBatch", "Texts", "all_captions"]


def all_captions(scenes: Sequence[Scene], wordings: int, seed: int) -> list[tuple[Caption, ...]]:
    """The captions of every scene, each way of telling worded `wordings` times."""
    rng = np.random.default_rng(seed)
    return [tuple(caption for _ in range(wordings) for caption in captions(scene, rng)) for scene in scenes]


@dataclass(frozen=True)
class TextBatch:
    """What the text encoder takes, and the mask of its answer."""

    input_ids: Tensor
    text_mask: Tensor
    instructed: Tensor
    row_mask: Tensor


@dataclass(frozen=True)
class Texts:
    """Tokens of all captions, and how probable each is within its scene."""

    ids: NDArray[np.int16]  # (scenes, captions, L)
    lengths: NDArray[np.int64]  # (scenes, captions)
    until: NDArray[np.float64]  # (scenes, captions), probabilities added up
    hidden: int  # leading tokens of every caption that belong to the instruction

    @classmethod
    def of(
        cls, told: Sequence[Sequence[Caption]], tokenizer: Tokenizer, rules: PromptRules, temperature: float
    ) -> "Texts":
        """Captions behind the instruction; each drawn with probability proportional to exp(score / temperature)."""
        tokens = [[rules.instruct(tokenizer, caption.text) for caption in each] for each in told]
        assert all(token.instructed for each in tokens for token in each), "a caption changes the instruction's tokens"
        lengths = np.array([[len(token.ids) for token in each] for each in tokens])
        ids = np.zeros((*lengths.shape, lengths.max()), np.int16)
        for row, each in enumerate(tokens):
            for column, token in enumerate(each):
                ids[row, column, : len(token.ids)] = token.ids
        scores = np.array([[caption.score for caption in each] for each in told])
        weights = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
        until = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
        return cls(ids, lengths, until, rules.start - len(rules.prefix))

    @classmethod
    def read(cls, path: Path) -> "Texts":
        """What `keep` wrote."""
        with np.load(path) as kept:
            return cls(kept["ids"], kept["lengths"], kept["until"], int(kept["hidden"]))

    def keep(self, path: Path) -> None:
        """Write everything to one file."""
        np.savez(path, ids=self.ids, lengths=self.lengths, until=self.until, hidden=self.hidden)

    def draw(self, scenes: NDArray[np.int64], dropped: float, rng: Generator) -> TextBatch:
        """One caption for each scene, by score; a share of them `dropped` to the empty, un-instructed prompt."""
        chosen = (self.until[scenes] < rng.random((len(scenes), 1))).sum(axis=1).clip(max=self.until.shape[1] - 1)
        instructed = rng.random(len(scenes)) >= dropped
        lengths = np.where(instructed, self.lengths[scenes, chosen], 0)
        longest = max(int(lengths.max()), 1)
        places = np.arange(longest)
        text_mask = places < lengths[:, None]
        ids = np.where(text_mask, self.ids[scenes, chosen, :longest], 0).astype(np.int64)
        row_mask = np.concatenate([np.ones((len(scenes), 1), bool), text_mask & (places >= self.hidden)], axis=1)
        return TextBatch(*map(torch.from_numpy, (ids, text_mask, instructed, row_mask)))
