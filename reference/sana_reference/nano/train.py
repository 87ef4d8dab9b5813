"""Train nano: `python -m sana_reference.nano.train autoencoder`, then `harden`, `transformer`, `export`.

Each resumes where it stopped.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree

from sana_reference.nano.evaluation import evaluate, questions, table
from sana_reference.nano.export import write_autoencoder, write_index, write_text_encoder, write_transformer
from sana_reference.nano.parallel import in_workers
from sana_reference.nano.recipe import (
    AUTOENCODER,
    AUTOENCODER_RUN,
    GUIDANCE,
    HARDENING_RUN,
    SIDE,
    TRANSFORMER,
    TRANSFORMER_RUN,
    workplace,
)
from sana_reference.nano.train_autoencoder import (
    harden_autoencoder,
    train_autoencoder,
    training_pictures,
    validation_pictures,
)
from sana_reference.nano.train_transformer import (
    encode_share,
    finish_latents,
    finished_autoencoder,
    finished_painter,
    prepare_texts,
    prepare_tokenizer,
    train_transformer,
)
from sana_reference.pipeline import ReferencePipeline

__all__ = ["judge", "main"]


def judge(pipeline: ReferencePipeline) -> dict[str, float]:
    """The share of right answers to a few held-out prompts of every category."""
    asked = questions(8)
    answers = evaluate(lambda prompts, seeds: pipeline.generate(prompts, size=(SIDE, SIDE), seed=seeds[0]), asked)
    return {name: score.share for name, score in table(asked, answers).items()}


def _autoencoder(steps: int | None, workers: int) -> None:
    training_pictures(), validation_pictures()  # drawn here, before the workers ask for them
    run = replace(AUTOENCODER_RUN, steps=steps or AUTOENCODER_RUN.steps)
    in_workers(partial(train_autoencoder, run), workers)


def _harden(steps: int | None, workers: int) -> None:
    training_pictures(), validation_pictures()
    run = replace(HARDENING_RUN, steps=steps or HARDENING_RUN.steps)
    in_workers(partial(harden_autoencoder, finished_autoencoder(scaling_factor=1.0), run), workers)


def _transformer(steps: int | None, workers: int) -> None:
    prepare_tokenizer()
    prepare_texts()
    in_workers(encode_share, workers)
    finish_latents()
    run = replace(TRANSFORMER_RUN, steps=steps or TRANSFORMER_RUN.steps)
    in_workers(partial(train_transformer, run, judge=judge), workers)


def _export(steps: int | None, workers: int) -> None:
    """Write the weights into the package, whatever stage they are at; its model card is written by hand."""
    write_index(TRANSFORMER, GUIDANCE, WEIGHTS)
    autoencoder, painter = finished_autoencoder(), finished_painter()
    write_autoencoder(autoencoder, replace(AUTOENCODER, scaling_factor=autoencoder.scaling_factor), WEIGHTS / "vae")
    write_transformer(painter.transformer, WEIGHTS / "transformer")
    write_text_encoder(painter.text_encoder, WEIGHTS / "text_encoder")
    copytree(workplace() / "tokenizer", WEIGHTS / "tokenizer", dirs_exist_ok=True)


STAGES = {
    "autoencoder": _autoencoder,
    "harden": _harden,
    "transformer": _transformer,
    "export": _export,
}
WEIGHTS = Path(__file__).parent / "weights"


def main() -> None:
    """Run one stage of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--steps", type=int, help="length of the run, when it must differ from the recipe's")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    STAGES[given.stage](given.steps, given.workers)


if __name__ == "__main__":
    main()
