"""Train nano: `python -m sana_reference.nano.train autoencoder`, then `transformer`; each resumes where it stopped."""

import argparse
from dataclasses import replace
from functools import partial

from sana_reference.nano.evaluation import evaluate, questions, table
from sana_reference.nano.parallel import in_workers
from sana_reference.nano.recipe import AUTOENCODER_RUN, SIDE, TRANSFORMER_RUN
from sana_reference.nano.train_autoencoder import train_autoencoder, training_pictures, validation_pictures
from sana_reference.nano.train_transformer import encode_share, finish_latents, prepare_tokenizer, train_transformer
from sana_reference.pipeline import ReferencePipeline

__all__ = ["judge", "main"]


def judge(pipeline: ReferencePipeline) -> dict[str, float]:
    """The share of right answers to a few held-out prompts of every category."""
    asked = questions(8)
    answers = evaluate(lambda prompts, seeds: pipeline.generate(prompts, size=(SIDE, SIDE), seed=seeds[0]), asked)
    return {name: score.share for name, score in table(asked, answers).items()}


def main() -> None:
    """Run one stage of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["autoencoder", "transformer"])
    parser.add_argument("--steps", type=int, help="length of the run, when it must differ from the recipe's")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    if given.stage == "autoencoder":
        training_pictures(), validation_pictures()  # drawn here, before the workers ask for them
        run = replace(AUTOENCODER_RUN, steps=given.steps or AUTOENCODER_RUN.steps)
        in_workers(partial(train_autoencoder, run), given.workers)
    else:
        prepare_tokenizer()
        in_workers(encode_share, given.workers)
        finish_latents()
        run = replace(TRANSFORMER_RUN, steps=given.steps or TRANSFORMER_RUN.steps)
        in_workers(partial(train_transformer, run, judge=judge), given.workers)


if __name__ == "__main__":
    main()
