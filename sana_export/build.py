"""From a checkpoint to a published bundle: export, pack, paint the golden record, seal."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sana_calibration.prompts import read_prompts
from sana_runtime.bundle import Bundle, open_bundle, reseal, seal
from sana_runtime.compiled_models import nothing_kept
from sana_runtime.errors import BundleError, MemoryLimitError, UsageError
from sana_runtime.manifest import Defaults, GoldenRecord, Manifest, Part
from sana_runtime.names import LICENCES
from sana_runtime.prompt import PromptRules
from sana_runtime.publish import publishing
from sana_runtime.signature import COMPRESSION, PARTS, signatures
from sana_runtime.tokenizer import Tokenizer

from sana_export.export import ExportedPart, OnProgress, Progress, export_parts, sizes_of
from sana_export.origin import Origin, Terms, identity, terms_of
from sana_export.plan import Habits, goes_side_by_side, plan
from sana_export.precision import Precision, dtype_of, scheme_of
from sana_export.replay import held_to
from sana_export.side_by_side import export_side_by_side
from sana_export.steps import FINDING, BuildStep, OnBuildStep

if TYPE_CHECKING:
    from sana_reference.checkpoint import Checkpoint

    from sana_export.quantising import Int8Settings
    from sana_export.tracing.golden import GoldenPicture

__all__ = ["BuildStep", "OnBuildStep", "build"]

PRODUCER = f"sana-export {version('sana-export')}"

GOLDEN = (("a red circle above a blue square", 1), ("three yellow stars on a dark background", 2))
GOLDEN_SIDE = 8  # latent positions, that is 256 pixels, or what the model was trained at where that is less
GOLDEN_STEPS = 8

# A bundle whose pictures are farther from the reference's, in decibels, was not exported as it should be.
LEAST_PSNR = {Precision.FP32: 50.0, Precision.FP16: 20.0, Precision.BF16: 20.0, Precision.INT8: 20.0}
UNJUDGED = 10.0  # stands in the golden record until it is known what this precision reaches
FLOAT_SHARE = 0.75  # of an INT8 build: exporting and checking the float parts that calibration starts from


def build(
    model: str | Path | Origin,
    output: Path,
    precision: Precision = Precision.FP32,
    *,
    resume: bool = False,
    int8: "Int8Settings | None" = None,
    on_step: OnBuildStep = lambda step: None,
) -> Bundle:
    """Build the bundle of `model` at `output`; what was there before is replaced only when the new one is whole.

    With `resume`, the parts that an interrupted build of the same checkpoint and precision finished are kept. What
    calibration for INT8 finds out is always kept, whether or not the build is finished. MemoryLimitError, before
    anything is touched, when memory or disk cannot be enough, unless `int8.force` says to go on all the same.
    """
    _check(precision, int8)
    origin = model if isinstance(model, Origin) else Origin(str(model))
    on_step(BuildStep("checkpoint", 0.0, f"reading {origin.model}"))
    checkpoint, terms = _found(origin)
    output = output.absolute()  # "." has no name of its own
    _check_room(checkpoint, precision, output, int8, on_step)
    output.parent.mkdir(parents=True, exist_ok=True)
    with publishing(output) as stage:
        work = _work_folder(output, checkpoint, precision, keep=resume)
        if precision is Precision.INT8:
            _write_int8(checkpoint, terms, work, stage, int8, on_step)
        else:
            _write_float(checkpoint, terms, precision, work, stage, on_step)
    shutil.rmtree(work)
    on_step(BuildStep("done", 1.0, str(output)))
    return open_bundle(output)


def _check(precision: Precision, int8: "Int8Settings | None") -> None:
    """Refuse what cannot work before an hour is spent on it."""
    if int8 is None:
        return
    if precision is not Precision.INT8 and (int8.prompts is not None or int8.samples is not None):
        raise UsageError(f"prompts and samples have no effect at {precision.value}; choose int8, or omit them")
    if int8.prompts is not None:
        read_prompts(int8.prompts)


def _check_room(
    checkpoint: "Checkpoint", precision: Precision, output: Path, int8: "Int8Settings | None", on_step: OnBuildStep
) -> None:
    """Refuse a build that memory or disk are too small for; where it is forced, say so and go on."""
    left = sum(file.stat().st_size for folder in _left(output) for file in folder.rglob("*") if file.is_file())
    try:
        plan(checkpoint, precision, Habits.of(checkpoint)).check(output.parent, freed=left)
    except MemoryLimitError as error:
        if int8 is None or not int8.force:
            raise
        on_step(BuildStep(FINDING, 0.0, f"forced: {error}"))


def _write_float(
    checkpoint: "Checkpoint", terms: Terms, precision: Precision, work: Path, stage: Path, on_step: OnBuildStep
) -> None:
    """Export in `work`; pack, check and seal in `stage`, which may be the same folder."""
    rules = PromptRules.derive(Tokenizer(checkpoint.tokenizer))
    exported = _exported(checkpoint, precision, rules, work, _scaled(on_step))
    _copy_files(checkpoint, rules, exported, stage)
    _write_licences(terms, stage)
    on_step(BuildStep("golden", 0.8, "painting the golden record with the reference"))
    manifest = _golden_manifest(checkpoint, _manifest(checkpoint, terms, precision, exported), rules, stage)
    sealed = seal(stage, manifest)
    on_step(BuildStep("verify", 0.9, "painting it again with the bundle"))
    reseal(sealed, held_to(manifest, stage, LEAST_PSNR[precision]))


def _write_int8(
    checkpoint: "Checkpoint",
    terms: Terms,
    work: Path,
    stage: Path,
    int8: "Int8Settings | None",
    on_step: OnBuildStep,
) -> None:
    """Make a float bundle of `work` itself, unless an interrupted build did, and calibrate it into `stage`."""
    from sana_export.quantising import Int8Settings, write_int8

    def first(step: BuildStep) -> None:
        on_step(replace(step, fraction=FLOAT_SHARE * step.fraction))

    def then(step: BuildStep) -> None:
        on_step(replace(step, fraction=FLOAT_SHARE + (1 - FLOAT_SHARE) * step.fraction))

    if not _is_finished(work):
        with nothing_kept():
            _write_float(checkpoint, terms, Precision.INT8, work, work, first)
    write_int8(open_bundle(work), stage, int8 or Int8Settings(), then)


def _is_finished(work: Path) -> bool:
    """Whether an interrupted build came to the end of its float bundle: sealed, whole, and judged by its pictures."""
    try:
        bundle = open_bundle(work)
        bundle.verify()
    except BundleError:
        return False
    return all(record.least_psnr > UNJUDGED for record in bundle.manifest.golden)


def _found(origin: Origin) -> tuple["Checkpoint", Terms]:
    checkpoint = origin.load()
    return checkpoint, terms_of(checkpoint, origin.model)


def _exported(
    checkpoint: "Checkpoint", precision: Precision, rules: PromptRules, work: Path, on_progress: OnProgress
) -> list[ExportedPart]:
    """Every part in `work`: those that are there already are whole, because a graph is published last."""
    missing = [part for part in PARTS if not (work / f"{part}.onnx").is_file()]
    if goes_side_by_side(checkpoint, precision, missing):
        export_side_by_side(checkpoint, work, precision, parts=missing, prefix=rules.prefix, on_progress=on_progress)
    else:
        export_parts(checkpoint, work, precision, parts=missing, prefix=rules.prefix, on_progress=on_progress)
    known = signatures(sizes_of(checkpoint.config, precision))
    return [ExportedPart(part, work / f"{part}.onnx", known[part], dtype_of(part, precision), ()) for part in PARTS]


def _scaled(on_step: OnBuildStep) -> Callable[[Progress], None]:
    """The export's progress, part by part or two at a time, as the build's first four fifths."""
    reached: dict[str, float] = {}

    def report(progress: Progress) -> None:
        reached[progress.part] = progress.fraction
        share = sum(reached.values()) / len(PARTS)
        on_step(BuildStep(progress.part, 0.8 * share, f"{progress.part}: {progress.message}"))

    return report


def _work_folder(output: Path, checkpoint: "Checkpoint", precision: Precision, *, keep: bool) -> Path:
    """Where finished parts wait until the bundle is whole; its name says what they were made from."""
    key = hashlib.sha256(f"{identity(checkpoint)} {precision.value}".encode()).hexdigest()[:12]
    folder = output.with_name(f".{output.name}.parts-{key}")
    for old in _left(output):
        if not keep or old.name != folder.name:
            shutil.rmtree(old)
    folder.mkdir(parents=True, exist_ok=True)
    for half in folder.glob(".*.partial"):  # of a part, whose file may even be there
        shutil.rmtree(half)
    return folder


def _left(output: Path) -> list[Path]:
    """Folders of finished parts that interrupted builds left."""
    return list(output.parent.glob(f".{escape(output.name)}.parts-*"))


def _copy_files(checkpoint: "Checkpoint", rules: PromptRules, exported: Sequence[ExportedPart], stage: Path) -> None:
    """Everything of a bundle but the golden record and the manifest."""
    for part in exported:
        for file in part.files:
            if file.parent != stage:
                shutil.copyfile(file, stage / file.name)
    shutil.copyfile(checkpoint.tokenizer, stage / "tokenizer.json")
    (stage / "prompt.json").write_text(rules.to_json(), encoding="utf-8")


def _write_licences(terms: Terms, stage: Path) -> None:
    for name, text in terms.texts.items():
        (stage / LICENCES).mkdir(exist_ok=True)
        (stage / name).write_text(text, encoding="utf-8")


def _manifest(
    checkpoint: "Checkpoint", terms: Terms, precision: Precision, exported: Sequence[ExportedPart]
) -> Manifest:
    """What the bundle says about itself, before its golden record is painted."""
    solver, config = checkpoint.solver, checkpoint.config
    parts = {part.name: _part(part, precision, terms) for part in exported}
    side = config.sample_size * COMPRESSION
    defaults = Defaults(solver.name, solver.steps, solver.guidance, (side, side), solver.shift)
    return Manifest(config.name, PRODUCER, precision.value, defaults, parts, files={})


def _part(part: ExportedPart, precision: Precision, terms: Terms) -> Part:
    products, scheme = scheme_of(part.name, precision)
    return Part(
        file=part.graph.name,
        precision=products,
        scheme=scheme,
        source=terms.sources[part.name],
        inputs=part.signature.inputs,
        outputs=part.signature.outputs,
    )


def _golden_manifest(checkpoint: "Checkpoint", manifest: Manifest, rules: PromptRules, stage: Path) -> Manifest:
    """Paint the golden record into `stage`, and declare it and the preview."""
    from sana_export.tracing.golden import GoldenRequest, paint_golden

    defaults, side = manifest.defaults, min(GOLDEN_SIDE, checkpoint.config.sample_size)
    sides = [axis.min for _, axis in manifest.latent.axes() if axis.name != "batch"]
    pixels = max(side, *sides) * COMPRESSION
    steps = min(GOLDEN_STEPS, defaults.steps)
    requests = [GoldenRequest(prompt, seed, (pixels, pixels), steps, defaults.guidance) for prompt, seed in GOLDEN]
    pictures, preview = paint_golden(checkpoint, requests, rules)
    records = tuple(_written(picture, defaults.solver, stage) for picture in pictures)
    return replace(manifest, golden=records, preview=preview)


def _written(picture: "GoldenPicture", solver: str, stage: Path) -> GoldenRecord:
    request = picture.request
    latent, pixels = (f"golden-{request.seed}-{kind}.data" for kind in ("latent", "picture"))
    picture.latent.astype("<f4").tofile(stage / latent)
    picture.pixels.tofile(stage / pixels)
    return GoldenRecord(
        prompt=request.prompt,
        negative=request.negative,
        seed=request.seed,
        size=request.size,
        solver=solver,
        steps=request.steps,
        guidance=request.guidance,
        latent=latent,
        picture=pixels,
        least_psnr=UNJUDGED,
    )
