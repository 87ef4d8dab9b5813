"""The manifest: everything a bundle says about itself, as frozen values; format 1.

`parse` refuses what is not exactly this; `dump` writes the one canonical text. docs/bundle-format.md explains it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from sana_runtime.errors import BundleError
from sana_runtime.json_schema import json_schema
from sana_runtime.names import DATA, FILE, GRAPH, LICENCE
from sana_runtime.rules import Choice, Keys, Length, Range, Text
from sana_runtime.signature import COMPRESSION, DTYPES, PARTS, Axis, Signature, TensorSpec
from sana_runtime.solver import SHIFTS, SOLVERS
from sana_runtime.strict import WRITTEN, Refinements, load
from sana_runtime.strict import dump as canonical

__all__ = [
    "FORMAT",
    "INT8_CONVOLUTIONS",
    "MANIFEST",
    "Defaults",
    "FileEntry",
    "GoldenRecord",
    "Manifest",
    "Part",
    "PreviewMap",
    "Source",
    "dump",
    "parse",
    "schema",
]

FORMAT = 1
MANIFEST = "manifest.json"
LARGEST = 4 << 20  # bytes of a manifest
REQUIRED_PARTS = ("text_encoder", "caption", "transformer", "decoder")
REQUIRED_FILES = ("tokenizer.json", "prompt.json")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")

Digest = Annotated[str, Text(r"[0-9a-f]{64}", "64 hexadecimal digits in lower case")]
UNSEALED = "0" * 64  # what stands in the place of the manifest's own digest while that is computed

Name = Annotated[str, Text(r"[A-Za-z0-9][A-Za-z0-9._+ -]{0,99}", "a short name")]
Identifier = Text(r"[A-Za-z_][A-Za-z0-9_]{0,99}", "an identifier")
Pixels = Annotated[int, Range(COMPRESSION, 65536)]
Guidance = Annotated[float, Range(0, 1000)]
Steps = Annotated[int, Range(1, 1000)]
SolverName = Annotated[str, Choice(tuple(SOLVERS))]
Precision = Annotated[str, Choice(PRECISIONS)]


@dataclass(frozen=True)
class FileEntry:
    """Length and digest of one file."""

    size: int
    sha256: Digest


@dataclass(frozen=True)
class Source:
    """Where a part's weights come from, and under which terms they may be used."""

    repository: str
    revision: str
    licence: str
    licence_files: Annotated[tuple[Annotated[str, LICENCE], ...], Length(0, 20)] = ()


INT8_CONVOLUTIONS = "+int8-convolutions"
"""At the end of a scheme: OpenVINO may compute the graph's residual convolutions in INT8; others run it as it is."""

INT8_WEIGHTS = "int8-weights"
"""The scheme of a part whose weights alone are in INT8."""


def reads_in_place(part: str, precision: str, scheme: str) -> bool:
    """Whether a CPU multiplies by a part's weights as they lie in their file.

    Text parts run once for a prompt: packing weights for faster products takes longer than the products.
    """
    return scheme == INT8_WEIGHTS or (part == "caption" and precision == "fp32")


@dataclass(frozen=True)
class Part:
    """One graph: what it takes and gives, how precisely it computes, where its weights come from."""

    file: Annotated[str, GRAPH]
    precision: Precision
    scheme: Name  # the number format by its exact name, such as int8-channel-token
    source: Source
    inputs: Annotated[tuple[TensorSpec, ...], Length(1, 16)]
    outputs: Annotated[tuple[TensorSpec, ...], Length(1, 16)]
    kept_float: Annotated[dict[str, str], Keys(Text(r"[A-Za-z0-9_./:-]{1,200}", "a layer's name"), 5000)] = field(
        default_factory=dict
    )  # layers that stay float, each with the reason

    @property
    def signature(self) -> Signature:
        """Inputs and outputs, as the runtime checks them."""
        return Signature(self.file.removesuffix(".onnx"), self.inputs, self.outputs)

    @property
    def half_products(self) -> bool:
        """Whether an engine may multiply in 16 bits."""
        return self.precision in ("bf16", "fp16")

    @property
    def int8_convolutions(self) -> bool:
        """Whether OpenVINO may compute residual convolutions in INT8."""
        return self.scheme.endswith(INT8_CONVOLUTIONS)

    @property
    def in_place(self) -> bool:
        """Whether a CPU reads the weights where they lie."""
        return reads_in_place(self.signature.part, self.precision, self.scheme)


