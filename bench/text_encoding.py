"""Time the encoding of a prompt and its negative: our text part against diffusers' `encode_prompt`, same weights.

    python bench/text_encoding.py TOKENIZER_FOLDER [bf16|fp32] [LAYERS] [ROUNDS]

Gemma-2-2b's shape with random weights and its own tokenizer, by default with 4 of its 26 layers, so that both fit into
a small machine. What is not a layer costs the same with 4 as with 26, so all 26 give no smaller ratio. The negative is
empty, as it is unless a caller gives one. Rounds alternate; medians count. Writes docs/measurements/text-encoding.json.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import SanaPipeline
from numpy.typing import NDArray
from sana_reference.checkpoint.parts import text_encoder_in_folder
from sana_reference.config import PRESETS, SanaConfig
from sana_reference.initialise import initialise
from sana_reference.text_encoder import TextEncoder
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.prompt import INSTRUCTION, PromptRules, PromptTokens, batch
from sana_runtime.session import SessionOptions
from sana_runtime.tokenizer import Tokenizer
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

sys.path.insert(0, str(Path(__file__).parent))
import cpu_race

from sana_export.export import export_parts
from sana_export.precision import Precision

RESULTS = cpu_race.RESULTS / "text-encoding.json"
PROMPT = "a small wooden house beside a quiet lake at sunrise with snow covered mountains behind it and two red boats"
NEGATIVE = ""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

States = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TextSource:
    """A folder of transformers' as something to export a text encoder from."""

    folder: Path
    config: SanaConfig = PRESETS["sana-600m"]

    def text_encoder(self, dtype: torch.dtype) -> TextEncoder:
        """The text encoder, read now."""
        return text_encoder_in_folder(self.folder, None).build(dtype)

    def transformer(self, dtype: torch.dtype) -> Any:
        """There is none."""
        raise NotImplementedError

    autoencoder = transformer


def write_gemma(folder: Path, layers: int, dtype: torch.dtype) -> None:
    """Gemma-2-2b's shape with `layers` layers."""
    config = Gemma2Config(num_hidden_layers=layers, query_pre_attn_scalar=256, vocab_size=256000)
    with torch.device("meta"):
        model = Gemma2Model(config)
    model = model.to_empty(device="cpu")
    initialise(model, 0)
    model.to(dtype).save_pretrained(folder)


def theirs(folder: Path, tokenizer: Path, dtype: torch.dtype) -> Callable[[], States]:
    """diffusers' way: 506 tokens and 300, padding included."""
    model = Gemma2Model.from_pretrained(folder, dtype=dtype).eval()
    pipeline = SanaPipeline(AutoTokenizer.from_pretrained(tokenizer), model, None, None, None)

    @torch.no_grad()
    def encode() -> States:
        states, mask, *_ = pipeline.encode_prompt(
            PROMPT, negative_prompt=NEGATIVE, complex_human_instruction=INSTRUCTION.split("\n")
        )
        return states[0, mask[0].bool()].float().numpy()

    return encode


def ours(folder: Path, tokenizer_folder: Path, precision: str, scratch: Path) -> Callable[[], States]:
    """Our way: the prompt's own tokens, then the negative's."""
    tokenizer = Tokenizer(tokenizer_folder / "tokenizer.json")
    rules = PromptRules.derive(tokenizer)
    part = export_parts(
        TextSource(folder), scratch, Precision(precision), parts=("text_encoder",), prefix=rules.prefix
    )["text_encoder"]
    session = OpenVinoSession(part.graph, SessionOptions(half_products=precision == "bf16"))

    def run(tokens: PromptTokens) -> States:
        inputs = batch([tokens])
        feeds = {"input_ids": inputs.input_ids, "text_mask": inputs.text_mask, "instructed": inputs.instructed}
        states: States = session.run(feeds)["text"][inputs.row_mask]
        return states

    def encode() -> States:
        run(rules.plain(tokenizer, NEGATIVE))
        return run(rules.instruct(tokenizer, PROMPT))

    return encode


def seconds(encode: Callable[[], States]) -> float:
    """Wall-clock time of one call."""
    begun = time.perf_counter()
    encode()
    return time.perf_counter() - begun


def main(tokenizer: str, precision: str = "bf16", layers: str = "4", rounds: str = "5") -> None:
    """Measure, print and write."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        gemma = Path(folder) / "gemma"
        write_gemma(gemma, int(layers), DTYPES[precision])
        mine = ours(gemma, Path(tokenizer), precision, Path(folder))
        other = theirs(gemma, Path(tokenizer), DTYPES[precision])
        expected, actual = other(), mine()
        times = [(seconds(other), seconds(mine)) for _ in range(int(rounds))]
    theirs_median, ours_median = (median(column) for column in zip(*times, strict=True))
    result = {
        "precision": precision,
        "layers": int(layers),
        "words": len(PROMPT.split()),
        "diffusers_seconds": theirs_median,
        "ours_seconds": ours_median,
        "ratio": theirs_median / ours_median,
        "largest_difference": float(np.abs(actual - expected).max() / np.abs(expected).max()),
        "rounds": times,
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**results, precision: result}, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
