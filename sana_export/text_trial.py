"""The text encoder with weights and tables in INT8, computed in float: shipped if it gains and passes the gate.

Rounding its tokens, too, would be faster still, but it runs once a prompt, and the error is four times as large; 4 bits
are ten times as far off (docs/calibration.md has the figures).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnx_ir as ir
from sana_calibration.gate import Evidence, Limits
from sana_calibration.likeness import relative_error
from sana_calibration.loaded import Loaded, Substitutes
from sana_calibration.quantise import Quantised
from sana_calibration.weight_only import quantise_weights
from sana_runtime.bundle import Bundle
from sana_runtime.memory import available_memory

from sana_export.passes.narrow_weights import narrow_weights, widen_weights
from sana_export.saving import data_file, save_graph
from sana_export.speed import Speed

__all__ = ["PART", "TextTrial", "graph_bytes", "try_text", "write_text"]

PART = "text_encoder"
TOKENS = 25  # of its own: a prompt of 20 words


@dataclass(frozen=True)
class TextTrial:
    """What INT8 weights do to the text encoder."""

    quantised: Quantised
    float_bytes: int  # with weights of 16 bits
    int8_bytes: int
    error: float  # relative, of the keys and values that the transformer attends to; median over held-out prompts
    speed: Speed | None  # None where both do not fit into memory
    complaints: tuple[str, ...]  # limits of the gate that are not kept with it
    tried: bool = True  # by the gate; what gains nothing is not

    @property
    def shipped(self) -> bool:
        """Whether the bundle gets it."""
        return self.tried and not self.complaints

    @property
    def verdict(self) -> str:
        """What is gained and lost, in a sentence."""
        pace = f"{self.speed.ratio:.2f} times as fast as float" if self.speed else "not timed, as memory is short"
        told = (
            f"INT8 weights: {self.int8_bytes / self.float_bytes:.0%} of the bytes of 16-bit floats, {pace}, "
            f"{self.error:.2%} off in what the transformer attends to"
        )
        if self.shipped:
            return f"{told}: shipped"
        return f"{told}: stays float, {'; '.join(self.complaints) or 'as it is neither smaller nor faster'}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "TextTrial":
        """What `to_dict` gave, by way of JSON, which knows lists only."""
        speed, done = stored["speed"], stored["quantised"]
        read = {
            "quantised": Quantised(tuple(done["products"]), tuple(done["left"]), done["share"]),
            "speed": Speed(**{**speed, "shape": tuple(speed["shape"])}) if speed else None,
            "complaints": tuple(stored["complaints"]),
        }
        return cls(**{**stored, **read})


def try_text(
    source: Loaded, graph: Path, prompts: Sequence[str], judge: Callable[[], Evidence], measure: Callable[..., Speed]
) -> TextTrial:
    """Write the text encoder's INT8 form to `graph`, and let `judge` paint with it; not shipped, it is gone again."""
    original, part = source.bundle.graph(PART), source.bundle.manifest.parts[PART]
    quantised = write_text(source.bundle, graph)
    before, after = graph_bytes(original) // (2 if part.scheme == "float32" else 1), graph_bytes(graph)
    feeds = part.signature.example_feeds(batch=1, tokens=TOKENS)
    roomy = 2 * (graph_bytes(original) + after) <= (available_memory() or 0)
    speed = measure(original, graph, part.signature, feeds, in_place=True) if roomy else None
    error = _error(source, graph, prompts)
    tried = after < before or (speed is not None and speed.ratio > 1)
    complaints = judge().complaints(Limits()) if tried else ()
    trial = TextTrial(quantised, before, after, error, speed, complaints, tried)
    if not trial.shipped:
        for file in (graph, data_file(graph)):
            file.unlink(missing_ok=True)
    return trial


def write_text(bundle: Bundle, graph: Path) -> Quantised:
    """The text encoder with INT8 weights; what stays float is stored as it was."""
    model = ir.load(bundle.graph(PART))
    stored = widen_weights(model)
    quantised = quantise_weights(model)
    if stored is not None:
        narrow_weights(model, stored)
    save_graph(model, graph)
    return quantised


def graph_bytes(graph: Path) -> int:
    """Of a graph and its weights."""
    return sum(file.stat().st_size for file in (graph, data_file(graph)) if file.is_file())


def _error(source: Loaded, graph: Path, prompts: Sequence[str]) -> float:
    """How far keys and values are from the float ones; one text encoder is loaded at a time."""
    expected = _attended(source, prompts)
    source.parts.drop(keep=None)
    rounded = Loaded(source.bundle, Substitutes({PART: graph}), source)
    actual = _attended(rounded, prompts)
    rounded.parts.drop(keep=None)
    return median(relative_error(*pair) for pair in zip(actual, expected, strict=True))


def _attended(loaded: Loaded, prompts: Sequence[str]) -> list[Any]:
    return [loaded.model.conditioner.prompt(prompt).text_kv for prompt in prompts]
