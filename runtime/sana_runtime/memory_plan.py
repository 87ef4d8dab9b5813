"""How much memory painting takes, part by part, before anything is loaded.

What is foreseen is the memory that the process needs for itself. Weight files are mapped besides: the system counts
their pages as cache, and takes them back when it needs them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from sana_runtime.bundle import Bundle
from sana_runtime.manifest import Manifest
from sana_runtime.onnx_operators import Weight, weights
from sana_runtime.signature import COMPRESSION

__all__ = [
    "LARGEST_TILE",
    "Layout",
    "PartMemory",
    "all_loaded",
    "fits",
    "keeps_all",
    "kept_bytes",
    "of_bundle",
    "one_at_a_time",
    "usual_layout",
    "working_memory",
]

# Measured with OpenVINO on parts of full size. All activations that live at once, in bytes for each channel of the
# widest layer and each of its positions: the layer's own, and about five times as much around it.
LIVE = {"fp32": 26, "fp16": 15, "bf16": 15, "int8": 26}
LIBRARIES = 60_000_000  # Python and the engine
GRAPH = 10_000_000  # the engine's own description of one loaded part
TOKENIZER = 7  # bytes of memory for each of tokenizer.json: 127 MB for Gemma's 17.5 MB
LARGEST_TILE = 1024  # pixels; the decoder never sees more of a picture at once
RARE = ("encoder",)  # loaded only to repaint a picture
CONVOLVING = ("decoder", "encoder")  # convolutions read no weights of 16 bits: the engine keeps them in 32, too
IN_PLACE = 40  # bytes of weights that are read where their file lies, for each byte of memory that this takes


@dataclass(frozen=True)
class PartMemory:
    """What one part takes once it has run."""

    name: str
    weights: int  # as the engine keeps them, in bytes
    working: int  # activations, in bytes

    @property
    def total(self) -> int:
        """Both together, and the graph itself."""
        return GRAPH + self.weights + self.working


@dataclass(frozen=True)
class Layout:
    """What is painted at once."""

    size: tuple[int, int]  # height, width
    rows: int  # that the transformer computes side by side: with guidance two for each picture

    def positions(self, part: str) -> int:
        """At how many places the part's widest layer computes."""
        if part == "transformer":
            return self.rows * math.prod(side // COMPRESSION for side in self.size)
        if part in ("decoder", "encoder"):
            return math.prod(min(side, LARGEST_TILE) for side in self.size)
        return 0  # a prompt is short


def usual_layout(manifest: Manifest, size: tuple[int, int] | None = None) -> Layout:
    """One picture with the bundle's own guidance, of its own size or another."""
    told = any(spec.name == "guidance" for spec in manifest.parts["transformer"].inputs)
    return Layout(size or manifest.defaults.size, 1 if told or manifest.defaults.guidance <= 1 else 2)


def working_memory(part: str, precision: str, channels: int, layout: Layout) -> int:
    """Bytes of activations for a part whose widest layer has `channels`."""
    return LIVE[precision] * channels * layout.positions(part)


def kept_bytes(part: str, numbers: int, stored: int, *, in_place: bool = False) -> int:
    """What the engine keeps of weights that take `stored` bytes in their file."""
    if in_place:
        return stored // IN_PLACE
    return stored + (4 * numbers if part in CONVOLVING and stored == 2 * numbers else 0)


def one_at_a_time(parts: Iterable[PartMemory], tokenizer: int) -> int:
    """The most that painting takes when each part is loaded after the one before it has gone.

    `tokenizer` is the size of tokenizer.json in bytes.
    """
    return LIBRARIES + TOKENIZER * tokenizer + max(part.total for part in parts)


def all_loaded(parts: Iterable[PartMemory], tokenizer: int) -> int:
    """What painting takes when every part stays, but for the encoder, which only repainting loads."""
    return LIBRARIES + TOKENIZER * tokenizer + sum(part.total for part in parts if part.name not in RARE)


def fits(taken: int, available: int | None) -> bool:
    """Whether painting may take so much: it leaves a quarter of the memory to others. Not where nothing is known."""
    return available is not None and taken <= available * 3 // 4


def keeps_all(bundle: Bundle, available: int | None) -> bool:
    """Whether every part of a bundle may stay loaded while it paints pictures of its usual size."""
    manifest = bundle.manifest
    parts = of_bundle(bundle, manifest.defaults.size)
    return fits(all_loaded(parts, manifest.files["tokenizer.json"].size), available)


def of_bundle(bundle: Bundle, size: tuple[int, int]) -> tuple[PartMemory, ...]:
    """Every part of a bundle, for one picture of `size` with the bundle's own guidance."""
    manifest = bundle.manifest
    layout = usual_layout(manifest, size)

    def planned(name: str) -> PartMemory:
        held, part = list(weights(bundle.graph(name))), manifest.parts[name]
        working = working_memory(name, part.precision, _widest(held), layout)
        table = _looked_up(name, held)
        read = (weight for weight in held if weight is not table)
        kept = (kept_bytes(name, math.prod(one.dims), one.bytes, in_place=part.in_place) for one in read)
        return PartMemory(name, sum(kept), working)

    return tuple(planned(name) for name in manifest.parts)


def _widest(held: list[Weight]) -> int:
    """Channels where a part has most activations: inside its mixing layers, or next to the pixels."""
    spatial = [weight.dims for weight in held if len(weight.dims) == 4]
    beside_pixels = [max(dims[:2]) for dims in spatial if min(dims[:2]) == 3]
    depthwise = [dims[0] for dims in spatial if dims[1] == 1]
    return max(beside_pixels or depthwise, default=0)


def _looked_up(name: str, held: list[Weight]) -> Weight | None:
    """The table of tokens, of which only the rows that are looked up are ever read."""
    return max(held, key=lambda weight: weight.bytes, default=None) if name == "text_encoder" else None
