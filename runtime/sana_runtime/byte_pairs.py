"""Byte pairs as Gemma's tokenizer merges them, in a form that is mapped at once when it was made before.

The `tokenizers` library takes over a second to read a quarter of a million words, and lets no other thread run
meanwhile. What is here is for tokenizers of exactly Gemma's kind: spaces become ▁, characters that are no word become
bytes, added tokens stand for themselves. All else is the library's; that both give the same ids is what the tests hold.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BytePairs", "byte_pairs"]

SPACE, WORD = " ", "▁"
SPACES_TO_WORDS = {"type": "Replace", "pattern": {"String": SPACE}, "content": WORD}
AT_SPACES = {"type": "Split", "pattern": {"String": SPACE}, "behavior": "MergedWithPrevious", "invert": False}
KIND = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": True,
    "byte_fallback": True,
    "ignore_merges": False,
}
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
ALIGNED = 8  # bytes
LARGEST = 2**31 - 1
GONE = -1
REMEMBERED = 20_000  # pairs


@dataclass(frozen=True)
class Words:
    """All ids but those of merges."""

    characters: Mapping[str, int]  # words of one character
    bytes: Mapping[str, int]  # by the byte's number; bytes that are no words are characters that are
    added: Mapping[str, int]
    count: int  # of all ids


@dataclass(frozen=True)
class BytePairs:
    """Ids of texts. The pairs, left id << 32 | right id, ascend; `ranks` and `made` say when and what each becomes."""

    words: Words
    pairs: NDArray[np.uint64]
    ranks: NDArray[np.uint32]
    made: NDArray[np.uint32]

    @property
    def count(self) -> int:
        """Number of ids, added tokens included."""
        return self.words.count

    def id_of(self, token: str) -> int | None:
        """The id of an added token."""
        return self.words.added.get(token)

    def ids(self, text: str) -> list[int]:
        """What the text becomes."""
        ids, begin = [], 0
        for found in self._added.finditer(text):
            ids += self._merged(self._first_ids(text[begin : found.start()]))
            ids.append(self.words.added[found.group()])
            begin = found.end()
        return ids + self._merged(self._first_ids(text[begin:]))

    def pack(self) -> bytes:
        """All of it as bytes, for `unpack`."""
        head = json.dumps(asdict(self.words)).encode()
        head = head.ljust(-(-len(head) // ALIGNED) * ALIGNED)
        rows = (self.pairs, self.ranks, self.made)
        return b"".join((len(head).to_bytes(ALIGNED, "little"), head, *(row.tobytes() for row in rows)))

    @classmethod
    def unpack(cls, packed: NDArray[np.uint8]) -> "BytePairs":
        """What `pack` gave, left where it is."""
        begin = ALIGNED + int.from_bytes(packed[:ALIGNED].tobytes(), "little")
        words = Words(**json.loads(packed[ALIGNED:begin].tobytes()))
        count = (len(packed) - begin) // 16
        pairs, rest = packed[begin : begin + 8 * count].view(np.uint64), packed[begin + 8 * count :].view(np.uint32)
        return cls(words, pairs, rest[:count], rest[count:])

    @cached_property
    def _added(self) -> re.Pattern[str]:
        longest_first = sorted(self.words.added, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    def _first_ids(self, text: str) -> list[int]:
        """Every character's id, or those of its bytes."""
        ids: list[int] = []
        for character in text.replace(SPACE, WORD):
            known = self.words.characters.get(character)
            ids += (self.words.bytes[str(byte)] for byte in character.encode()) if known is None else (known,)
        return ids

    def _merged(self, ids: list[int]) -> list[int]:
        """Merge neighbours, the lowest rank first and then the leftmost, until no two can be."""
        after = [*range(1, len(ids)), GONE] if ids else []
        before = list(range(-1, len(ids) - 1))
        waiting = [entry for i in range(len(ids) - 1) if (entry := self._merge(ids, i, i + 1))]
        heapify(waiting)
        while waiting:
            _, here, pair, made = heappop(waiting)
            there = after[here]
            if there == GONE or ids[here] << 32 | ids[there] != pair:
                continue  # one of the two was merged meanwhile
            ids[here], ids[there], after[here] = made, GONE, after[there]
            if after[here] != GONE:
                before[after[here]] = here
            for left, right in ((before[here], here), (here, after[here])):
                if left != GONE and right != GONE and (entry := self._merge(ids, left, right)):
                    heappush(waiting, entry)
        return [each for each in ids if each != GONE]

    def _merge(self, ids: list[int], left: int, right: int) -> tuple[int, int, int, int] | None:
        """Rank, place, pair and result of merging two neighbours, if they can be."""
        pair = ids[left] << 32 | ids[right]
        place = self._met.get(pair)
        if place is None:
            place = self._place(pair)
        return None if place == GONE else (self._rows[1][place], left, pair, self._rows[2][place])

    def _place(self, pair: int) -> int:
        """Where the pair stands, or nowhere; remembered, as the instruction's pairs come with every prompt."""
        ascending = self._rows[0]
        place = bisect_left(ascending, pair)
        if place == len(ascending) or ascending[place] != pair:
            place = GONE
        if len(self._met) < REMEMBERED:
            self._met[pair] = place
        return place

    @cached_property
    def _met(self) -> dict[int, int]:
        """Places of pairs that came before."""
        return {}

    @cached_property
    def _rows(self) -> tuple[memoryview, memoryview, memoryview]:
        """The rows as what Python reads single numbers of fastest."""
        return self.pairs.data, self.ranks.data, self.made.data


