"""What many tests share: Gemma's real tokenizer where there is one, and small ones of the same kind."""

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from sana_runtime.prompt import INSTRUCTION
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Triton asks once, when it is first imported, and diffusers imports it: without a GPU its kernels run interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

os.environ["SANA_EXPORT_COMPILED"] = "off"  # nothing is kept in the user's own folders; what tests it turns it on

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # several tests load onnxruntime by themselves

LOCAL = ("localhost", "127.", "::1", "0.0.0.0", "::")


def _stay_here(event: str, arguments: tuple[Any, ...]) -> None:
    """Let a test fail that asks for another machine; Python tells of every such call before it is made."""
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        place = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        host = place[0] if isinstance(place, tuple) else place if event.startswith("socket.get") else None
        name = host.decode() if isinstance(host, bytes) else host
        if name and not str(name).startswith(LOCAL):
            raise RuntimeError(f"a test asked for {name!r}; tests do without the network")


sys.addaudithook(_stay_here)

LONGEST = (
    "export/test_build.py",  # its bundle is what most of the others open
    "export/test_engines.py",  # this and the next one need no bundle, so nobody waits for the first
    "export/test_agreement.py",
    "export/test_chain.py",
    "export/test_plan.py",
    "export/test_half_everywhere.py",
    "export/test_engine_fused.py",
    "export/test_side_by_side.py",
    "plugins/test_compilation.py",
    "plugins/test_tensorrt_launches.py",
    "export/test_tables.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long first, then those of many tests: a worker that ends early takes the next file."""
    sizes = Counter(item.path for item in items)
    places = {(Path(__file__).parent / name).resolve(strict=True): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (places.get(item.path, len(places)), -sizes[item.path]))


SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3, as Gemma has them
MARKERS = ("<mask>", "<start_of_turn>", "<end_of_turn>")
LINES = (INSTRUCTION, "a cat on the mat, a red circle above two red squares; ein grünes Haus, 一只红色的猫")
Merges = tuple[tuple[str, str], ...]


@pytest.fixture(scope="session")
def gemma_tokenizer() -> Path:
    """Folder of Gemma's own tokenizer."""
    beside = Path(__file__).parents[2] / "shared" / "data" / "gemma-tokenizer"
    folder = Path(os.environ.get("SANA_TEST_GEMMA_TOKENIZER", beside))
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("Gemma's tokenizer is not here; name its folder in SANA_TEST_GEMMA_TOKENIZER")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tokenizer of Gemma's kind with a few hundred tokens; transformers loads it as GemmaTokenizer."""
    return write_gemma_like(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def merging_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, but "a" joins the instruction's last token but one, and "red" its last but two."""
    extra = ((":", "▁a"), (":", "▁red"), ("▁Prompt", ":▁red"))
    return write_gemma_like(tmp_path_factory.mktemp("merging"), extra)


def write_gemma_like(folder: Path, extra: Merges = ()) -> Path:
    """Train a byte-pair tokenizer on a few lines, add merges, and write its two files to `folder`."""
    tokenizer = Tokenizer(gemma_like_model(extra))
    tokenizer.add_special_tokens([*SPECIAL])
    tokenizer.add_tokens([*MARKERS])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{token[1:-1]}_token": token for token in SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer", **names}))
    return folder


def gemma_like_model(extra: Merges) -> models.BPE:
    """Byte-pair merges over special tokens, the 256 bytes and the letters met in training."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("▁|[^\\w▁]"), "merged_with_next")  # words do not merge
    learner.train_from_iterator([*LINES] * 4, trainers.BpeTrainer(vocab_size=400, min_frequency=2, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    bytes_ = (f"<0x{byte:02X}>" for byte in range(256))
    pieces = (*SPECIAL, *MARKERS, *bytes_, *learnt["vocab"], *("".join(pair) for pair in extra))
    return models.BPE(
        vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))},
        merges=[*(tuple(pair) for pair in learnt["merges"]), *extra],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
