"""Captions of all training scenes as token ids, ready to be drawn from by score."""

from collections.abc import Sequence
from dataclasses import dataclass

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


class Texts:
    """Tokens (scenes, captions, L) of all captions, and the probability of each within its scene."""

    def __init__(
        self, told: Sequence[Sequence[Caption]], tokenizer: Tokenizer, rules: PromptRules, temperature: float
    ) -> None:
        tokens = [[rules.instruct(tokenizer, caption.text) for caption in each] for each in told]
        assert all(token.instructed for each in tokens for token in each), "a caption changes the instruction's tokens"
        self.hidden = rules.start - len(rules.prefix)
        self.lengths = np.array([[len(token.ids) for token in each] for each in tokens])
        self.ids = np.zeros((*self.lengths.shape, self.lengths.max()), np.int16)
        for row, each in enumerate(tokens):
            for column, token in enumerate(each):
                self.ids[row, column, : len(token.ids)] = token.ids
        scores = np.array([[caption.score for caption in each] for each in told])
        weights = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature)
        self.until: NDArray[np.float64] = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)

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
