"""Our tokens are those of transformers' Gemma tokenizer, and unusable prompts are refused at once."""

import json
import random

import pytest
from sana_runtime.byte_pairs import BytePairs
from sana_runtime.errors import BundleError, UsageError
from sana_runtime.prompt import clean
from sana_runtime.tokenizer import MAX_PROMPT_BYTES, Tokenizer, refuse_unusable
from sana_runtime.tokenizer_library import LibraryTokenizer
from transformers import AutoTokenizer

MARKERS = ("<eos>", "<bos>", "<pad>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<mask>", "<0x0A>", "<unused7>")
WORDS = ("a cat", "A Red Circle", "don't", "User Prompt: ", "3.14", "https://x.org/?a=1&b=2", "#hash", "@you", "...")
SPACES = (" ", "  ", "\n", "\n\n", "\t", "\r\n", "\\n", "▁", "▁▁a", "\u200b", "\u00a0", "\u3000", "\ufeff")
CONTROLS = ("\x00", "\x07", "\x1b[31m", "\x7f", "\ue000", "\U0010ffff")
SCRIPTS = ("红色的猫", "赤い丸", "붉은 원", "красный круг", "دائرة حمراء", "עיגול אדום", "लाल वृत्त", "วงกลม")
LETTERS = ("é", "e\u0301", "ﬁ", "ß", "İ", "\U0001d518")
EMOJI = ("🙂", "👩\u200d👩\u200d👧", "🇩🇪", "❤️")
PIECES = MARKERS + WORDS + SPACES + CONTROLS + SCRIPTS + LETTERS + EMOJI


def generated_prompts(count: int) -> list[str]:
    """Prompts of known pieces between runs of arbitrary characters, surrogates left out."""
    draw = random.Random(2024)

    def anything() -> str:
        top = draw.choice((0x80, 0x500, 0x3000, 0xD800, 0x1F900))
        return "".join(chr(draw.randrange(top)) for _ in range(draw.randrange(6)))

    def prompt() -> str:
        parts = draw.choices(PIECES, k=draw.randrange(9))
        text = draw.choice(("", " ")).join(part + anything() for part in parts)
        return "".join(
            character for character in text if not 0xD800 <= ord(character) < 0xE000 or character == "\ue000"
        )

    return [prompt() for _ in range(count)]


def words_of(vocabulary: list[str], count: int) -> list[str]:
    """Prompts of any words, added tokens among them."""
    draw = random.Random(1)
    return [draw.choice(("", " ")).join(draw.choices(vocabulary, k=draw.randrange(9))) for _ in range(count)]


def assert_parity(folder, engine):
    ours, theirs = Tokenizer(folder / "tokenizer.json"), AutoTokenizer.from_pretrained(folder)
    assert isinstance(ours._engine, engine)
    added, words = sorted(theirs.get_added_vocab()), sorted(theirs.get_vocab())
    prompts = generated_prompts(10_000) + words_of(words, 3000) + words_of(added + words[: len(added)], 3000)
    expected = theirs(prompts)["input_ids"]
    actual = [ours.encode(prompt) for prompt in prompts]
    assert [prompt for prompt, a, b in zip(prompts, actual, expected, strict=True) if a != b] == []


def test_tokens_of_a_small_tokenizer_are_those_of_transformers(tiny_tokenizer):
    assert_parity(tiny_tokenizer, LibraryTokenizer)


def test_tokens_of_gemma_s_tokenizer_are_those_of_transformers(gemma_tokenizer):
    assert_parity(gemma_tokenizer, BytePairs)


def test_special_ids_are_read_from_the_file(tiny_tokenizer):
    tokenizer = Tokenizer(tiny_tokenizer / "tokenizer.json")
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (0, 1, 2)
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(tiny_tokenizer))


def test_truncation_and_padding_kept_in_the_file_are_ignored(tiny_tokenizer, tmp_path):
    content = json.loads((tiny_tokenizer / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 512},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    text = "a cat on the mat, a red circle"
    plain = Tokenizer(tiny_tokenizer / "tokenizer.json").encode(text)
    assert Tokenizer(tmp_path / "tokenizer.json").encode(text) == plain


@pytest.mark.parametrize("prompt", ["a" * (MAX_PROMPT_BYTES + 1), "猫" * (MAX_PROMPT_BYTES // 3 + 1), "x" * 50_000_000])
def test_a_prompt_that_is_too_long_is_refused(tiny_tokenizer, prompt):
    with pytest.raises(UsageError, match="8192 bytes"):
        Tokenizer(tiny_tokenizer / "tokenizer.json").encode(prompt)


class Unread(str):
    """A prompt that nobody may look into."""

    def encode(self, *_: object) -> bytes:
        raise AssertionError("the whole prompt was read")

    lower = strip = encode


@pytest.mark.parametrize("refuse", [clean, refuse_unusable])
def test_a_huge_prompt_is_refused_by_its_length_alone(refuse):
    with pytest.raises(UsageError):
        refuse(Unread("a" * 10_000))


def test_the_longest_prompt_is_read_and_the_text_before_it_is_not_counted(tiny_tokenizer):
    tokenizer = Tokenizer(tiny_tokenizer / "tokenizer.json")
    assert len(tokenizer.encode("中" * (MAX_PROMPT_BYTES // 3), after="User Prompt: ")) > MAX_PROMPT_BYTES // 3


@pytest.mark.parametrize("prompt", ["\ud83d", "a \udc00 cat"])
def test_half_a_surrogate_pair_is_refused(tiny_tokenizer, prompt):
    with pytest.raises(UsageError, match="surrogate"):
        Tokenizer(tiny_tokenizer / "tokenizer.json").encode(prompt)


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"version": "1.0"}'])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path / "tokenizer.json")


def test_a_tokenizer_without_gemma_s_tokens_is_refused(tmp_path, tiny_tokenizer):
    text = (tiny_tokenizer / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace("<bos>", "[CLS]"))
    with pytest.raises(BundleError, match="no <bos> token"):
        Tokenizer(tmp_path / "tokenizer.json")
