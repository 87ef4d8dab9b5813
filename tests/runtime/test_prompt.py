"""Prompts become the tokens that Sana's own pipeline would show its transformer, each computed once."""

import inspect
import json
from hashlib import sha256

import numpy as np
import pytest
from sana_runtime.conditioning import Condition, side_by_side
from sana_runtime.errors import BundleError, UsageError
from sana_runtime.prompt import INSTRUCTION, PromptRules, PromptTokens, batch, clean
from sana_runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tiny(tiny_tokenizer):
    return Tokenizer(tiny_tokenizer / "tokenizer.json")


@pytest.fixture(scope="module")
def merging(merging_tokenizer):
    return Tokenizer(merging_tokenizer / "tokenizer.json")


def shown(prompt: PromptTokens) -> tuple[int, ...]:
    """The tokens whose states the transformer attends to, BOS apart."""
    return prompt.ids[prompt.hidden :]


def test_the_instruction_is_the_one_diffusers_uses():
    from diffusers import SanaPipeline

    default = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    assert "\n".join(default) == INSTRUCTION
    assert sha256(INSTRUCTION.encode()).hexdigest().startswith("48290080bb4fd4a264bdc81d0647ac02")


def test_with_gemma_s_tokenizer_the_prefix_is_207_of_208_tokens(gemma_tokenizer):
    tokenizer = Tokenizer(gemma_tokenizer / "tokenizer.json")
    rules = PromptRules.derive(tokenizer)
    assert len(tokenizer.encode("", after=INSTRUCTION)) == 208
    assert (len(rules.prefix), rules.start) == (207, 207)
    for first in map(chr, (*range(0x21, 0x17F), *range(0x4E00, 0x4F00), *range(0x1F300, 0x1F400))):
        assert rules.instruct(tokenizer, f"{first} cat").instructed, first


@pytest.mark.parametrize(
    ("raw", "cleaned"), [("  A Cat\n", "a cat"), ("\u3000Ünï \x1f", "ünï"), ("İ", "i̇"), ("\n", "")]
)
def test_prompts_are_lower_case_without_surrounding_space(raw, cleaned):
    assert clean(raw) == cleaned


def test_a_long_prompt_is_refused_before_it_is_cleaned():
    with pytest.raises(UsageError, match="shorten it"):
        clean(" " * 9000)


def test_only_the_prompt_s_own_tokens_are_computed(tiny):
    rules = PromptRules.derive(tiny)
    prompt = rules.instruct(tiny, "A cat")
    assert prompt == PromptTokens(tuple(tiny.encode(INSTRUCTION + "a cat")[rules.start :]), instructed=True)
    assert len(prompt.ids) == 2


def test_an_empty_prompt_shows_the_instruction_s_last_token(tiny):
    rules = PromptRules.derive(tiny)
    assert rules.instruct(tiny, " ").ids == tuple(tiny.encode(INSTRUCTION)[-1:])


def test_a_negative_prompt_has_no_instruction(tiny):
    prompt = PromptRules.derive(tiny).plain(tiny, "Blurry")
    assert prompt == PromptTokens(tuple(tiny.encode("blurry")[1:]), instructed=False)


def test_at_most_300_rows_are_shown_bos_included(tiny):
    rules, long = PromptRules.derive(tiny), "cat " * 500
    assert len(shown(rules.instruct(tiny, long))) == len(shown(rules.plain(tiny, long))) == 299
    short = PromptRules(rules.instruction, rules.prefix, rules.start, max_tokens=8)
    assert shown(short.instruct(tiny, long)) == shown(rules.instruct(tiny, long))[:7]


