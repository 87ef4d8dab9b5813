"""Fuzz what strangers' bytes reach, guided by coverage: `python bench/trust_fuzz.py TARGET [SECONDS]`.

TARGET is manifest, graph, png, prompt or tokenizer. Anything but a refusal in one line is a finding, which is written
to the current folder as `crash-*`. Uses Atheris; `pip install atheris` first. Of JSON mostly one value is changed, and
a manifest's own digest made right again: changed bytes alone hardly come past the reader of JSON, or that digest.
"""

import importlib.util
import json
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

import atheris

with atheris.instrument_imports(include=["sana_runtime", "PIL"]):
    from sana_runtime.bundle import seal
    from sana_runtime.errors import SanaError
    from sana_runtime.manifest import parse
    from sana_runtime.onnx_guard import guard
    from sana_runtime.picture import Picture, Recipe, read_picture, read_recipe
    from sana_runtime.prompt import PromptRules
    from sana_runtime.tokenizer import Tokenizer, refuse_unusable

import numpy as np

ROOT = Path(__file__).parents[1]
FOLDER = Path(tempfile.mkdtemp(prefix="sana-fuzz-"))
BYTES = 0.2  # of all changes to JSON are to its bytes
WORDS = ("manifest", "graph", "png", "prompt", "tokenizer")


def fuzz_manifest(content: bytes) -> None:
    """The strict reader."""
    parse(content)


def fuzz_graph(content: bytes) -> None:
    """The guard before the engines."""
    (FOLDER / "x.onnx").write_bytes(content)
    guard(FOLDER / "x.onnx", {"x.data": 64})


def fuzz_png(content: bytes) -> None:
    """Pictures and the recipes in them."""
    (FOLDER / "x.png").write_bytes(content)
    for read in (read_picture, read_recipe):
        try:
            read(FOLDER / "x.png")
        except SanaError as error:
            assert "\n" not in str(error)


def fuzz_prompt(content: bytes) -> None:
    """Text as a prompt, and as the rules for prompts."""
    text = content.decode("utf-8", "surrogateescape" if content[:1] == b"s" else "replace")
    refuse_unusable(text)
    rules().instruct(tokenizer(), text)
    rules().plain(tokenizer(), text)


def fuzz_tokenizer(content: bytes) -> None:
    """The file of the tokenizer, and a prompt through what it makes; the same bytes as the rules for prompts."""
    (FOLDER / "tokenizer.json").write_bytes(content)
    with suppress(SanaError):
        PromptRules.from_json(content.decode("utf-8", "replace"))
    Tokenizer(FOLDER / "tokenizer.json").encode("a red circle")


@cache
def tokenizer() -> Tokenizer:
    """Nano's."""
    return Tokenizer(ROOT / "reference/sana_reference/nano/weights/tokenizer/tokenizer.json")


@cache
def rules() -> PromptRules:
    """Those of nano's tokenizer."""
    return PromptRules.derive(tokenizer())


def seeds(target: str) -> list[bytes]:
    """Inputs to start from."""
    if target == "png":
        recipe = Recipe("a star", 1, 2, 4.5, (32, 32), "flow-dpm", "0" * 64, "cpu", "0.1")
        return [Picture(np.zeros((32, 32, 3), np.uint8), recipe).png()]
    if target == "tokenizer":
        whole = json.loads((ROOT / "reference/sana_reference/nano/weights/tokenizer/tokenizer.json").read_text())
        whole["model"]["merges"] = []
        whole["model"]["vocab"] = dict(list(whole["model"]["vocab"].items())[:20])
        return [json.dumps(whole).encode(), rules().to_json().encode()]
    if target in ("graph", "manifest"):
        return [(small_bundle() / {"graph": "decoder.onnx", "manifest": "manifest.json"}[target]).read_bytes()]
    return [b"a red circle", "s\u00e9\u4e00\U0001f642".encode()]


def small_bundle() -> Path:
    """The bundle that the tests of the runtime damage, too."""
    folder = FOLDER / "bundle"
    folder.mkdir()
    runtime_tests().fill(folder)
    seal(folder, runtime_tests().small_manifest())
    return folder


@cache
def runtime_tests() -> ModuleType:
    """What those tests share."""
    spec = importlib.util.spec_from_file_location("small", ROOT / "tests/runtime/conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(content: bytes, most: int, seed: int) -> bytes:
    """JSON with one value changed; now and then, and of what is no JSON, bytes."""
    generator, mutant = random.Random(seed), b""
    if generator.random() >= BYTES:
        with suppress(ValueError, OverflowError, RecursionError):  # no JSON, or numbers that grew beyond all bounds
            mutant = runtime_tests().vouched(runtime_tests().mutated(json.loads(content), generator))
    return mutant if 0 < len(mutant) <= most else bytes(atheris.Mutate(content, most))


def one_line(fuzz: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """A refusal is well, if it is one line."""

    def tried(content: bytes) -> None:
        try:
            fuzz(content)
        except SanaError as error:
            assert "\n" not in str(error), str(error)

    return tried


def main() -> None:
    """Fuzz one target."""
    if len(sys.argv) < 2 or sys.argv[1] not in WORDS:
        sys.exit(f"usage: trust_fuzz.py {'|'.join(WORDS)} [SECONDS]")
    target, seconds = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "60"
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds(target)):
        (corpus / str(number)).write_bytes(content)
    limits = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]
    how = {"custom_mutator": changed} if target in ("manifest", "tokenizer") else {}
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one_line(globals()[f"fuzz_{target}"]), **how)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
