"""Muon for matrices, AdamW for the rest, and a moving average of the weights."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sana_reference.nano.recipe import Run

__all__ = ["Average", "Muon", "Optimiser"]

Model = TypeVar("Model", bound=nn.Module)

ADAM_SHARE = 0.5  # of the rate, for the parameters whose steps are not made orthogonal


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, so that every direction of a matrix learns at one pace."""

    def __init__(self, parameters: Iterable[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(parameters, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; a convolution counts as a matrix of outputs by everything else."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
                velocity.lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(velocity, group["momentum"])
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(matched(ahead), alpha=-group["lr"])


def matched(update: Tensor) -> Tensor:
    """The update made orthogonal, with the size that an AdamW step usually has."""
    flat = orthogonal(update.flatten(1))
    size: float = 0.2 * max(flat.shape) ** 0.5
    return (flat * size).view_as(update)


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Nearly the orthogonal factor of a matrix, by Newton and Schulz's iteration of fifth order."""
    x = matrix.bfloat16()
    wide = x.shape[0] <= x.shape[1]
    x = (x if wide else x.mT) / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    factor: Tensor = x if wide else x.mT
    return factor.to(matrix.dtype)


class Optimiser:
    """Both optimisers of a model, following one run's learning rate."""

    def __init__(self, models: Iterable[nn.Module], run: Run) -> None:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for model in models:
            for name, parameter in model.named_parameters():
                (matrices if is_matrix(name, parameter) else others).append(parameter)
        self.run = run
        self.parts = (Muon(matrices), torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0))

    def step(self, index: int) -> None:
        """Apply the gradients and forget them."""
        for part, share in zip(self.parts, (1.0, ADAM_SHARE), strict=True):
            for group in part.param_groups:
                group["lr"] = share * self.run.rate_at(index)
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[Any]:
        """Everything needed to go on."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[Any]) -> None:
        """Go on where `state_dict` was taken."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter mixes many channels: not a gain, a table, an embedding or a depthwise filter."""
    return parameter.ndim >= 2 and min(parameter.shape[:2]) > 3 and "table" not in name and "embedding" not in name


class Average(Generic[Model]):
    """A copy of a model whose weights trail the model's own."""

    def __init__(self, model: Model, momentum: float) -> None:
        self.model: Model = deepcopy(model).eval().requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Move towards the model; quickly at first, when the average is still mostly the start."""
        pace = 1 - min(self.momentum, (step + 1) / (step + 10))
        for mine, its in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(its, pace)
