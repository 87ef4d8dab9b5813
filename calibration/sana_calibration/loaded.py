"""A bundle's parts, opened to be calibrated or judged: some of them may be replaced by other graphs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sana_runtime.batches import run_in_batches
from sana_runtime.bundle import Bundle
from sana_runtime.conditioning import Conditioner
from sana_runtime.memory import available_memory
from sana_runtime.memory_plan import keeps_all
from sana_runtime.parts import Parts
from sana_runtime.session import Arrays, Device, Session, SessionOptions, open_session
from sana_runtime.signature import TensorSpec
from sana_runtime.solver import Latent

from sana_calibration.gate import Contender
from sana_calibration.painter import Model, Painter, Plan

__all__ = ["Loaded", "Substitutes", "source_key"]

CONDITIONS = 1 << 30  # bytes of encoded prompts that are remembered
NUMBERS = ("text_encoder", "caption", "transformer", "tokenizer", "prompt")  # files that latents depend on


def source_key(bundle: Bundle) -> str:
    """A hash of every file of a bundle that its latents depend on."""
    digests = [
        f"{name} {entry.sha256}"
        for name, entry in sorted(bundle.manifest.files.items())
        if name.split(".")[0] in NUMBERS
    ]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class Substitutes:
    """Graphs that stand in for a bundle's parts."""

    graphs: Mapping[str, Path]  # by part
    key: str = ""  # tells them from others that stand in for the same parts
    besides: Sequence[TensorSpec] = ()  # what a transformer among them takes besides a transformer's inputs
    half: bool = False  # whether that transformer may multiply in bf16, though the bundle's may not


class Loaded:
    """The parts of one bundle, loaded when first needed."""

    def __init__(
        self, bundle: Bundle, substitutes: Substitutes = Substitutes({}), others: "Loaded | None" = None
    ) -> None:
        """Parts that nothing stands in for are run by `others`, where they are given, and not loaded again.

        Where memory is short, one part of either is loaded at a time.
        """
        self.bundle = bundle
        self._substitutes = substitutes
        self._others = others
        self._signatures = {name: part.signature for name, part in bundle.manifest.parts.items()}
        self._together: bool = others._together if others else keeps_all(bundle, available_memory())
        self.parts = Parts(
            self._load,
            together=self._together,
            check=_accept,  # who measures says more of what is not finite
        )
        conditioner = Conditioner(self.run, bundle.tokenizer(), bundle.prompt_rules(), cache_bytes=CONDITIONS)
        self.model = Model(self._signatures["transformer"], conditioner, source_key(bundle) + substitutes.key)

    def contender(self, plan: Plan) -> Contender:
        """Who paints `plan` with these parts."""
        return Contender(Painter(self.model, plan), self.run, self.decode)

    def run(self, part: str, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name, of the graph that stands in for `part` or of the bundle's own."""
        if self._others is None:
            return self.parts.run(part, feeds)
        used, idle = self.parts, self._others.parts
        if part not in self._substitutes.graphs:
            used, idle = idle, used
        if not self._together:
            idle.drop(keep=None)
        return used.run(part, feeds)

    def decode(self, latent: Latent) -> NDArray[np.uint8]:
        """Pixels (B, H, W, 3)."""
        return run_in_batches(self.run, self._signatures["decoder"], {"latent": latent})["image"]

    def _load(self, name: str) -> Session:
        graph, signature = self._substitutes.graphs.get(name), self._signatures[name]
        part = self.bundle.manifest.parts[name]
        half, in_place = part.half_products, part.in_place
        if name == "transformer":
            half = half or self._substitutes.half
            signature = replace(signature, inputs=(*signature.inputs, *self._substitutes.besides))
        elif name == "text_encoder" and graph:
            in_place = True  # only one with INT8 weights ever stands in
        options = SessionOptions(half_products=half, signature=signature, in_place=in_place)
        return open_session(graph or self.bundle.graph(name), Device.CPU, options)


def _accept(part: str, outputs: Arrays) -> None:
    """Also what is not finite."""
