"""A bundle's parts, opened to be calibrated or judged: some of them may be replaced by other graphs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
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

__all__ = ["Loaded", "source_key"]

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


class Loaded:
    """The parts of one bundle, loaded when first needed; a part in `graphs` is read from there."""

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, Path] | None = None,
        key: str = "",
        besides: Sequence[TensorSpec] = (),
    ) -> None:
        """`key` tells the `graphs` from others that stand in for the same parts.

        A transformer in `graphs` takes what is `besides` a transformer's inputs.
        """
        self._bundle = bundle
        self._besides = tuple(besides)
        self._graphs = dict(graphs or {})
        self._signatures = {name: part.signature for name, part in bundle.manifest.parts.items()}
        together = keeps_all(bundle, available_memory())
        self.parts = Parts(self._load, together=together, check=_accept)  # who measures says more of what is not finite
        conditioner = Conditioner(self.parts.run, bundle.tokenizer(), bundle.prompt_rules(), cache_bytes=CONDITIONS)
        self.model = Model(self._signatures["transformer"], conditioner, source_key(bundle) + key)

    def contender(self, plan: Plan) -> Contender:
        """Who paints `plan` with these parts."""
        return Contender(Painter(self.model, plan), self.parts.run)

    @property
    def transformer(self) -> Session:
        """The transformer, or what stands in for it."""
        return PartSession(self.parts, "transformer")

    def decode(self, latent: Latent) -> NDArray[np.uint8]:
        """Pixels (B, H, W, 3)."""
        return run_in_batches(self.parts.run, self._signatures["decoder"], {"latent": latent})["image"]

    def _load(self, name: str) -> Session:
        half = self._bundle.manifest.parts[name].precision in ("bf16", "fp16")
        graph, signature = self._graphs.get(name) or self._bundle.graph(name), self._signatures[name]
        if name == "transformer":
            signature = replace(signature, inputs=(*signature.inputs, *self._besides))
        return open_session(graph, Device.CPU, SessionOptions(half_products=half, signature=signature))


def _accept(part: str, outputs: Arrays) -> None:
    """Also what is not finite."""


class PartSession:
    """A part of a bundle in a session's place: it is loaded when it is run, and may be unloaded in between."""

    def __init__(self, parts: Parts, name: str) -> None:
        self._parts = parts
        self._name = name

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Every output by name."""
        return self._parts.run(self._name, feeds)

    def interrupt(self) -> None:
        """Stop the run that is under way."""
        self._parts.interrupt()