def byte_pairs(content: bytes) -> BytePairs | None:
    """What a tokenizer.json says, where it is of Gemma's kind and nothing is odd about it."""
    try:
        described = json.loads(content.decode())
        return _read(described) if _is_known(described) else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError):
        return None  # the library says what is wrong


def _is_known(described: dict[str, Any]) -> bool:
    model, after = described["model"], described["post_processor"]
    return (
        described["version"] == "1.0"
        and described["normalizer"] == SPACES_TO_WORDS
        and described["pre_tokenizer"] in (None, AT_SPACES)  # where there are no spaces it does nothing
        and (after is None or (after["type"] == "TemplateProcessing" and _texts(after["single"]) == ["A"]))
        and set(model) == {*KIND, "unk_token", "vocab", "merges"}
        and all(model[name] == value and type(model[name]) is type(value) for name, value in KIND.items())
        and all(each[name] is value for each in described["added_tokens"] for name, value in PLAIN.items())
    )


def _texts(template: list[dict[str, Any]]) -> list[str]:
    """The texts that a template puts between its special tokens."""
    return [piece["Sequence"]["id"] for piece in template if "Sequence" in piece]


def _read(described: dict[str, Any]) -> BytePairs | None:
    vocabulary = described["model"]["vocab"]
    added = {each["content"]: each["id"] for each in described["added_tokens"]}
    bytes_ = {str(byte): vocabulary.get(f"<0x{byte:02X}>") for byte in range(256)}
    characters = {word: id_ for word, id_ in vocabulary.items() if len(word) == 1}
    absent = [chr(int(byte)) for byte, id_ in bytes_.items() if id_ is None]
    odd = (
        any(type(id_) is not int or not 0 <= id_ <= LARGEST for id_ in vocabulary.values()),
        any(not token or vocabulary.get(token) != id_ or type(id_) is not int for token, id_ in added.items()),
        len(added) != len(described["added_tokens"]) or not added,
        any(character > "\x7f" or character not in characters for character in absent),
    )
    if any(odd):
        return None
    known = {byte: id_ for byte, id_ in bytes_.items() if id_ is not None}
    return _sorted(Words(characters, known, added, len(vocabulary)), _merges(vocabulary, described["model"]["merges"]))


def _merges(vocabulary: dict[str, int], merges: list[Any]) -> Iterator[int]:
    """Left, right and made of each merge, in order."""
    for merge in merges:
        left, right = merge.split(SPACE) if isinstance(merge, str) else merge
        yield vocabulary[left]
        yield vocabulary[right]
        yield vocabulary[left + right]


def _sorted(words: Words, merges: Iterator[int]) -> BytePairs:
    table = np.fromiter(merges, np.uint64).reshape(-1, 3)
    pairs = table[:, 0] << np.uint64(32) | table[:, 1]
    latest = np.unique(pairs[::-1], return_index=True)  # of a pair that comes twice the last one counts
    ranks = len(pairs) - 1 - latest[1]
    return BytePairs(words, latest[0], ranks.astype(np.uint32), table[ranks, 2].astype(np.uint32))
