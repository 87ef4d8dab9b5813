"""The loop that every part of nano is trained in: resumable, averaged, shared among workers."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sana_reference.nano.optimiser import Average, Optimiser
from sana_reference.nano.parallel import average_gradients, rank
from sana_reference.nano.progress import Diary
from sana_reference.nano.recipe import Run

__all__ = ["learn"]

Model = TypeVar("Model", bound=nn.Module)
NOTED = 25  # steps between two lines of the log


def learn(
    model: Model,
    run: Run,
    diary: Diary,
    loss_of: Callable[[int], Tensor],
    report: Callable[[Model, int], dict[str, float]],
    every: int,
) -> Model:
    """Minimise `loss_of(step)` to the end of `run`, going on from what the diary kept; returns the averaged model.

    `every` so many steps the averaged model is reported on and everything needed to go on is kept.
    """
    torch.manual_seed(run.seed)
    average, optimiser = Average(model, run.ema), Optimiser([model], run)
    start = resume(diary, model, average, optimiser)
    losses = []
    for step in range(start, run.steps):
        loss = loss_of(step)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients([model])
        optimiser.step(step)
        average.follow(model, step)
        losses.append(loss.item())
        if rank():
            continue
        if (step + 1) % NOTED == 0:
            diary.note(step=step + 1, loss=float(np.mean(losses[-NOTED:])), seconds=diary.seconds())
        if (step + 1) % every == 0 or step + 1 == run.steps:
            diary.note(step=step + 1, **report(average.model, step + 1))
            keep(diary, model, average, optimiser, step + 1)
    return average.model


def keep(diary: Diary, model: nn.Module, average: Average[Model], optimiser: Optimiser, step: int) -> None:
    """Write everything needed to go on after `step` steps."""
    diary.keep(
        {
            "model": model.state_dict(),
            "average": average.model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
        }
    )


def resume(diary: Diary, model: nn.Module, average: Average[Model], optimiser: Optimiser) -> int:
    """Take over what was kept last, if anything was, and say how many steps it has behind it."""
    state = diary.kept()
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    average.model.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
