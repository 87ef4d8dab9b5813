"""What goes into each part's graph and what comes out, as data.

Every other statement about a tensor derives from these rows: the exporter's dynamic axes, example feeds,
engine profiles, manifest entries and the checks before a run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.errors import BundleError, UsageError

__all__ = ["PARTS", "TEXT_PARTS", "Axis", "Profile", "Signature", "Sizes", "TensorSpec", "signatures"]

COMPRESSION = 32  # pixels along one side of a latent's position

PARTS = ("text_encoder", "caption", "transformer", "decoder", "encoder")
TEXT_PARTS = PARTS[:2]  # those that run once for a prompt
DTYPES = ("bool", "uint8", "int64", "float16", "float32")

Profile = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # smallest, usual and largest shape


@dataclass(frozen=True)
class Axis:
    """A size that callers choose: from `min` to `max` in steps of `multiple`; engines are tuned for `optimum`."""

    name: str
    min: int
    optimum: int
    max: int
    multiple: int = 1

    def accepts(self, size: int) -> bool:
        """Whether graphs and engines take this size."""
        return self.min <= size <= self.max and size % self.multiple == 0

    def times(self, factor: int, name: str) -> "Axis":
        """The axis of another tensor that is always `factor` times as long."""
        return Axis(name, self.min * factor, self.optimum * factor, self.max * factor, self.multiple * factor)

    def __str__(self) -> str:
        steps = f" in steps of {self.multiple}" if self.multiple > 1 else ""
        return f"{self.name} {self.min}…{self.max}{steps}"


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one graph input or output."""

    name: str
    dtype: str
    shape: tuple[int | Axis, ...]

    def axes(self) -> Iterator[tuple[int, Axis]]:
        """The dimensions that callers choose, with their positions."""
        return ((i, size) for i, size in enumerate(self.shape) if isinstance(size, Axis))

    def dynamic_axes(self) -> dict[int, str]:
        """Position and name of each free dimension, as exporters want it."""
        return {i: axis.name for i, axis in self.axes()}

    def profile(self) -> Profile:
        """Smallest, usual and largest shape."""
        smallest, usual, largest = (
            tuple(getattr(size, bound) if isinstance(size, Axis) else size for size in self.shape)
            for bound in ("min", "optimum", "max")
        )
        return smallest, usual, largest

    def concrete(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for sizes by axis name; an axis without one is at its optimum."""
        return tuple(sizes.get(size.name, size.optimum) if isinstance(size, Axis) else size for size in self.shape)

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> NDArray[Any]:
        """Random content of this type and shape; masks are true, integers small."""
        shape = self.concrete(sizes)
        if self.dtype == "bool":
            return np.ones(shape, np.bool_)
        if self.dtype in ("uint8", "int64"):
            return generator.integers(0, 8, shape).astype(self.dtype)
        return generator.standard_normal(shape).astype(self.dtype)

    def complaint(self, array: NDArray[Any]) -> str:
        """Why a graph refuses this array; empty when it does not."""
        if array.dtype != self.dtype:
            return f"{self.name} is {array.dtype}, must be {self.dtype}"
        if array.ndim != len(self.shape):
            return f"{self.name} has {array.ndim} dimensions, must have {len(self.shape)}"
        for i, (size, wanted) in enumerate(zip(array.shape, self.shape, strict=True)):
            if isinstance(wanted, Axis) and not wanted.accepts(size):
                return f"{self.name} is {size} along dimension {i}, allowed is {wanted}"
            if isinstance(wanted, int) and size != wanted:
                return f"{self.name} is {size} along dimension {i}, must be {wanted}"
        return ""

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> "TensorSpec":
        """Read a manifest entry."""
        shape = tuple(_axis(size) if isinstance(size, Mapping) else _positive(size) for size in entry["shape"])
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"dtype {entry['dtype']!r} is not one of {', '.join(DTYPES)}")
        return cls(_name(entry["name"]), entry["dtype"], shape)


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one part."""

    part: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def check(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Raise UsageError unless `feeds` are what the graph takes."""
        names = [spec.name for spec in self.inputs]
        if sorted(feeds) != sorted(names):
            raise UsageError(f"{self.part}: fed {', '.join(feeds) or 'nothing'}; it takes {', '.join(names)}")
        complaints = filter(None, (spec.complaint(np.asarray(feeds[spec.name])) for spec in self.inputs))
        complaint = next(complaints, "") or self._disagreement(feeds)
        if complaint:
            raise UsageError(f"{self.part}: {complaint}; choose a size the bundle allows or build one that does")

    def _disagreement(self, feeds: Mapping[str, NDArray[Any]]) -> str:
        """Which two inputs differ along an axis that they share; empty when none do."""
        seen: dict[str, tuple[str, int]] = {}
        for spec in self.inputs:
            for i, axis in spec.axes():
                size = feeds[spec.name].shape[i]
                other, expected = seen.setdefault(axis.name, (spec.name, size))
                if size != expected:
                    return f"{axis.name} is {expected} in {other} but {size} in {spec.name}"
        return ""

    def example_feeds(self, seed: int = 0, **sizes: int) -> dict[str, NDArray[Any]]:
        """Random inputs for tracing and trying out; `sizes` are by axis name."""
        generator = np.random.default_rng(seed)
        return {spec.name: spec.example(sizes, generator) for spec in self.inputs}

    def profiles(self) -> dict[str, Profile]:
        """Shapes that an engine is built for, by input."""
        return {spec.name: spec.profile() for spec in self.inputs}

    def to_dict(self) -> dict[str, Any]:
        """The manifest entry."""
        return {"inputs": [asdict(spec) for spec in self.inputs], "outputs": [asdict(spec) for spec in self.outputs]}

    @classmethod
    def from_dict(cls, part: str, entry: Mapping[str, Any]) -> "Signature":
        """Read a manifest entry, or raise BundleError when it is not one."""
        try:
            inputs, outputs = (tuple(map(TensorSpec.from_dict, entry[side])) for side in ("inputs", "outputs"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"manifest: the signature of {part} is malformed ({error}); build it again") from error
        return cls(part, inputs, outputs)


@dataclass(frozen=True)
class Sizes:
    """The few numbers that the signatures of a model's parts follow from."""

    depth: int
    dim: int
    text_dim: int
    latent_channels: int = 32
    guidance: bool = False
    sample_size: int = 32  # side of the latent that the model was trained at
    text_kv: str = "float32"  # element type between `caption` and `transformer`; float16 halves what a step reads
    batch: int = 8  # twice the pictures made at once, because guidance needs two branches


def signatures(sizes: Sizes) -> dict[str, Signature]:
    """Every part's signature.

    Apart from `text_kv` all numbers between parts are float32: numpy has no bfloat16.
    """
    batch = Axis("batch", 1, 2, max(2, sizes.batch))
    tokens = Axis("tokens", 1, 32, 512)
    rows = Axis("rows", 1, 64, 513)  # BOS and the tokens
    height, width = (_side(name, sizes.sample_size) for name in ("height", "width"))

    latent = TensorSpec("latent", "float32", (batch, sizes.latent_channels, height, width))
    image_sides = (height.times(COMPRESSION, "image_height"), width.times(COMPRESSION, "image_width"))
    image = TensorSpec("image", "uint8", (batch, *image_sides, 3))
    text = TensorSpec("text", "float32", (batch, rows, sizes.text_dim))
    text_kv = TensorSpec("text_kv", sizes.text_kv, (sizes.depth, 2, batch, rows, sizes.dim))
    guidance = (TensorSpec("guidance", "float32", (batch,)),) if sizes.guidance else ()

    parts: tuple[tuple[str, Sequence[TensorSpec], TensorSpec], ...] = (
        (
            "text_encoder",
            (
                TensorSpec("input_ids", "int64", (batch, tokens)),
                TensorSpec("text_mask", "bool", (batch, tokens)),
                TensorSpec("instructed", "bool", (batch,)),
            ),
            text,
        ),
        ("caption", (text,), text_kv),
        (
            "transformer",
            (
                latent,
                TensorSpec("timestep", "float32", (batch,)),
                text_kv,
                TensorSpec("text_mask", "bool", (batch, rows)),
                *guidance,
            ),
            TensorSpec("velocity", "float32", latent.shape),
        ),
        ("decoder", (latent,), image),
        ("encoder", (image,), latent),
    )
    return {name: Signature(name, tuple(inputs), (output,)) for name, inputs, output in parts}


def _side(name: str, sample_size: int) -> Axis:
    """A latent's side: from a quarter of the trained one to the longest of Sana's 4:1 formats."""
    return Axis(name, max(1, sample_size // 4), sample_size, 2 * sample_size)


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is not a positive whole number")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError(f"{value!r} is not a name")
    return value


def _axis(entry: Mapping[str, Any]) -> Axis:
    bounds = {field.name: _positive(entry[field.name]) for field in fields(Axis) if field.name != "name"}
    if not bounds["min"] <= bounds["optimum"] <= bounds["max"]:
        raise ValueError(f"axis {entry['name']!r} has its optimum outside its bounds")
    return Axis(_name(entry["name"]), **bounds)
