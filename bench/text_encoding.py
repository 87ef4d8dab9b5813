"""Time the encoding of a prompt and its negative: our text part against diffusers' `encode_prompt`, same weights.

    python bench/text_encoding.py TOKENIZER_FOLDER [--precision bf16] [--layers 3] [--threads 2] [--rounds 7]

Gemma-2-2b's shape with random weights and its own tokenizer, by default with 3 of its 26 layers, so that both fit into
a small machine. What is not a layer costs the same with 3 as with 26, so all 26 give no smaller ratio. The negative is
empty, as it is unless a caller gives one; it is encoded once in a process, so the second prompt takes ours less.
Writes docs/measurements/text-encoding.json.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import SanaPipeline
from sana_reference.checkpoint.parts import text_encoder_in_folder
from sana_reference.config import PRESETS
from sana_reference.initialise import initialise
from sana_runtime.openvino_session import OpenVinoSession
from sana_runtime.prompt import INSTRUCTION, PromptRules, PromptTokens, batch
from sana_runtime.session import SessionOptions
from sana_runtime.tokenizer import Tokenizer
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

sys.path.insert(0, str(Path(__file__).parent))
from cpu_race import Contender, Run, race, report

from sana_export.export import export_parts
from sana_export.precision import Precision

PROMPT = "a small wooden house beside a quiet lake at sunrise with snow covered mountains behind it and two red boats"
NEGATIVE = ""
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Job:
    """What everybody encodes with."""

    folder: Path  # transformers' model in `gemma`, our part beside it
    tokenizer: Path
    precision: str
    threads: int

    @property
    def gemma(self) -> Path:
        """The model's folder."""
        return self.folder / "gemma"


def write_gemma(folder: Path, layers: int, dtype: torch.dtype) -> None:
    """Gemma-2-2b's shape with `layers` layers."""
    config = Gemma2Config(num_hidden_layers=layers, query_pre_attn_scalar=256, vocab_size=256000)
    with torch.device("meta"):
        model = Gemma2Model(config)
    model = model.to_empty(device="cpu")
    initialise(model, 0)
    model.to(dtype).save_pretrained(folder)


def prepare(job: Job, layers: int) -> None:
    """Write the model and our part of it."""
    write_gemma(job.gemma, layers, DTYPES[job.precision])
    rules = PromptRules.derive(Tokenizer(job.tokenizer / "tokenizer.json"))
    source = SimpleNamespace(config=PRESETS["sana-600m"], text_encoder=text_encoder_in_folder(job.gemma, None).build)
    export_parts(source, job.folder, Precision(job.precision), parts=("text_encoder",), prefix=rules.prefix)


def theirs(job: Job) -> Run:
    """diffusers' way: 506 tokens and 300, padding included."""
    torch.set_num_threads(job.threads)
    model = Gemma2Model.from_pretrained(job.gemma, dtype=DTYPES[job.precision]).eval()
    pipeline = SanaPipeline(AutoTokenizer.from_pretrained(job.tokenizer), model, None, None, None)

    @torch.no_grad()
    def encode() -> Any:
        states, mask, *_ = pipeline.encode_prompt(
            PROMPT, negative_prompt=NEGATIVE, complex_human_instruction=INSTRUCTION.split("\n")
        )
        return states[0, mask[0].bool()].float().numpy()

    return encode


def ours(job: Job, *, remembered: bool = False) -> Run:
    """Our way: the negative's own tokens, unless they are `remembered`, then the prompt's."""
    tokenizer = Tokenizer(job.tokenizer / "tokenizer.json")
    rules = PromptRules.derive(tokenizer)
    options = SessionOptions(half_products=job.precision == "bf16", threads=job.threads)
    session = OpenVinoSession(job.folder / "text_encoder.onnx", options)

    def run(tokens: PromptTokens) -> Any:
        inputs = batch([tokens])
        feeds = {"input_ids": inputs.input_ids, "text_mask": inputs.text_mask, "instructed": inputs.instructed}
        return session.run(feeds)["text"][inputs.row_mask].astype(np.float32)

    def encode() -> Any:
        if not remembered:
            run(rules.plain(tokenizer, NEGATIVE))
        return run(rules.instruct(tokenizer, PROMPT))

    return encode


def main(arguments: Sequence[str]) -> None:
    """Prepare, race, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    for name, usual in (("--layers", 3), ("--threads", 2), ("--rounds", 7)):
        parser.add_argument(name, type=int, default=usual)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), chosen.tokenizer.absolute(), chosen.precision, chosen.threads)
        prepare(job, chosen.layers)
        ways = {
            f"diffusers {job.precision}": partial(theirs, job),
            f"ours {job.precision}": partial(ours, job),
            f"ours {job.precision}, negative remembered": partial(ours, job, remembered=True),
        }
        results = race([Contender(name, load) for name, load in ways.items()], chosen.rounds, job.threads)
    facts = {"words": len(PROMPT.split()), "layers": chosen.layers, "of_layers": 26, "threads": job.threads}
    print(report("text-encoding", results, facts))


if __name__ == "__main__":
    main(sys.argv[1:])
