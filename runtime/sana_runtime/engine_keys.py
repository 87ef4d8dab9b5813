"""What the engine of a bundle's part is kept under: builder and runtime must agree on it."""

from dataclasses import replace

from sana_runtime.bundle import Bundle
from sana_runtime.engine_cache import ALL_SIZES, EngineKey, graph_digest
from sana_runtime.engine_shapes import Span, engine_signature, has_sizes, profile_digest
from sana_runtime.onnx_operators import operators

__all__ = ["engine_files", "engine_key", "fused"]

ATTENTION = "ReluLinearAttention"  # the operator that the plugin computes


def engine_files(bundle: Bundle, part: str) -> tuple[str, ...]:
    """Names of the files that the engine of `part` is built from: the graph and, where it has any, its data."""
    graph = bundle.manifest.parts[part].file
    data = graph.removesuffix(".onnx") + ".data"
    return (graph, data) if data in bundle.manifest.files else (graph,)


def engine_key(
    bundle: Bundle,
    part: str,
    library: tuple[str, str],
    capabilities: tuple[int, ...],
    *,
    plugin: bool = True,
    span: Span | None = None,
) -> EngineKey:
    """The key for `library` (its module's name and its version); `plugin` and `span` count where the part has them."""
    described, (name, version) = bundle.manifest.parts[part], library
    return EngineKey(
        part=part,
        graph=graph_digest(bundle.manifest.files[file].sha256 for file in engine_files(bundle, part)),
        library=name,
        version=version,
        capabilities=tuple(sorted(capabilities)),
        precision=described.precision,
        profile=profile_digest(engine_signature(described.signature, span).profiles()),
        plugin=plugin and bool(operators(bundle.graph(part))[ATTENTION]),
        sizes=str(span) if span and has_sizes(described.signature) else ALL_SIZES,
    )


def fused(key: EngineKey) -> EngineKey:
    """The key of the same engine with the Mix-FFN's middle as a plugin; the key itself where there can be none."""
    can_be = key.plugin and key.part == "transformer" and key.precision == "int8"
    return replace(key, fused_mix_ffn=True) if can_be else key
