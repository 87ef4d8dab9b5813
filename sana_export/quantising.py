"""From a float bundle to an INT8 bundle that was held against it, with a report; no checkpoint and no torch needed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from sana_calibration.gate import Limits, enforce
from sana_calibration.loaded import source_key
from sana_runtime.bundle import Bundle, open_bundle, reseal, seal
from sana_runtime.compiled_models import nothing_kept
from sana_runtime.errors import BusyError, UsageError
from sana_runtime.manifest import INT8_WEIGHTS, Manifest
from sana_runtime.publish import publishing

from sana_export.cache import cache_folder
from sana_export.decoder_trial import DECODER
from sana_export.findings import NARROW, Findings, Outcome
from sana_export.int8_stages import Calibration, Places
from sana_export.plans import Plans, make_plans
from sana_export.replay import held_to
from sana_export.report import verdict_of, write_report
from sana_export.steps import FINDING, BuildStep, OnBuildStep
from sana_export.text_trial import PART, graph_bytes

__all__ = ["Int8Settings", "calibrate", "write_int8"]

SCHEME = "int8-channel-token"
BUDGET = 0.1  # by which finished latents of the trial may move, relative to their size
ROUNDS = 4  # of the gate, each with as much less movement as the last one was over its limits
LEAST_PSNR = 20.0  # of golden pictures, which the float reference painted; the gate asks for more
FORCED_PSNR = 10.0
SHARES = {
    "record": (0.0, 0.4),
    "smooth": (0.4, 0.45),
    "sensitivity": (0.45, 0.7),
    "gate": (0.7, 0.85),
    "speed": (0.85, 0.87),
    "text": (0.87, 0.94),
    "decoder": (0.94, 0.95),
}
LATER = (0.95, 1.0)


@dataclass(frozen=True)
class Int8Settings:
    """What the caller chose; None means what suits the model."""

    prompts: Path | None = None
    samples: int | None = None
    force: bool = False  # publish also what fails the gate


def calibrate(
    source: Path,
    output: Path,
    settings: Int8Settings | None = None,
    on_step: OnBuildStep = lambda step: None,
) -> Bundle:
    """Make the INT8 bundle of the fp32 bundle at `source`; what was at `output` goes only when the new one is whole."""
    bundle = open_bundle(source)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with publishing(output) as stage:
        write_int8(bundle, stage, settings or Int8Settings(), on_step)
    on_step(BuildStep("done", 1.0, str(output)))
    return open_bundle(output)


def write_int8(bundle: Bundle, stage: Path, settings: Int8Settings, on_step: OnBuildStep) -> None:
    """Fill and seal the empty folder `stage`; QualityError when the gate is not passed, and not forced."""
    _refuse(bundle)
    plans = make_plans(bundle, settings.prompts, settings.samples)
    for finding in plans.findings:
        on_step(BuildStep(FINDING, 0.0, finding))

    furthest = 0.0

    def tell(stage: str, fraction: float, message: str) -> None:
        nonlocal furthest  # a further round of the gate is no step back
        first, last = SHARES.get(stage, LATER)
        furthest = max(furthest, first + (last - first) * fraction)
        on_step(BuildStep(stage, furthest, message))

    with nothing_kept(), _cache(plans.recording.key(source_key(bundle))) as cache, _scratch(stage) as scratch:
        calibration = Calibration(bundle, plans, Places(cache, scratch, stage), tell)
        findings = _find(calibration, bundle, plans, settings)
    tell("verify", 0.5, "painting the golden pictures with the INT8 bundle")
    _finish(findings, stage)
    on_step(BuildStep(FINDING, furthest, f"{verdict_of(findings)}; see report.html in the bundle"))


def _refuse(bundle: Bundle) -> None:
    scheme = bundle.manifest.parts["transformer"].scheme
    if scheme != "float32":
        raise UsageError(
            f"{bundle.path}: its transformer is {scheme}; calibration starts from float32, build one with "
            "--precision fp32"
        )


@contextmanager
def _cache(key: str) -> Iterator[Path]:
    """The private folder in which this calibration is kept; BusyError when another process works in it."""
    folder = cache_folder() / "calibration" / key[:32]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield folder
    except Timeout:
        raise BusyError("another build calibrates the same model on the same prompts; wait for it") from None


@contextmanager
def _scratch(stage: Path) -> Iterator[Path]:
    """A folder that is gone before the bundle is sealed; killed, it goes with the stage."""
    folder = stage / "scratch"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def _find(calibration: Calibration, bundle: Bundle, plans: Plans, settings: Int8Settings) -> Findings:
    calibration.write_caption()
    outcome = _settle(calibration)
    if not settings.force:
        enforce(outcome.evidence, Limits())
    products = outcome.quantised.products
    speed = calibration.speed(products)
    text = None if outcome.evidence.complaints(Limits()) else calibration.text(products)
    if text is not None and text.shipped:
        outcome = replace(outcome, evidence=calibration.evidence(products, text=True))
    return Findings(
        bundle=bundle,
        plans=plans,
        choices=calibration.choices,
        outcome=outcome,
        complaints=outcome.evidence.complaints(Limits()),
        speed=speed,
        float_bytes=graph_bytes(bundle.graph("transformer")) // 2,
        int8_bytes=graph_bytes(calibration.transformer),
        text=text,
        decoder=calibration.decoder(),
    )


def _settle(calibration: Calibration) -> Outcome:
    """Leave ever more layers in float, worst first, until the gate is passed or the rounds are over."""
    budget = BUDGET
    for _ in range(ROUNDS):
        verdict, effects = calibration.verdict(budget)
        quantised = calibration.write_transformer(verdict.products)
        outcome = Outcome(verdict, effects, quantised, calibration.evidence(verdict.products))
        if not outcome.evidence.complaints(Limits()) or not verdict.products:
            break
        budget = verdict.error / outcome.evidence.excess(Limits())
    return outcome


def _finish(findings: Findings, stage: Path) -> None:
    """Copy what stays as it is, report, and seal."""
    source = findings.bundle
    if not findings.shipped:
        for part in ("caption", "transformer"):
            for file in stage.glob(f"{part}.*"):
                file.unlink()
    for name in source.manifest.files:
        if not (stage / name).exists() and not name.startswith("report."):
            (stage / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source.file(name), stage / name)
    write_report(findings, stage)
    manifest = _manifest(findings)
    sealed = seal(stage, manifest)
    reseal(sealed, held_to(manifest, stage, FORCED_PSNR if findings.complaints else LEAST_PSNR))


def _manifest(findings: Findings) -> Manifest:
    """The float bundle's, with the transformer and the text encoder as they are now."""
    manifest = findings.bundle.manifest
    text = manifest.parts[PART]
    if findings.text is not None and findings.text_shipped:
        left = dict.fromkeys(findings.text.quantised.left, NARROW)
        text = replace(text, scheme=INT8_WEIGHTS, kept_float=left)
    decoder = manifest.parts[DECODER]
    decoder = replace(decoder, scheme=findings.decoder.scheme(decoder.scheme))
    transformer = replace(manifest.parts["transformer"], kept_float=findings.kept_float)
    if findings.shipped:
        transformer = replace(transformer, precision="int8", scheme=SCHEME)
    return replace(
        manifest,
        precision="int8",
        parts={**manifest.parts, "transformer": transformer, PART: text, DECODER: decoder},
        golden=tuple(replace(record, least_psnr=FORCED_PSNR) for record in manifest.golden),  # until it is replayed
        waived=findings.complaints if findings.shipped else (),
    )