@pytest.mark.parametrize("prompt", ["", "a", "a cat", "red", "red circle " * 200, "blue", "红色", "!"])
def test_a_prompt_that_merges_into_the_instruction_shows_the_same_tokens(merging, prompt):
    rules = PromptRules.derive(merging)
    everything = merging.encode(INSTRUCTION + prompt.strip())[: rules.start + 299]
    tokens = rules.instruct(merging, prompt)
    assert shown(tokens) == tuple(everything[rules.start :])
    assert (*(rules.prefix if tokens.instructed else (merging.bos,)), *tokens.ids) == tuple(everything)


def test_the_prefix_stops_where_probing_prompts_change_it(merging):
    rules = PromptRules.derive(merging)
    assert len(rules.prefix) == rules.start - 1
    assert rules.instruct(merging, "a cat") == PromptTokens(rules.instruct(merging, "a cat").ids, True, hidden=1)


def test_a_prompt_that_changes_the_prefix_is_computed_whole(merging):
    rules = PromptRules.derive(merging)
    tokens = rules.instruct(merging, "red circle")
    assert not tokens.instructed
    assert tokens.hidden == rules.start - 1


def test_without_an_instruction_only_bos_is_known(tiny):
    rules = PromptRules.derive(tiny, instruction="")
    assert (rules.prefix, rules.start) == ((tiny.bos,), 1)
    assert rules.instruct(tiny, "a cat").ids == rules.plain(tiny, "a cat").ids
    assert len(rules.instruct(tiny, "cat " * 500).ids) == 299


def test_a_batch_is_padded_to_its_longest_prompt():
    inputs = batch([PromptTokens((5, 6, 7), True, hidden=1), PromptTokens((8,), False), PromptTokens((), False)])
    np.testing.assert_array_equal(inputs.input_ids, [[5, 6, 7], [8, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(inputs.text_mask, [[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(inputs.row_mask, [[1, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(inputs.instructed, [True, False, False])
    assert inputs.input_ids.dtype == np.int64
    assert inputs.text_mask.dtype == inputs.row_mask.dtype == inputs.instructed.dtype == np.bool_


def test_a_batch_of_nothing_but_an_empty_negative_prompt_has_one_padded_token():
    assert batch([PromptTokens((), False)]).input_ids.shape == (1, 1)


def test_rules_survive_prompt_json(tiny):
    rules = PromptRules.derive(tiny)
    assert PromptRules.from_json(rules.to_json()) == rules
    assert PromptRules.from_json(rules.to_json()).to_json() == rules.to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"prefix": []},
        {"prefix": [2, "3"]},
        {"prefix": [2, -1]},
        {"start": 0},
        {"start": True},
        {"max_tokens": 0},
        {"max_tokens": 3.5},
        {"instruction": None},
        {"extra": 1},
    ],
)
def test_a_spoilt_prompt_json_is_refused(change):
    good = {"instruction": "x", "prefix": [2, 7], "start": 2, "max_tokens": 300}
    assert PromptRules.from_json(json.dumps(good)).prefix == (2, 7)
    with pytest.raises(BundleError, match=r"prompt\.json"):
        PromptRules.from_json(json.dumps(good | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_prompt_json_that_is_not_an_object_is_refused(text):
    with pytest.raises(BundleError, match=r"prompt\.json"):
        PromptRules.from_json(text)


@pytest.mark.parametrize("lengths", [(2, 26), (16,), (33, 7, 1)])
def test_prompts_side_by_side_keep_their_rows_and_are_masked_up_to_a_multiple_of_sixteen(lengths):
    generator = np.random.default_rng(sum(lengths))
    conditions = [Condition(generator.standard_normal((2, 2, 1, length, 8), np.float32)) for length in lengths]
    text_kv, mask = side_by_side(conditions)
    assert text_kv.shape[3] == mask.shape[1] == -(-max(lengths) // 16) * 16
    assert mask.sum(axis=1).tolist() == list(lengths)
    for index, condition in enumerate(conditions):
        np.testing.assert_array_equal(text_kv[:, :, index][:, :, mask[index]], condition.text_kv[:, :, 0])
        assert not text_kv[:, :, index][:, :, ~mask[index]].any()
