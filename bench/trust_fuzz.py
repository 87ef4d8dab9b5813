"""Fuzz what strangers' bytes reach, guided by coverage: `python bench/trust_fuzz.py TARGET [SECONDS]`.

TARGET is manifest, graph, png, prompt or tokenizer. Anything but a refusal in one line is a finding, which is written
to the current folder as `crash-*`. Uses Atheris; `pip install atheris` first.
"""

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

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
    """The file of the tokenizer, and a prompt through what it makes."""
    (FOLDER / "tokenizer.json").write_bytes(content)
    PromptRules.from_json(content.decode("utf-8", "replace")) if content[:1] == b"{" else None
    Tokenizer(FOLDER / "tokenizer.json").encode("a red circle")


def tokenizer() -> Tokenizer:
    """Nano's."""
    if "tokenizer" not in KEPT:
        KEPT["tokenizer"] = Tokenizer(ROOT / "reference/sana_reference/nano/weights/tokenizer/tokenizer.json")
    return KEPT["tokenizer"]  # type: ignore[return-value]


def rules() -> PromptRules:
    """Those of nano's tokenizer."""
    if "rules" not in KEPT:
        KEPT["rules"] = PromptRules.derive(tokenizer())
    return KEPT["rules"]  # type: ignore[return-value]


KEPT: dict[str, object] = {}


def seeds(target: str) -> list[bytes]:
    """Inputs to start from."""
    if target == "png":
        recipe = Recipe("a star", 1, 2, 4.5, (32, 32), "flow-dpm", "0" * 64, "cpu", "0.1")
        return [Picture(np.zeros((32, 32, 3), np.uint8), recipe).png()]
    if target == "tokenizer":
        whole = json.loads((ROOT / "reference/sana_reference/nano/weights/tokenizer/tokenizer.json").read_text())
        whole["model"]["merges"] = []
        whole["model"]["vocab"] = dict(list(whole["model"]["vocab"].items())[:20])
        return [json.dumps(whole).encode()]
    if target in ("graph", "manifest"):
        return [(small_bundle() / {"graph": "decoder.onnx", "manifest": "manifest.json"}[target]).read_bytes()]
    return [b"a red circle", "s\u00e9\u4e00\U0001f642".encode()]


def small_bundle() -> Path:
    """The bundle that the tests of the runtime damage, too."""
    spec = importlib.util.spec_from_file_location("small", ROOT / "tests/runtime/conftest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = FOLDER / "bundle"
    folder.mkdir()
    module.fill(folder)
    seal(folder, module.small_manifest())
    return folder


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
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one_line(globals()[f"fuzz_{target}"]))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
