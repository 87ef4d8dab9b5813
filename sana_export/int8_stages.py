"""The stages between a float bundle and an INT8 one; what each found is kept, and taken from there the next time."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from sana_calibration.choose_factors import Choice, choose_factors
from sana_calibration.gate import Contender, Evidence, compare
from sana_calibration.loaded import Loaded, Substitutes
from sana_calibration.quantise import Quantised, quantise
from sana_calibration.record import SAMPLED_INPUT, RecordProgress, record
from sana_calibration.recording_graph import write_recording_graph
from sana_calibration.remembering import recall, remember
from sana_calibration.sensitivity import Effects, Trial, Verdict, fall_back, measure_effects
from sana_calibration.smooth import smooth
from sana_calibration.trial_graph import make_trial_graph, switches
from sana_runtime.bundle import Bundle
from sana_runtime.manifest import INT8_WEIGHTS
from sana_runtime.progress import Clock
from sana_runtime.signature import COMPRESSION

from sana_export.decoder_trial import DECODER, DecoderTrial, try_decoder
from sana_export.evidence import pack, unpack
from sana_export.passes.narrow_weights import narrow_weights
from sana_export.plans import Plans
from sana_export.saving import data_file, save_graph
from sana_export.speed import Speed, measure_speed
from sana_export.steps import time_left
from sana_export.text_trial import PART, TextTrial, try_text, write_text

__all__ = ["Calibration", "Places", "Tell"]

Tell = Callable[[str, float, str], None]  # stage, fraction of it, message


@dataclass(frozen=True)
class Places:
    """Where files go: kept for the next time, gone at the end, and into the new bundle."""

    cache: Path
    scratch: Path
    stage: Path


class Calibration:
    """One float bundle on its way to INT8."""

    def __init__(self, bundle: Bundle, plans: Plans, places: Places, tell: Tell) -> None:
        self._bundle = bundle
        self._plans = plans
        self._places = places
        self._tell = tell
        self._source = Loaded(bundle)
        self._key = plans.recording.key(self._source.model.sha256, plans.half)
        self._tried: Loaded | None = None

    @cached_property
    def choices(self) -> dict[str, Choice]:
        """How each product is smoothed, recorded first where that is not known yet."""
        file, key = self._places.cache / "smoothing.json", self._key
        found = recall(file, key)
        if found is None:
            tokens = self._record()
            self._tell("smooth", 0.0, "choosing how far each product is smoothed")
            made = choose_factors(ir.load(self._bundle.graph("transformer")), tokens)
            found = {name: {**asdict(each), "factors": each.factors.tolist()} for name, each in made.items()}
            remember(file, key, found)
        else:
            self._tell("record", 1.0, f"calibration reused: {len(self._plans.recording.prompts)} prompts")
        return {
            name: Choice(**{**each, "factors": np.array(each["factors"], np.float32)}) for name, each in found.items()
        }

    @property
    def transformer(self) -> Path:
        """Where the INT8 transformer is written."""
        return self._places.stage / "transformer.onnx"

    def write_caption(self) -> None:
        """The caption part that belongs to the smoothed transformer."""
        save_graph(self._smoothed()[1], self._places.stage / "caption.onnx")

    def verdict(self, budget: float) -> tuple[Verdict, Effects]:
        """Which products are INT8 so that finished latents move by no more than `budget`, and what each does alone."""
        file, key = self._kept("verdict", self._plans.trial.key(), budget)
        found = recall(file, key)
        if found is None:
            effects = measure_effects(self._trial, self._places.cache / "effects.json", self._measured)
            found = {"verdict": asdict(fall_back(self._trial, effects, budget)), "effects": effects}
            remember(file, key, found)
        verdict = found["verdict"]
        return Verdict(tuple(verdict["products"]), verdict["left"], verdict["error"]), found["effects"]

    def write_transformer(self, products: Sequence[str]) -> Quantised:
        """The INT8 transformer; what stays float in it has 16-bit weights, as the float parts of the bundle have."""
        transformer, _ = self._smoothed()
        done = quantise(transformer, products)
        narrow_weights(transformer, ir.DataType.FLOAT16)
        save_graph(transformer, self.transformer)
        return done

    def evidence(self, products: Sequence[str], text: bool = False) -> Evidence:
        """What the INT8 transformer paints that was written, beside float; with `text`, the INT8 text encoder, too."""
        plan = self._plans.gate
        file, key = self._kept("gate", plan.key(), sorted(products), *([INT8_WEIGHTS] if text else []))
        found = recall(file, key)
        if found is None:
            self._unload(self._tried)
            written = ("caption", "transformer", *([PART] if text else []))
            graphs = {name: self._places.stage / f"{name}.onnx" for name in written}
            candidate = Loaded(self._bundle, Substitutes(graphs, key), self._source)
            stage, about = ("text", ", text encoder too") if text else ("gate", "")
            self._tell(stage, 0.0, f"painting {len(plan.prompts)} held-out prompts, float and INT8{about}")
            clock = Clock(len(plan.prompts))

            def told(done: int, total: int) -> None:
                message = f"painted {done} of {total} held-out prompts{time_left(clock.left(done))}"
                self._tell(stage, done / total, message)

            found = pack(compare(self._reference, candidate.contender(plan), told))
            remember(file, key, found)
        return unpack(found)

    def speed(self, products: Sequence[str]) -> Speed:
        """Float against INT8, measured once."""
        file, key = self._kept("speed", sorted(products))
        found = recall(file, key)
        if found is None:
            self._unload(self._source)
            self._tell("speed", 0.0, "timing the float and the INT8 transformer in turn")
            height, width = (side // COMPRESSION for side in self._plans.recording.size)
            signature = self._bundle.manifest.parts["transformer"].signature
            feeds = signature.example_feeds(batch=2, height=height, width=width)
            graphs = self._bundle.graph("transformer"), self.transformer
            found = asdict(measure_speed(*graphs, signature, feeds))
            remember(file, key, found)
        return Speed(**{**found, "shape": tuple(found["shape"])})

    def text(self, products: Sequence[str]) -> TextTrial:
        """What INT8 weights do to the text encoder; it has been written if it is shipped."""
        file, key = self._kept("text", self._plans.gate.key(), sorted(products))
        graph, found = self._places.stage / f"{PART}.onnx", recall(file, key)
        if found is None:
            self._unload(self._source)
            self._tell("text", 0.0, "trying INT8 weights in the text encoder")
            judge = partial(self.evidence, products, text=True)
            trial = try_text(self._source, graph, self._plans.gate.prompts, judge, measure_speed)
            remember(file, key, trial.to_dict())
            return trial
        trial = TextTrial.from_dict(found)
        if trial.shipped:
            write_text(self._bundle, graph)
        return trial

    def decoder(self) -> DecoderTrial:
        """What INT8 convolutions do to the decoder."""
        files = self._bundle.manifest.files
        file, key = self._kept("decoder", [(name, files[name].sha256) for name in sorted(files) if DECODER in name])
        found = recall(file, key)
        if found is None:
            self._unload(self._source)
            self._tell("decoder", 0.0, "trying INT8 convolutions in the decoder")
            found = asdict(try_decoder(self._bundle))
            remember(file, key, found)
        return DecoderTrial(tuple(found["psnrs"]))

    def _record(self) -> Mapping[str, Any]:
        graph = self._places.scratch / "recording.onnx"
        original = self._bundle.graph("transformer")
        for file in (original, data_file(original)):
            shutil.copyfile(file, self._places.scratch / file.name)
        channels = write_recording_graph(self._places.scratch / original.name, graph)
        half = self._plans.half
        recording = Substitutes({"transformer": graph}, "half" if half else "", [SAMPLED_INPUT], half)
        loaded = Loaded(self._bundle, recording, self._source)
        painter = loaded.contender(self._plans.recording).painter
        prompts = len(self._plans.recording.prompts)
        self._tell("record", 0.0, f"recording {prompts} prompts")

        def told(progress: RecordProgress) -> None:
            message = f"recorded {progress.done} of {progress.total} steps{time_left(progress.seconds_left)}"
            self._tell("record", progress.done / progress.total, message)

        return record(loaded.run, channels, painter, self._places.cache / "recording.npz", told).tokens

    @cached_property
    def _trial(self) -> Trial:
        self._tell("sensitivity", 0.0, "preparing a graph that computes each product either way")
        transformer, _ = self._smoothed()
        names = make_trial_graph(transformer)
        graph = self._places.scratch / "trial.onnx"
        save_graph(transformer, graph)
        graphs = {"caption": self._places.stage / "caption.onnx", "transformer": graph}
        loaded = Loaded(self._bundle, Substitutes(graphs, self._hash("trial"), [switches(names)]), self._source)
        self._tried = loaded
        return Trial(loaded.run, names, loaded.contender(self._plans.trial).painter)

    @cached_property
    def _reference(self) -> Contender:
        """Float, which paints the gate's prompts once for every round of it."""
        return self._source.contender(self._plans.gate)

    def _measured(self, done: int, total: int) -> None:
        self._tell("sensitivity", done / total, f"tried {done} of {total} products alone in INT8")

    def _smoothed(self) -> tuple[ir.Model, ir.Model]:
        transformer, caption = (ir.load(self._bundle.graph(part)) for part in ("transformer", "caption"))
        smooth(transformer, caption, {name: choice.factors for name, choice in self.choices.items()})
        return transformer, caption

    def _unload(self, loaded: Loaded | None) -> None:
        """Make room; what is needed again is loaded again."""
        if loaded is not None:
            loaded.parts.drop(keep=None)

    def _kept(self, what: str, *context: object) -> tuple[Path, str]:
        """The file of a result, and the key that it is kept under."""
        key = self._hash(what, *context)
        return self._places.cache / f"{what}-{key[:8]}.json", key

    def _hash(self, *what: object) -> str:
        """A key that holds for one smoothing of one model only."""
        factors = {name: choice.factors.tolist() for name, choice in self.choices.items()}
        return hashlib.sha256(repr((self._key, factors, what)).encode()).hexdigest()
