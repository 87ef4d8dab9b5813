"""What a client asks to be painted, checked in full before it may wait in the queue."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sana_runtime.errors import UsageError
from sana_runtime.guidance import Guidance
from sana_runtime.manifest import Defaults
from sana_runtime.picture import Picture
from sana_runtime.progress import OnStep
from sana_runtime.prompt import clean
from sana_runtime.request import Request
from sana_runtime.rules import shown
from sana_runtime.solver import SOLVERS, Solver, make_solver

from sana_export.serve.fields import Number, OneOf, Reader, Text, Whole, read_fields
from sana_export.serve.limits import LARGEST_SEED, Limits
from sana_export.serve.models import Model
from sana_export.serve.refusals import Refusal

__all__ = ["Order", "order_fields", "read_order"]

DECODING_STEPS = 4  # what decoding costs, about, in steps


@dataclass(frozen=True)
class Order:
    """One job's pictures."""

    model: Model
    prompt: str
    negative: str
    size: tuple[int, int]  # height, width
    steps: int
    guidance: float
    solver: str
    seed: int
    count: int

    @property
    def work(self) -> float:
        """How much one picture takes, in pixels times runs of the model."""
        runs = 2 if self.guidance > 1 else 1
        return self.size[0] * self.size[1] * (self.steps * runs + DECODING_STEPS)

    def check(self) -> None:
        """UsageError where the pipeline would refuse this."""
        clean(self.prompt)
        clean(self.negative)
        guidance = Guidance(self.guidance)
        solver = _solver(self.model.manifest.defaults, self.solver, self.steps)
        request = Request(self.prompt, self.negative, self.size, guidance, self.seed, solver, self.count)
        request.check(self.model.manifest.latent)

    def paint(self, index: int, on_step: OnStep) -> Picture:
        """Picture `index`, which is the single picture of seed + index."""
        picture = self.model.pipeline.generate(
            self.prompt,
            negative=self.negative,
            size=self.size,
            steps=self.steps,
            guidance=self.guidance,
            seed=self.seed + index,
            solver=self.solver,
            on_step=on_step,
        )
        assert isinstance(picture, Picture)
        return picture


def order_fields(limits: Limits) -> dict[str, Reader]:
    """The fields of an order."""
    return {
        "model": Text(),
        "prompt": Text(),
        "negative_prompt": Text(),
        "size": Text(),
        "steps": Whole(1, limits.steps),
        "guidance": Number(0, limits.guidance),
        "solver": OneOf(tuple(SOLVERS)),
        "seed": Whole(0, LARGEST_SEED),
        "n": Whole(1, limits.pictures),
    }


def read_order(given: Mapping[str, Any], models: Mapping[str, Model], limits: Limits) -> Order:
    """The order in a request's fields; what is left out is the bundle's own, the seed a new one every time."""
    fields = read_fields(given, order_fields(limits))
    if "prompt" not in fields:
        raise Refusal(422, "missing_field", "there is no prompt; say in `prompt` what to paint", "prompt")
    model = _model(fields.get("model"), models)
    usual = model.manifest.defaults
    solver = fields.get("solver", usual.solver)
    usual_steps = usual.steps if solver == usual.solver else SOLVERS[solver].usual_steps
    order = Order(
        model=model,
        prompt=fields["prompt"],
        negative=fields.get("negative_prompt", ""),
        size=_size(fields.get("size", "auto"), usual.size),
        steps=fields.get("steps", min(usual_steps, limits.steps)),
        guidance=float(fields.get("guidance", usual.guidance)),
        solver=solver,
        seed=fields.get("seed", secrets.randbelow(2**32)),
        count=fields.get("n", 1),
    )
    try:
        order.check()
    except UsageError as error:
        raise Refusal(422, "invalid_value", str(error)) from error
    return order


def _model(name: str | None, models: Mapping[str, Model]) -> Model:
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        message = f"there is no model {shown(name)}; this server has {', '.join(models)}"
        raise Refusal(404, "model_not_found", message, "model")
    return models[name]


def _size(text: str, usual: tuple[int, int]) -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT."""
    if text == "auto":
        return usual
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if not match:
        raise Refusal(422, "invalid_value", f"size is {shown(text)}; give WIDTHxHEIGHT, or auto", "size")
    return int(match[2]), int(match[1])


def _solver(usual: Defaults, name: str, steps: int) -> Solver:
    """As the pipeline chooses it."""
    if name == usual.solver:
        return make_solver(name, steps, usual.shift)
    return make_solver(name, steps, None if name == "scm" else usual.shift)
