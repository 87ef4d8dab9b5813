"""Train nano: `python -m sana_reference.nano.train autoencoder`, then `transformer`; each resumes where it stopped."""

import argparse
from dataclasses import replace
from functools import partial

from sana_reference.nano.parallel import in_workers
from sana_reference.nano.recipe import AUTOENCODER_RUN

__all__ = ["main"]


def main() -> None:
    """Run one stage of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["autoencoder", "transformer"])
    parser.add_argument("--steps", type=int, help="length of the run, when it must differ from the recipe's")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    from sana_reference.nano.train_autoencoder import train_autoencoder, training_pictures, validation_pictures

    training_pictures(), validation_pictures()  # drawn here, before the workers ask for them
    run = replace(AUTOENCODER_RUN, steps=given.steps or AUTOENCODER_RUN.steps)
    in_workers(partial(train_autoencoder, run), given.workers)


if __name__ == "__main__":
    main()