@dataclass(frozen=True)
class Defaults:
    """How the model is meant to be sampled. SCM has no flow shift, the others must have one."""

    solver: SolverName
    steps: Steps
    guidance: Guidance
    size: tuple[Pixels, Pixels]  # height, width
    shift: Annotated[float, Range(*SHIFTS)] | None = None


@dataclass(frozen=True)
class GoldenRecord:
    """One picture that the reference painted, kept so that any backend can be held against it.

    `latent` holds the final latent, float32 (channels, height / 32, width / 32), and `picture` the pixels, uint8
    (height, width, 3), both little-endian and row by row.
    """

    prompt: str
    negative: str
    seed: int
    size: tuple[Pixels, Pixels]  # height, width
    solver: SolverName
    steps: Steps
    guidance: Guidance
    latent: Annotated[str, DATA]
    picture: Annotated[str, DATA]
    least_psnr: Annotated[float, Range(10, 200)]  # decibels that a right backend reaches at this precision


@dataclass(frozen=True)
class PreviewMap:
    """The linear map from a latent's channels to colours of 0 to 255."""

    weight: Annotated[tuple[tuple[float, float, float], ...], Length(1, 256)]
    bias: tuple[float, float, float]


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says about itself."""

    model: Name
    producer: Name  # program and version
    precision: Precision
    defaults: Defaults
    parts: Annotated[dict[str, Part], Keys(Choice(PARTS), len(PARTS), REQUIRED_PARTS)]
    files: Annotated[dict[str, FileEntry], Keys(FILE, 500, REQUIRED_FILES)]
    golden: Annotated[tuple[GoldenRecord, ...], Length(0, 64)] = ()
    preview: PreviewMap | None = None
    waived: Annotated[tuple[str, ...], Length(0, 100)] = ()  # limits of the quality gate it was published in spite of
    format: Annotated[int, Range(FORMAT, FORMAT)] = FORMAT
    sha256: Digest = field(default=UNSEALED, compare=False, metadata=WRITTEN)  # of the text as it was read

    @property
    def latent(self) -> TensorSpec:
        """The latent that the transformer takes: (batch, channels, height, width). Its axes say what can be painted."""
        return next(spec for spec in self.parts["transformer"].inputs if spec.name == "latent")

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        channels = self.latent.shape[1]
        assert isinstance(channels, int), "parse() sees to this"
        return channels

    def paints(self, size: tuple[int, int]) -> bool:
        """Whether pictures of (height, width) pixels can be painted."""
        axes = (Axis("", side, side, side) if isinstance(side, int) else side for side in self.latent.shape[2:])
        return all(axis.times(COMPRESSION, "").accepts(side) for axis, side in zip(axes, size, strict=True))


REFINEMENTS: Refinements = {
    (TensorSpec, "name"): Identifier,
    (TensorSpec, "dtype"): Choice(DTYPES),
    (TensorSpec, "shape"): Length(1, 8),
    (Axis, "name"): Identifier,
    **{(Axis, bound): Range(1, 2**31) for bound in ("min", "optimum", "max", "multiple")},
}


def parse(content: bytes, where: str = MANIFEST) -> Manifest:
    """The manifest in `content`; BundleError names the first place that is wrong, as a JSON path."""
    if len(content) > LARGEST:
        raise BundleError(f"{where} is {len(content)} bytes, at most {LARGEST} are allowed; build the bundle again")
    manifest = load(Manifest, content, where, REFINEMENTS)
    for complaint in complaints(manifest):
        raise BundleError(f"{where}: {complaint}; build the bundle again")
    if _digest(content, manifest.sha256) != manifest.sha256:
        raise BundleError(f"{where} changed since it was packed; build the bundle again")
    return manifest


def dump(manifest: Manifest) -> bytes:
    """The canonical text of a manifest that `parse` accepts; the same manifest gives the same bytes."""
    unsealed = canonical(replace(manifest, sha256=UNSEALED))
    content = canonical(replace(manifest, sha256=_digest(unsealed, UNSEALED)))
    parse(content)
    return content


def _digest(content: bytes, own: str) -> str:
    """The sha256 of a manifest's text, with zeros wherever its `own` digest stands."""
    return hashlib.sha256(content.replace(own.encode(), UNSEALED.encode())).hexdigest()


