"""The tokenizer that nano is trained with: Gemma's kind, small, and made for captions and the instruction."""

import numpy as np
import pytest
from sana_reference.nano.captions import captions
from sana_reference.nano.scenes import random_scene
from sana_reference.nano.texts import Texts
from sana_reference.nano.tokenizer import VOCABULARY, train_tokenizer, write_tokenizer
from sana_runtime.prompt import INSTRUCTION, PromptRules
from sana_runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def told():
    rng = np.random.default_rng(0)
    return [captions(random_scene(rng), rng) for _ in range(400)]


@pytest.fixture(scope="module")
def folder(told, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_tokenizer(caption.text for each in told for caption in each), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer(folder / "tokenizer.json")


def test_special_tokens_have_gemmas_ids(tokenizer):
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (0, 1, 2)
    assert len(tokenizer) <= VOCABULARY


def test_transformers_loads_it_as_a_gemma_tokenizer_with_the_same_ids(folder, tokenizer, told):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert "Gemma" in type(theirs).__name__
    for text in [each[0].text for each in told[:50]] + [INSTRUCTION, "ein roter Würfel 🙂\n\t中"]:
        assert theirs(text).input_ids == tokenizer.encode(text)


def test_whatever_is_written_survives_the_round_trip(folder):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = "a purple ring; ein Würfel, 🙂 中"
    assert theirs.decode(theirs(text, add_special_tokens=False).input_ids) == text


def test_words_of_captions_are_single_tokens(tokenizer, told):
    for each in told:
        words = each[0].text.replace(",", " ,").split()
        assert len(tokenizer.encode(each[0].text)) <= len(words) + 2


def test_the_instruction_is_a_token_a_word(tokenizer):
    rules = PromptRules.derive(tokenizer)
    assert len(rules.prefix) < 230
    assert rules.instruct(tokenizer, "a red circle").instructed


def test_training_feeds_what_the_prompt_rules_say(tokenizer, told):
    rules = PromptRules.derive(tokenizer)
    texts = Texts.of(told, tokenizer, rules, temperature=1e-3)  # so cold that the best caption is always drawn
    batch = texts.draw(np.arange(20), 0.0, np.random.default_rng(0))
    for row, each in enumerate(told[:20]):
        best = max(each, key=lambda caption: caption.score).text
        assert tuple(batch.input_ids[row][batch.text_mask[row]].tolist()) == rules.instruct(tokenizer, best).ids
    assert batch.row_mask[:, 0].all()
    assert (batch.row_mask[:, 1:].sum(1) == batch.text_mask.sum(1) - texts.hidden).all()


def test_a_dropped_caption_is_the_empty_prompt_without_instruction(tokenizer, told):
    texts = Texts.of(told, tokenizer, PromptRules.derive(tokenizer), temperature=0.5)
    batch = texts.draw(np.arange(50), 1.0, np.random.default_rng(0))
    assert not batch.instructed.any()
    assert not batch.text_mask.any()
    assert batch.row_mask.sum(1).tolist() == [1] * 50


def test_captions_are_drawn_by_score_and_dropped_by_share(tokenizer, told):
    texts = Texts.of(told, tokenizer, PromptRules.derive(tokenizer), temperature=0.5)
    batch = texts.draw(np.zeros(3000, np.int64), 0.1, np.random.default_rng(0))
    assert abs(float((~batch.instructed).float().mean()) - 0.1) < 0.02
    scores = np.exp(np.array([caption.score for caption in told[0]]) / 0.5)
    np.testing.assert_allclose(np.diff(texts.until[0], prepend=0), scores / scores.sum(), rtol=1e-9)


def test_kept_texts_are_read_back_the_same(tokenizer, told, tmp_path):
    texts = Texts.of(told[:30], tokenizer, PromptRules.derive(tokenizer), temperature=0.5)
    texts.keep(tmp_path / "texts.npz")
    batches = [
        each.draw(np.arange(30), 0.1, np.random.default_rng(1)) for each in (texts, Texts.read(tmp_path / "texts.npz"))
    ]
    for first, second in zip(*map(vars, batches), strict=True):
        assert (vars(batches[0])[first] == vars(batches[1])[second]).all()
