"""Our byte pairs give the library's ids, also read back, and only tokenizers of Gemma's kind are read as such.

That they give those of Gemma's own tokenizer is in test_tokenizer.py.
"""

import json
import os
import random

import numpy as np
import pytest
from sana_runtime import tokenizer as tokenizer_module
from sana_runtime.byte_pairs import BytePairs, byte_pairs
from sana_runtime.compiled_models import SWITCH, CompiledModels
from sana_runtime.tokenizer import Tokenizer
from sana_runtime.tokenizer_library import LibraryTokenizer

ODD = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    "\t",
    "\r",
    "\x00",
    "\x7f",
    "▁",
    "▁▁",
    "é",
    "e\u0301",
    "\u200d",
    "👩\u200d👧",
    "<0x09>",
    "<0x",
)


def of_gemma_s_kind(folder):
    """What the folder's tokenizer.json says, its added tokens as literal as Gemma's."""
    content = json.loads((folder / "tokenizer.json").read_text())
    for each in content["added_tokens"]:
        each["normalized"] = False
    return content


@pytest.fixture
def small(tiny_tokenizer, tmp_path):
    """A small tokenizer.json of Gemma's kind."""
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(of_gemma_s_kind(tiny_tokenizer)))
    return file


def texts(words, count):
    """Words, added tokens, odd pieces and any characters but surrogates, with and without spaces between them."""
    draw = random.Random(11)
    characters = (lambda: chr(draw.randrange(0xD800)), lambda: chr(draw.randrange(0xE000, 0x110000)))
    pieces = (lambda: draw.choice(words), lambda: draw.choice(words), lambda: draw.choice(ODD), *characters)
    return [draw.choice(("", " ")).join(draw.choice(pieces)() for _ in range(draw.randrange(12))) for _ in range(count)]


def assert_same_ids(file, count):
    ours, library = byte_pairs(file.read_bytes()), LibraryTokenizer(file)
    words = list(json.loads(file.read_bytes())["model"]["vocab"])
    again = BytePairs.unpack(np.frombuffer(ours.pack(), np.uint8))
    wrong = [text for text in ["", *texts(words, count)] if not ours.ids(text) == again.ids(text) == library.ids(text)]
    assert wrong == []
    assert again.count == library.count
    assert [again.id_of(token) for token in ("<bos>", "a")] == [library.id_of("<bos>"), None]


@pytest.mark.parametrize("form", ["pairs", "text", "repeated", "split at spaces"])
def test_ids_of_a_small_tokenizer_are_the_library_s(small, form):
    content = json.loads(small.read_text())
    model = content["model"]
    if form == "text":
        model["merges"] = [" ".join(merge) for merge in model["merges"]]
    if form == "repeated":  # the first of them come last now
        model["merges"] += model["merges"][:20]
    if form == "split at spaces":
        pattern = {"String": " "}
        content["pre_tokenizer"] = {
            "type": "Split",
            "pattern": pattern,
            "behavior": "MergedWithPrevious",
            "invert": False,
        }
    small.write_text(json.dumps(content))
    assert_same_ids(small, 1000)


def changed(content, path, value):
    *way, last = path
    for step in way:
        content = content[step]
    content[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), "2.0"),
        (("normalizer",), None),
        (("normalizer", "content"), "_"),
        (("pre_tokenizer",), {"type": "ByteLevel", "add_prefix_space": True}),
        (("post_processor", "single"), [{"Sequence": {"id": "A", "type_id": 0}}] * 2),
        (("model", "type"), "Unigram"),
        (("model", "dropout"), 0.5),
        (("model", "dropout"), False),
        (("model", "byte_fallback"), False),
        (("model", "ignore_merges"), True),
        (("model", "end_of_word_suffix"), "</w>"),
        (("model", "new_option"), True),
        (("model", "vocab", "<0x41>"), -1),
        (("model", "vocab", "<bos>"), 7.5),
        (("model", "merges"), [["no", "word of it"]]),
        (("model", "merges"), [["a", "b", "c"]]),
        (("added_tokens", 0, "lstrip"), True),
        (("added_tokens", 0, "normalized"), True),
        (("added_tokens", 0, "id"), 77),
        (("added_tokens", 0, "content"), ""),
    ],
)
def test_a_tokenizer_of_any_other_kind_is_left_to_the_library(small, path, value):
    content = json.loads(small.read_text())
    assert byte_pairs(json.dumps(content).encode()) is not None
    changed(content, path, value)
    assert byte_pairs(json.dumps(content).encode()) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"model": 3}'])
def test_what_is_no_tokenizer_is_left_to_the_library(content):
    assert byte_pairs(content) is None


def test_a_byte_that_has_no_word_may_be_missing_where_its_character_has_one(small):
    content = json.loads(small.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["\t"] = vocabulary.pop("<0x09>")
    small.write_text(json.dumps(content))
    assert_same_ids(small, 300)
    vocabulary["tab"] = vocabulary.pop("\t")
    assert byte_pairs(json.dumps(content).encode()) is None


def test_what_was_read_is_kept_and_read_back_until_the_file_is_another(small, tmp_path, monkeypatch):
    monkeypatch.delenv(SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(tokenizer_module, "WORTH_KEEPING", 0.0)
    read = []
    monkeypatch.setattr(tokenizer_module, "byte_pairs", lambda content: read.append(1) or byte_pairs(content))
    prompt = "a red circle\n<eos> 🙂"
    first, again = Tokenizer(small), Tokenizer(small)
    assert len(read) == 1
    assert first.encode(prompt) == again.encode(prompt)
    assert (again.bos, again.eos, again.pad, len(again)) == (first.bos, first.eos, first.pad, len(first))
    (kept,) = CompiledModels().entries()
    assert kept.made_of["part"] == "tokenizer"
    os.utime(small)
    Tokenizer(small)
    assert len(read) == 2
    monkeypatch.setenv(SWITCH, "off")
    Tokenizer(small)
    assert len(read) == 3
