"""The bundles that a server paints from, each under a name of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sana_runtime.bundle import open_bundle
from sana_runtime.manifest import Manifest
from sana_runtime.pipeline import Pipeline
from sana_runtime.signature import COMPRESSION, Axis
from sana_runtime.solver import SOLVERS

from sana_export.serve.bins import bins

__all__ = ["Model", "describe", "open_models"]


@dataclass(frozen=True)
class Model:
    """One bundle, ready to paint."""

    name: str
    manifest: Manifest
    digest: str
    pipeline: Pipeline


def open_models(paths: Sequence[Path], device: str) -> dict[str, Model]:
    """The models by name, in the order given: a bundle's model and precision, numbered where two are alike."""
    models: dict[str, Model] = {}
    for path in paths:
        bundle = open_bundle(path)
        plain = f"{bundle.manifest.model}-{bundle.manifest.precision}".replace(" ", "-")
        name, number = plain, 2
        while name in models:
            name, number = f"{plain}-{number}", number + 1
        models[name] = Model(name, bundle.manifest, bundle.digest, Pipeline.open(path, device=device))
    return models


def describe(model: Model) -> dict[str, Any]:
    """What a client may ask of the model."""
    manifest = model.manifest
    usual = manifest.defaults
    height, width = (_side(axis) for axis in manifest.latent.shape[2:])
    return {
        "id": model.name,
        "precision": manifest.precision,
        "bundle": model.digest,
        "previews": manifest.preview is not None,
        "solvers": list(SOLVERS),
        "defaults": {
            "size": f"{usual.size[1]}x{usual.size[0]}",
            "steps": usual.steps,
            "guidance": usual.guidance,
            "solver": usual.solver,
        },
        "height": height,
        "width": width,
        "sizes": [f"{width}x{height}" for height, width in bins(manifest)],
    }


def _side(side: int | Axis) -> dict[str, int]:
    """Pixels along one side."""
    axis = Axis("", side, side, side) if isinstance(side, int) else side
    pixels = axis.times(COMPRESSION, "")
    return {"min": pixels.min, "max": pixels.max, "multiple": pixels.multiple}
