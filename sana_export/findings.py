"""What calibration found out about a bundle, and what follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass

from sana_calibration.choose_factors import Choice
from sana_calibration.gate import Evidence
from sana_calibration.quantise import Quantised
from sana_calibration.sensitivity import Effects, Verdict
from sana_runtime.bundle import Bundle

from sana_export.decoder_trial import DecoderTrial
from sana_export.plans import Plans
from sana_export.speed import Speed
from sana_export.text_trial import TextTrial

__all__ = ["Findings", "Outcome"]

NARROW = "narrower than an INT8 tile: rounding it would save nothing"
NO_GAIN = "the INT8 transformer is neither smaller nor faster than the float one here"


@dataclass(frozen=True)
class Outcome:
    """Which products are INT8, and how they were judged."""

    verdict: Verdict
    effects: Effects
    quantised: Quantised
    evidence: Evidence


@dataclass(frozen=True)
class Findings:
    """Everything that a report tells."""

    bundle: Bundle  # the float one
    plans: Plans
    choices: Mapping[str, Choice]
    outcome: Outcome
    complaints: tuple[str, ...]  # limits of the gate that are not kept
    speed: Speed
    float_bytes: int  # of the transformer, if its weights were 16-bit floats
    int8_bytes: int
    text: TextTrial | None  # None where the transformer alone fails the gate
    decoder: DecoderTrial

    @property
    def shipped(self) -> bool:
        """Whether the bundle gets the INT8 transformer: it must be smaller or faster than the float one."""
        return bool(self.outcome.quantised.products) and (self.int8_bytes < self.float_bytes or self.speed.ratio > 1)

    @property
    def text_shipped(self) -> bool:
        """Whether the bundle gets the text encoder with INT8 weights."""
        return self.text is not None and self.text.shipped

    @property
    def kept_float(self) -> dict[str, str]:
        """Products that are float in the bundle's transformer, each with the reason."""
        if not self.shipped:
            return dict.fromkeys((*self.outcome.quantised.products, *self.outcome.quantised.left), NO_GAIN)
        return {name: self.outcome.verdict.left.get(name, NARROW) for name in self.outcome.quantised.left}
