"""Train nano's tokenizer: Gemma's kind and special tokens, a vocabulary of captions and of the instruction."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from sana_runtime.prompt import INSTRUCTION
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

__all__ = ["VOCABULARY", "train_tokenizer", "write_tokenizer"]

VOCABULARY = 1024
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")  # Gemma's ids 0 to 4
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;!?'\"()-&>▁\n"]


def train_tokenizer(captions: Iterable[str]) -> Tokenizer:
    """Byte-pair merges learned from captions, and from the instruction often enough to make its words whole."""
    words = Tokenizer(BPE())
    words.normalizer = normalizers.Replace(" ", "▁")
    words.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no merge reaches over a space
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(BYTES), initial_alphabet=LETTERS, show_progress=False
    )
    words.train_from_iterator(_corpus(captions), trainer)
    learned = json.loads(words.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocabulary = {piece: index for index, piece in enumerate((*SPECIAL, *BYTES, *pieces))}
    return _like_gemma(vocabulary, [(first, second) for first, second in learned["merges"]])


def _corpus(captions: Iterable[str]) -> Iterator[str]:
    yield from captions
    for _ in range(200):
        yield INSTRUCTION
        yield INSTRUCTION.lower()


def _like_gemma(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """The parts that Gemma's tokenizer.json has, around another vocabulary."""
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the two files that transformers' GemmaTokenizer loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000,
        "padding_side": "left",
        **{f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
