"""The prompts that calibration paints: sets of captions, read from files or shipped, and what is wrong with them."""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import count, zip_longest
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from sana_runtime.captions import Caption, draw_caption
from sana_runtime.errors import UsageError
from sana_runtime.prompt import PromptRules, clean
from sana_runtime.tokenizer import MAX_PROMPT_BYTES, Tokenizer

__all__ = ["PromptSet", "cut_off", "default_prompts", "hold_out", "read_prompts"]

TEMPERATURE = 0.1  # of the draw among an item's captions, as Sana was trained

Item = tuple[Caption, ...]  # captions of one and the same picture
Row = tuple[int, Item]  # with the line it stands on


@dataclass(frozen=True)
class PromptSet:
    """Pictures to paint, each told by one or more captions; `findings` says what was left out, and why."""

    items: tuple[Item, ...]
    findings: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The same for the same captions and scores in the same order, whatever file they came from."""
        content = [[asdict(caption) for caption in item] for item in self.items]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def draw(self, samples: int, seed: int = 0, temperature: float = TEMPERATURE) -> tuple[str, ...]:
        """That many prompts: every item once, in a random order, before any comes again."""
        if samples < 1:
            raise UsageError(f"samples {samples}: give a number of prompts from 1 up")
        rng = np.random.default_rng(seed)
        rounds = (rng.permutation(len(self.items)) for _ in count())
        order = (int(index) for indices in rounds for index in indices)
        return tuple(draw_caption(self.items[next(order)], temperature, rng) for _ in range(samples))


def default_prompts() -> PromptSet:
    """The set that is shipped: people, animals, places, food, things, writing, counting, and styles of drawing."""
    text = files("sana_calibration").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    return _checked("the shipped prompts", _rows_of_jsonl("the shipped prompts", text))


def read_prompts(file: Path) -> PromptSet:
    """The set in a .txt, .jsonl or .csv file.

    txt: one prompt a line. jsonl: a string, or an object with `captions` and, if wanted, as many `scores`. csv: with
    a header; columns called caption… hold captions and columns called score… their scores.
    """
    if file.suffix not in READERS:
        raise UsageError(f"{file}: prompts are read from {', '.join(READERS)} files; rename or convert it")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as UTF-8 text ({error}); check the file") from error
    return _checked(str(file), READERS[file.suffix](str(file), text))


def hold_out(prompts: PromptSet, others: PromptSet, held: int, seed: int = 0) -> tuple[PromptSet, PromptSet]:
    """What to calibrate on, and what to judge by: `held` items of the set itself, or `others` where it has too few."""
    if len(prompts.items) >= 2 * held:
        order = np.random.default_rng(seed).permutation(len(prompts.items)).tolist()
        kept, judged = (tuple(prompts.items[i] for i in sorted(part)) for part in (order[held:], order[:held]))
        return PromptSet(kept, prompts.findings), PromptSet(judged)
    seen = {clean(caption.text) for item in prompts.items for caption in item}
    unseen = tuple(item for item in others.items if not any(clean(caption.text) in seen for caption in item))
    return prompts, PromptSet(unseen)


def cut_off(prompts: Sequence[str], tokenizer: Tokenizer, rules: PromptRules) -> tuple[str, ...]:
    """One finding for each prompt of which the model does not see the end."""
    return tuple(
        f"{_shown(prompt)}: the model reads {rules.max_tokens} tokens, {over} more are cut off"
        for prompt in prompts
        if (over := _tokens(prompt, tokenizer, rules) - rules.start - rules.max_tokens + 1) > 0
    )


def _tokens(prompt: str, tokenizer: Tokenizer, rules: PromptRules) -> int:
    return len(tokenizer.encode(clean(prompt), after=rules.instruction))


def _checked(name: str, rows: Iterator[Row]) -> PromptSet:
    """Drop captions that are empty, too long or there twice, and say so."""
    seen: set[str] = set()
    items: list[Item] = []
    findings: list[str] = []
    for line, item in rows:
        kept = []
        for caption in item:
            why = _objection(caption.text, seen)
            if why:
                findings.append(f"{name}, line {line}: {why}; left out")
            else:
                kept.append(caption)
                seen.add(clean(caption.text))
        if kept:
            items.append(tuple(kept))
    if not items:
        raise UsageError(f"{name}: there is no prompt in it; give at least one")
    return PromptSet(tuple(items), tuple(findings))


def _objection(text: str, seen: set[str]) -> str:
    """Why a caption is left out; empty when it is not."""
    if len(text.encode("utf-8", "replace")) > MAX_PROMPT_BYTES:
        return f"{_shown(text)} is longer than the {MAX_PROMPT_BYTES} bytes that are read"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "the prompt holds half of a surrogate pair, which is not Unicode text"
    if not text.strip():
        return "the prompt is empty"
    return f"{_shown(text)} is there already" if clean(text) in seen else ""


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _rows_of_text(name: str, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.splitlines(), 1):
        yield line, (Caption(content.strip(), 1.0),)


def _rows_of_jsonl(name: str, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.splitlines(), 1):
        where = f"{name}, line {line}"
        try:
            entry = json.loads(content) if content.strip() else ""
        except ValueError as error:
            raise UsageError(f"{where}: is not JSON ({error}); write one string or object a line") from error
        yield line, _item(where, entry)


def _item(where: str, entry: Any) -> Item:
    """A line of a .jsonl file."""
    if isinstance(entry, str):
        return (Caption(entry, 1.0),)
    if not isinstance(entry, dict) or not set(entry) <= {"captions", "scores"} or not entry.get("captions"):
        raise UsageError(f"{where}: write a string, or an object with captions and, if wanted, scores")
    captions = entry["captions"]
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise UsageError(f"{where}: captions must be a list of strings")
    return _scored(where, captions, entry.get("scores") or [])


def _rows_of_csv(name: str, text: str) -> Iterator[Row]:
    reader = csv.DictReader(text.splitlines(), restval="")
    captions, scores = (
        [field for field in reader.fieldnames or () if field and field.strip().lower().startswith(kind)]
        for kind in ("caption", "score")
    )
    if not captions:
        raise UsageError(f"{name}: has no column called caption; name the columns in the first line")
    for row in reader:
        where = f"{name}, line {reader.line_num}"
        given = [(row[field], row[score] if score else "") for field, score in zip_longest(captions, scores) if field]
        told = [(caption, score) for caption, score in given if caption.strip()] or [("", "")]
        yield reader.line_num, _scored(where, [each[0] for each in told], [each[1] for each in told if each[1]])


def _scored(where: str, captions: Sequence[str], scores: Sequence[Any]) -> Item:
    """Captions with their scores, or with one and the same."""
    if not scores:
        return tuple(Caption(caption, 1.0) for caption in captions)
    if len(scores) != len(captions):
        raise UsageError(f"{where}: has {len(captions)} captions and {len(scores)} scores; give each caption one")
    try:
        numbers = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: a score is not a number ({error})") from error
    if not all(map(isfinite, numbers)):
        raise UsageError(f"{where}: scores must be finite numbers")
    return tuple(map(Caption, captions, numbers))


READERS: dict[str, Callable[[str, str], Iterator[Row]]] = {
    ".txt": _rows_of_text,
    ".jsonl": _rows_of_jsonl,
    ".csv": _rows_of_csv,
}
