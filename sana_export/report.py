"""The report of a calibration: one value that is written as JSON, and shown as a page."""

import json
import math
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sana_calibration.gate import Limits
from sana_calibration.quantise import SCHEME
from sana_runtime.manifest import INT8_WEIGHTS, Manifest

from sana_export.decoder_trial import DECODER
from sana_export.evidence import png
from sana_export.findings import Findings
from sana_export.report_page import page
from sana_export.speed import Speed
from sana_export.text_trial import PART

__all__ = ["report", "verdict_of", "write_report"]

IDENTICAL = 99.0  # decibels that stand for equal pictures, which have infinitely many
LOUDER = 8  # times that differences are shown

WHY_FLOAT = {
    "caption": "stays float, as in the paper: keys and values of the cross-attention, once a prompt",
    "encoder": "stays float: it has the decoder's layers, and only repainting uses it",
}

Pixels = NDArray[np.uint8]


def write_report(findings: Findings, folder: Path) -> None:
    """Write report.json and report.html."""
    told = report(findings)
    text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page(told, _pictures(findings)), encoding="utf-8")


def report(findings: Findings) -> dict[str, Any]:
    """Everything but the pictures, in JSON's types."""
    manifest, outcome = findings.bundle.manifest, findings.outcome
    return {
        "format": 1,
        "model": manifest.model,
        "producer": manifest.producer,
        "scheme": SCHEME if findings.shipped else "float32",
        "shipped_as_int8": findings.shipped,
        "int8_share": round(outcome.quantised.share, 6) if findings.shipped else 0.0,
        "latents_moved_by": _number(outcome.verdict.error),
        "gate": _gate(findings),
        "calibration": _calibration(findings),
        "size": {"float_16_bit_bytes": findings.float_bytes, "int8_bytes": findings.int8_bytes},
        "speed": _speed(findings),
        "text_encoder": _text(findings),
        "parts": _parts(manifest, findings),
        "products": _products(findings),
    }


def _gate(findings: Findings) -> dict[str, Any]:
    evidence, plan, limits = findings.outcome.evidence, findings.plans.gate, Limits()
    rows = zip(plan.prompts, evidence.psnrs, evidence.ssims, evidence.latent_cosines, strict=True)
    return {
        "passed": not findings.complaints,
        "complaints": list(findings.complaints),
        "limits": vars(limits),
        "median_psnr": _decibels(median(evidence.psnrs)),
        "median_ssim": _number(median(evidence.ssims)),
        "median_latent_cosine": _number(median(evidence.latent_cosines)),
        "velocity_errors": [
            {"timestep": timestep, "median": _number(median(errors)), "worst": _number(max(errors))}
            for timestep, errors in evidence.velocity_errors.items()
        ],
        "pictures": [
            {"prompt": prompt, "seed": plan.seed + i, "psnr": _decibels(a), "ssim": _number(b), "cosine": _number(c)}
            for i, (prompt, a, b, c) in enumerate(rows)
        ],
    }


def _calibration(findings: Findings) -> dict[str, Any]:
    plans = findings.plans
    plan = plans.recording
    return {
        "prompts": list(plan.prompts),
        "prompt_set_sha256": plans.prompts.sha256,
        "findings": list(plans.findings),
        "solver": plan.solver.name,
        "timesteps": [float(timestep) for timestep in plan.solver.timesteps],
        "guidance": plan.guidance.scale,
        "branches": 2 if plan.guidance.scale > 1 else 1,
        "size": list(plan.size),
        "sensitivity": {
            "prompts": len(plans.trial.prompts),
            "steps": len(plans.trial.solver.timesteps),
            "size": list(plans.trial.size),
        },
    }


def _speed(findings: Findings) -> dict[str, Any]:
    return {**_timed(findings.speed), "verdict": verdict_of(findings)}


def _timed(speed: Speed) -> dict[str, Any]:
    return {**vars(speed), "shape": list(speed.shape), "ratio": round(speed.ratio, 3)}


def verdict_of(findings: Findings) -> str:
    """What size and speed say, in a sentence."""
    speed, smaller = findings.speed.ratio, findings.float_bytes / findings.int8_bytes
    told = (
        f"INT8 takes {findings.speed.int8_ms:.3g} ms a step, float {findings.speed.float_ms:.3g} ms "
        f"({speed:.2f} times as fast), and {1 / smaller:.0%} of the bytes of 16-bit floats"
    )
    return told + (": shipped as INT8" if findings.shipped else ": not worth it, so the transformer stays float")


def _parts(manifest: Manifest, findings: Findings) -> list[dict[str, Any]]:
    """Every part, with the exact name of how it computes, and why."""
    return [
        {
            "part": name,
            "scheme": _scheme(findings, name, part.scheme),
            "verdict": _verdict(findings, name),
            "kept_float": findings.kept_float if name == "transformer" else {},
        }
        for name, part in manifest.parts.items()
    ]


def _scheme(findings: Findings, part: str, usual: str) -> str:
    if part == DECODER:
        return findings.decoder.scheme(usual)
    shipped = {"transformer": findings.shipped and SCHEME, PART: findings.text_shipped and INT8_WEIGHTS}
    return shipped.get(part) or usual


def _verdict(findings: Findings, part: str) -> str:
    if part == PART:
        return findings.text.verdict if findings.text else "stays float: the transformer alone fails the gate"
    told = {"transformer": verdict_of(findings), DECODER: findings.decoder.verdict}
    return told.get(part) or WHY_FLOAT[part]


def _text(findings: Findings) -> dict[str, Any] | None:
    """What INT8 weights do to the text encoder; null where they were not tried."""
    trial = findings.text
    if trial is None:
        return None
    return {
        "shipped": trial.shipped,
        "float_16_bit_bytes": trial.float_bytes,
        "int8_bytes": trial.int8_bytes,
        "speed": _timed(trial.speed) if trial.speed else None,
        "error": _number(trial.error),
        "complaints": list(trial.complaints),
    }


def _products(findings: Findings) -> list[dict[str, Any]]:
    """Every product that INT8 was tried for, in the graph's order."""
    outcome = findings.outcome
    return [_product(findings, name, effect) for name, effect in outcome.effects.items()]


def _product(findings: Findings, name: str, effect: float) -> dict[str, Any]:
    choice = findings.choices.get(name)
    smoothing = {
        "rounding_error_plain": _number(choice.plain_error) if choice else None,
        "rounding_error": _number(choice.error) if choice else None,
        "smoothing": f"{choice.observer}, alpha {choice.alpha:g}" if choice and choice.alpha else "none",
    }
    kept = findings.kept_float.get(name, "")
    return {"product": name, "int8": not kept, "effect": _number(effect), **smoothing, "why_float": kept}


def _pictures(findings: Findings) -> list[tuple[str, str, str]]:
    """Float, INT8 and their difference, as PNG in base64."""
    pairs = findings.outcome.evidence.pictures
    return [(png(first), png(second), png(_difference(first, second))) for first, second in pairs]


def _difference(first: Pixels, second: Pixels) -> Pixels:
    apart = np.abs(first.astype(np.int16) - second) * LOUDER
    return np.asarray(np.clip(apart, 0, 255), np.uint8)


def _number(value: float) -> float | None:
    """Six significant digits; None for what is not finite, which JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _decibels(value: float) -> float | None:
    return _number(min(value, IDENTICAL))
