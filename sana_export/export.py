"""From a loaded checkpoint to the ONNX parts of a bundle."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sana_runtime.errors import UsageError
from sana_runtime.signature import PARTS, Signature, Sizes, signatures

from sana_export.passes.run import PassReport, run_passes
from sana_export.precision import Precision, dtype_of, opset_of, stored_as, text_kv_dtype
from sana_export.saving import data_file, save_graph

if TYPE_CHECKING:
    from sana_reference.config import SanaConfig

    from sana_export.tracing.parts import Source

__all__ = ["ExportedPart", "Progress", "export_parts", "sizes_of"]


@dataclass(frozen=True)
class Progress:
    """How far the export of one part is."""

    part: str
    fraction: float
    message: str


@dataclass(frozen=True)
class ExportedPart:
    """One part on disk, and how it came to be."""

    name: str
    graph: Path
    signature: Signature
    dtype: str
    passes: tuple[PassReport, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """The graph and, where it has any, its weights."""
        return tuple(path for path in (self.graph, data_file(self.graph)) if path.is_file())


OnProgress = Callable[[Progress], None]


def sizes_of(config: "SanaConfig", precision: Precision = Precision.FP32) -> Sizes:
    """The numbers that the parts' signatures follow from."""
    return Sizes(
        depth=config.depth,
        dim=config.dim,
        text_dim=config.text_dim,
        latent_channels=config.latent_channels,
        guidance=config.guidance_embedding,
        sample_size=config.sample_size,
        text_kv=text_kv_dtype(precision),
    )


def export_parts(
    source: "Source",
    folder: Path,
    precision: Precision = Precision.FP32,
    *,
    parts: Sequence[str] = PARTS,
    prefix: Sequence[int] = (),
    on_progress: OnProgress = lambda progress: None,
) -> dict[str, ExportedPart]:
    """Write `parts` of `source` to `folder`, one network after the other; one copy of its weights is in memory.

    `prefix` is `PromptRules.prefix`: the tokens, BOS first, that the text encoder remembers as constants.
    What `on_progress` raises stops the export and leaves no half file.
    """
    _check(parts, prefix)
    folder.mkdir(parents=True, exist_ok=True)
    exported = (
        part
        for network, owned in _networks(parts)
        for part in _export_network(source, network, owned, folder, (precision, tuple(prefix)), on_progress)
    )
    return {part.name: part for part in exported}


def _check(parts: Sequence[str], prefix: Sequence[int]) -> None:
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not a part; choose from {', '.join(PARTS)}")
    if "text_encoder" in parts and not prefix:
        raise UsageError("the text encoder needs a prefix of at least BOS; pass PromptRules.prefix")


def _networks(parts: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    from sana_export.tracing.parts import NETWORKS

    for network, gives in NETWORKS.items():
        owned = [part for part in gives if part in parts]
        if owned:
            yield network, owned


def _export_network(
    source: "Source",
    network: str,
    parts: Sequence[str],
    folder: Path,
    choices: tuple[Precision, tuple[int, ...]],
    on_progress: OnProgress,
) -> Iterator[ExportedPart]:
    from sana_export.tracing.parts import load_network, part_module
    from sana_export.tracing.trace import forget, trace

    precision, prefix = choices
    dtype = dtype_of(parts[0], precision)
    sizes = sizes_of(source.config, precision)
    on_progress(Progress(parts[0], 0.0, f"reading the {network.replace('_', ' ')}"))
    loaded = load_network(source, network, dtype)
    for part in parts:
        signature = signatures(sizes)[part]
        on_progress(Progress(part, 0.1, "tracing"))
        model = trace(part_module(part, loaded, prefix, sizes.text_kv), signature, opset_of(dtype))
        traced = tuple(model.graph.initializers.values())
        on_progress(Progress(part, 0.5, "simplifying the graph"))
        stored = stored_as(part, precision)
        passes = run_passes(model, part, stored if stored != dtype else None)
        graph = folder / f"{part}.onnx"

        def report(share: float, part: str = part) -> None:
            on_progress(Progress(part, 0.6 + 0.4 * share, "writing"))

        save_graph(model, graph, report)
        forget((*traced, *model.graph.initializers.values()))
        yield ExportedPart(part, graph, signature, dtype, passes)
    del loaded
    gc.collect()  # what was traced is full of cycles, and holds the network: the text encoder's 5 GB and more
