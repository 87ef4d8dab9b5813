"""Prompt sets are read whole or refused by line, and drawn from as Sana was trained."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sana_calibration.prompts import PromptSet, cut_off, default_prompts, read_prompts
from sana_runtime.captions import Caption
from sana_runtime.errors import UsageError
from sana_runtime.prompt import PromptRules
from sana_runtime.tokenizer import Tokenizer


@pytest.fixture
def write(tmp_path):
    """Writes a prompt file."""

    def file(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return file


def texts(prompts: PromptSet) -> list[list[str]]:
    return [[caption.text for caption in item] for item in prompts.items]


def test_the_shipped_set_is_varied_and_has_nothing_to_complain_of():
    prompts = default_prompts()
    assert len(prompts.items) >= 120
    assert prompts.findings == ()
    assert all(len(item) >= 3 for item in prompts.items)
    words = Counter(word for item in texts(prompts) for word in set(item[0].split()) - {"a", "an", "the", "of", "in"})
    assert len(words) > 150
    assert words.most_common(1)[0][1] <= 6


def test_the_three_kinds_of_file_say_the_same(write):
    rows = [("a cat", "a grey cat on a mat"), ("a dog, barking", "a dog that barks")]
    scores = [(0.5, 2.0), (1.0, 3.0)]
    lines = (json.dumps({"captions": row, "scores": score}) for row, score in zip(rows, scores, strict=True))
    jsonl = read_prompts(write("set.jsonl", "\n".join(lines)))
    table = 'caption,caption_2,score,score_2\na cat,a grey cat on a mat,.5,2\n"a dog, barking",a dog that barks,1,3\n'
    assert read_prompts(write("set.csv", table)) == jsonl
    assert read_prompts(write("set.csv", table)).sha256 == jsonl.sha256
    assert texts(read_prompts(write("set.txt", "a cat\na dog, barking\n"))) == [["a cat"], ["a dog, barking"]]


def test_what_is_empty_too_long_or_there_twice_is_left_out_and_named_by_its_line(write):
    long = "x" * 9000
    prompts = read_prompts(write("set.txt", f"a cat\n\n  A Cat \n{long}\na dog\n"))
    assert texts(prompts) == [["a cat"], ["a dog"]]
    assert [finding.split("set.txt, ")[1].split(":")[0] for finding in prompts.findings] == [
        "line 2",
        "line 3",
        "line 4",
    ]
    assert all(len(finding) < 300 for finding in prompts.findings)


def test_empty_lines_of_tables_and_json_are_findings_too(write):
    table = read_prompts(write("set.csv", "caption,note\na cat,x\n,y\na cat,z\n"))
    lines = read_prompts(write("set.jsonl", '"a cat"\n\n{"captions": ["a cat", "a dog"]}\n'))
    assert texts(table) == [["a cat"]]
    assert texts(lines) == [["a cat"], ["a dog"]]
    assert [len(table.findings), len(lines.findings)] == [2, 2]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("set.txt", "\n\n", "no prompt"),
        ("set.md", "a cat", r"read from \.txt"),
        ("set.jsonl", "{", "line 1: is not JSON"),
        ("set.jsonl", '"a cat"\n3', "line 2: write a string"),
        ("set.jsonl", '{"captions": "a cat"}', "must be a list"),
        ("set.jsonl", '{"captions": ["a", "b"], "scores": [1]}', "2 captions and 1 scores"),
        ("set.jsonl", '{"captions": ["a"], "scores": [NaN]}', "finite"),
        ("set.jsonl", '{"captions": ["a"], "scores": ["much"]}', "not a number"),
        ("set.csv", "prompt\na cat\n", "no column called caption"),
        ("set.csv", "caption,score\na cat,good\n", "line 2: a score is not a number"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_by_its_line(write, name, content, why):
    with pytest.raises(UsageError, match=why):
        read_prompts(write(name, content))


def test_bytes_that_are_not_text_and_files_that_are_not_there_are_refused(tmp_path):
    (tmp_path / "set.txt").write_bytes(b"\xff\xfe\xfa")
    for file in ("set.txt", "none.txt"):
        with pytest.raises(UsageError, match="cannot be read as UTF-8"):
            read_prompts(tmp_path / file)


def test_every_item_is_drawn_once_before_any_comes_again():
    prompts = PromptSet(tuple((Caption(str(i), 1.0),) for i in range(7)))
    drawn = prompts.draw(17, seed=3)
    assert all(sorted(drawn[start : start + 7]) == sorted(map(str, range(7))) for start in (0, 7))
    assert drawn == prompts.draw(17, seed=3) != prompts.draw(17, seed=4)
    assert prompts.draw(1) == prompts.draw(5)[:1]
    with pytest.raises(UsageError, match="samples 0"):
        prompts.draw(0)


def test_captions_are_drawn_in_proportion_to_the_exponential_of_their_score():
    scores = np.array([0.0, 0.1, 0.3])
    prompts = PromptSet((tuple(Caption(str(i), score) for i, score in enumerate(scores)),))
    counted = Counter(prompts.draw(20000, temperature=0.2))
    expected = np.exp(scores / 0.2) / np.exp(scores / 0.2).sum()
    np.testing.assert_allclose([counted[str(i)] / 20000 for i in range(3)], expected, atol=0.012)


def test_prompts_whose_end_the_model_does_not_see_are_named(tiny_tokenizer):
    tokenizer = Tokenizer(tiny_tokenizer / "tokenizer.json")
    rules = PromptRules.derive(tokenizer)
    room = rules.max_tokens - 1
    fits, over = (" ".join(["zq"] * n) for n in (5, room))
    assert cut_off([fits], tokenizer, rules) == ()
    (finding,) = cut_off([fits, over], tokenizer, rules)
    hidden = len(tokenizer.encode(over, after=rules.instruction)) - rules.start - room
    assert f"{hidden} more are cut off" in finding
    assert len(rules.instruct(tokenizer, over).ids) - rules.instruct(tokenizer, over).hidden == room