def schema() -> dict[str, Any]:
    """The published JSON Schema. What it cannot say, the agreement between entries, is in `complaints`."""
    return {"title": f"Manifest of a sana-export bundle, format {FORMAT}", **json_schema(Manifest, REFINEMENTS)}


def complaints(manifest: Manifest) -> Iterator[str]:
    """Where entries of a well-formed manifest disagree with each other."""
    yield from _about_files(manifest)
    yield from _about_tensors(manifest)
    yield from _about_sampling(manifest)
    for i, record in enumerate(manifest.golden):
        yield from _about_golden(manifest, record, f"$.golden[{i}]")


def _about_files(manifest: Manifest) -> Iterator[str]:
    folded: dict[str, str] = {}
    for name in manifest.files:
        other = folded.setdefault(name.lower(), name)
        if other != name:
            yield f"$.files has {other!r} and {name!r}, which some systems take for one file"
    used: dict[str, str] = {}
    for name, part in manifest.parts.items():
        if part.file not in manifest.files:
            yield f"$.parts.{name}.file is {part.file!r}, which $.files does not have"
        if used.setdefault(part.file, name) != name:
            yield f"$.parts.{name}.file is {part.file!r}, which part {used[part.file]} uses already"
        for licence in part.source.licence_files:
            if licence not in manifest.files:
                yield f"$.parts.{name}.source.licence_files names {licence!r}, which $.files does not have"


def _about_tensors(manifest: Manifest) -> Iterator[str]:
    for name, part in manifest.parts.items():
        for side, specs in (("inputs", part.inputs), ("outputs", part.outputs)):
            yield from _about_specs(specs, f"$.parts.{name}.{side}")
    latents = [spec for spec in manifest.parts["transformer"].inputs if spec.name == "latent"]
    if not latents or len(latents[0].shape) != 4 or not isinstance(latents[0].shape[1], int):
        yield "$.parts.transformer.inputs has no latent of four dimensions, the second of them fixed"


def _about_specs(specs: tuple[TensorSpec, ...], path: str) -> Iterator[str]:
    if len({spec.name for spec in specs}) < len(specs):
        yield f"{path} has the same name twice"
    for i, spec in enumerate(specs):
        try:
            TensorSpec.from_dict(asdict(spec))
        except (ValueError, TypeError) as error:
            yield f"{path}[{i}]: {error}"


def _about_sampling(manifest: Manifest) -> Iterator[str]:
    defaults = manifest.defaults
    if not manifest.paints(defaults.size):
        yield "$.defaults.size is a size that the transformer does not take"
    if (defaults.shift is None) is not (defaults.solver == "scm"):
        yield f"$.defaults.shift must be {'absent' if defaults.solver == 'scm' else 'there'} for {defaults.solver}"
    if manifest.preview is not None and len(manifest.preview.weight) != manifest.channels:
        yield f"$.preview.weight has {len(manifest.preview.weight)} rows, a latent has {manifest.channels} channels"


def _about_golden(manifest: Manifest, record: GoldenRecord, path: str) -> Iterator[str]:
    height, width = record.size
    if not manifest.paints(record.size):
        yield f"{path}.size is a size that the transformer does not take"
    floats = manifest.channels * (height // COMPRESSION) * (width // COMPRESSION)
    expected = {record.latent: 4 * floats, record.picture: height * width * 3}
    for name, size in expected.items():
        if name not in manifest.files or manifest.files[name].size != size:
            yield f"{path} needs {name!r} of {size} bytes in $.files"
