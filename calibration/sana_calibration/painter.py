"""Paint prompts with a float transformer, or with something that stands in for it, as users of the runtime will."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from sana_runtime.conditioning import Condition, Conditioner, RunPart
from sana_runtime.guidance import Guidance
from sana_runtime.painting import Painting
from sana_runtime.progress import OnStep
from sana_runtime.request import Request
from sana_runtime.signature import Signature
from sana_runtime.solver import Latent, Solver

__all__ = ["Model", "Painter", "Plan"]

AHEAD = 8  # prompts that are encoded at once: where memory is short the text encoder and the transformer take turns


@dataclass(frozen=True)
class Plan:
    """Which pictures are painted, and how."""

    prompts: tuple[str, ...]
    solver: Solver
    size: tuple[int, int]  # height, width
    guidance: Guidance
    negative: str = ""
    seed: int = 0

    def key(self, *context: object) -> str:
        """A hash that differs whenever the pictures, or the context that they serve, differ."""
        content = (
            self.prompts,
            (self.solver.name, self.solver.sigmas, self.solver.timesteps.tolist()),
            (self.size, self.guidance.scale, self.guidance.interval, self.negative, self.seed),
            context,
        )
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class Model:
    """What a picture needs besides the transformer's session."""

    signature: Signature  # of the transformer
    conditioner: Conditioner
    sha256: str  # of the files that its numbers depend on: transformer and text parts

    @property
    def guided_by_input(self) -> bool:
        """Whether guidance is an input of the model, as Sprint has it, and no second branch."""
        return any(spec.name == "guidance" for spec in self.signature.inputs)


class Painter:
    """One plan on one model; nothing is encoded before the first picture."""

    def __init__(self, model: Model, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self._ahead = range(0)

    @cached_property
    def negative(self) -> Condition | None:
        """What the second branch attends to, where there is one; kept here, as the conditioner may forget it."""
        if self.plan.guidance.scale <= 1 or self.model.guided_by_input:
            return None
        return self.model.conditioner.negative(self.plan.negative)

    def paint(self, index: int, run: RunPart, on_step: OnStep | None = None) -> Latent:
        """The clean latent of the plan's prompt `index`; `run` is given the transformer's feeds."""
        plan = self.plan
        prompt = plan.prompts[index]
        self._encode_ahead(index)
        request = Request(prompt, plan.negative, plan.size, plan.guidance, plan.seed + index, plan.solver, count=1)
        painting = Painting(run, {"transformer": self.model.signature}, request, on_step=on_step)
        return painting.denoise(self.model.conditioner.prompt(prompt), self.negative)

    def _encode_ahead(self, index: int) -> None:
        """Let the conditioner remember the next prompts, unless they are those that it was last told of."""
        if index not in self._ahead:
            self._ahead = range(index, index + AHEAD)
            for prompt in self.plan.prompts[index : index + AHEAD]:
                self.model.conditioner.prompt(prompt)
