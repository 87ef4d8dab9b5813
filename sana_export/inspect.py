"""What is in a bundle, for people and for programs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sana_runtime.bundle import Bundle, open_bundle
from sana_runtime.onnx_operators import operators

from sana_export.layers import layers

__all__ = ["describe", "render"]


def describe(path: Path) -> dict[str, Any]:
    """Everything that `inspect` shows."""
    bundle = open_bundle(path)
    manifest = bundle.manifest
    return {
        "bundle": str(path),
        "digest": bundle.digest,
        "model": manifest.model,
        "precision": manifest.precision,
        "bytes": bundle.size,
        "defaults": {
            "solver": manifest.defaults.solver,
            "steps": manifest.defaults.steps,
            "guidance": manifest.defaults.guidance,
            "size": "x".join(str(side) for side in reversed(manifest.defaults.size)),
        },
        "parts": {name: _part(bundle, name) for name in manifest.parts},
        "golden": [record.least_psnr for record in manifest.golden],
        "waived": list(manifest.waived),
        "files": {name: asdict(entry) for name, entry in manifest.files.items()},
    }


def _part(bundle: Bundle, name: str) -> dict[str, Any]:
    part = bundle.manifest.parts[name]
    counted = operators(bundle.graph(name))
    files = [part.file, part.file.replace(".onnx", ".data")]
    return {
        "precision": part.precision,
        "scheme": part.scheme,
        "bytes": sum(bundle.manifest.files[file].size for file in files if file in bundle.manifest.files),
        "nodes": sum(counted.values()),
        "operators": dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))),
        "licence": part.source.licence,
        "kept_float": dict(part.kept_float),
        "layers": [asdict(layer) for layer in layers(bundle.graph(name))],
    }


def render(described: dict[str, Any]) -> str:
    """The description as a page of text."""
    defaults = described["defaults"]
    lines = [
        f"{described['bundle']}: {described['model']}, {described['precision']}, {described['bytes'] / 1e6:.1f} MB",
        f"digest   {described['digest']}",
        "defaults {solver}, {steps} steps, guidance {guidance}, {size}".format(**defaults),
        f"golden   {len(described['golden'])} pictures",
        "",
        f"{'part':<14}{'precision':<11}{'MB':>9}{'nodes':>7}  most frequent operators",
    ]
    for name, part in described["parts"].items():
        often = ", ".join(f"{operator} {count}" for operator, count in list(part["operators"].items())[:4])
        lines.append(f"{name:<14}{part['precision']:<11}{part['bytes'] / 1e6:>9.1f}{part['nodes']:>7}  {often}")
    licences = sorted({part["licence"] for part in described["parts"].values()})
    return "\n".join([*lines, "", f"licence  {', '.join(licences)}"])
