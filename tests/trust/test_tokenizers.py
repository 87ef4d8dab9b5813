"""Tokenizers made to stall, kill or surprise whoever reads a prompt with them, and prompts that are too long."""

import json
import shutil
import time

import pytest
from sana_runtime.errors import BundleError, UsageError
from sana_runtime.prompt import PromptRules
from sana_runtime.tokenizer import Tokenizer


def split(pattern):
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps):
    return {"type": "Sequence", "normalizers": steps}


CHANGES = {
    "a pattern that backtracks until the library panics": {"pre_tokenizer": split({"Regex": "(a+)+$"})},
    "the same inside a sequence": {"normalizer": sequence(replace({"Regex": "(a|a|ab)*$"}, "b"))},
    "a table in a format of its own": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}},
    "steps that each double the text": {"normalizer": sequence(*[replace({"String": "a"}, "aa")] * 15)},
    "one such step inside of others": {"normalizer": sequence(sequence(replace({"String": "ab"}, "abb")))},
    "letters put between all others": {"normalizer": replace({"String": ""}, "xx")},
    "a thousand passes over a prompt": {"normalizer": sequence(*[replace({"String": "a"}, "b")] * 1000)},
    "the same in the second place": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split({"String": "a"})] * 17}
    },
    "merges left out by chance": {"model": {"dropout": 0.5}},
    "pieces shorter than their prefix": {"model": {"continuing_subword_prefix": "\u2581\u2581\u2581\u2581"}},
}


@pytest.fixture
def tokenizer_with(tiny_tokenizer, tmp_path):
    """A function that writes a tokenizer with other entries, and reads it."""

    def written(changes):
        content = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
        for key, value in changes.items():
            content[key] = {**content[key], **value} if key == "model" else value
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        return Tokenizer(tmp_path / "tokenizer.json")

    return written


@pytest.mark.parametrize("reason", CHANGES)
def test_a_tokenizer_is_refused_for(reason, tokenizer_with):
    with pytest.raises(BundleError) as caught:
        tokenizer_with(CHANGES[reason])
    assert "\n" not in str(caught.value)


def test_steps_that_shorten_or_exchange_are_let_pass(tokenizer_with):
    steps = sequence(replace({"String": " "}, "\u2581"), replace({"String": "\u2581\u2581"}, "\u2581"))
    assert tokenizer_with({"normalizer": steps}).encode("a  cat") == tokenizer_with({}).encode("a cat")


def test_a_prompt_that_the_library_fails_at_is_refused_in_one_line(tokenizer_with):
    """What it raises is bare Exception: `except SanaError` of a server or an app does not see it."""
    tokenizer = tokenizer_with({"model": {"unk_token": "<absent>", "byte_fallback": False}})
    with pytest.raises(BundleError, match="fails at this prompt") as caught:
        tokenizer.encode("\u0436")
    assert "\n" not in str(caught.value)


def test_a_prompt_of_megabytes_is_refused_before_it_is_tokenised(tiny_tokenizer, figure):
    tokenizer = Tokenizer(shutil.copy(tiny_tokenizer / "tokenizer.json", tiny_tokenizer / "copy.json"))
    rules = PromptRules.derive(tokenizer)
    prompt, fastest = "a" * 10_000_000, 1.0
    for _ in range(20):
        start = time.perf_counter()
        with pytest.raises(UsageError, match="10000000 characters"):
            rules.instruct(tokenizer, prompt)
        fastest = min(fastest, time.perf_counter() - start)
    figure(19, f"a prompt of 10 MB is refused in {1e6 * fastest:.0f} us, before any tokenising")
