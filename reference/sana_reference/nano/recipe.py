"""The sizes and settings that nano is trained with: one place to read what was done."""

from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from sana_reference.config import AUTOENCODERS, PRESETS, TextConfig

__all__ = [
    "AUTOENCODER",
    "AUTOENCODER_RUN",
    "GUIDANCE",
    "HARDENING_RUN",
    "SCENES",
    "SIDE",
    "TEXT",
    "TRANSFORMER",
    "TRANSFORMER_RUN",
    "VALIDATION",
    "Run",
    "workplace",
]

SIDE = 128  # pixels; the latent is 4 × 4
SCENES = 30_000  # drawn once; the same for the autoencoder and the transformer
VALIDATION = 512

AUTOENCODER = replace(AUTOENCODERS["nano"], scaling_factor=1.0)  # while training; measured at the end
TRANSFORMER = PRESETS["nano"]
TEXT = TextConfig(vocabulary=978, dim=160, depth=3, heads=4, kv_heads=2, head_dim=32, hidden=320, query_scalar=32.0)
GUIDANCE = 4.5  # what nano is best painted with


@dataclass(frozen=True)
class Run:
    """One training: how long, how much at once, how fast."""

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    decay: float = 0.5  # last share of the steps, in which the rate falls to zero
    ema: float = 0.998
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Learning rate of one step: up quickly, level, then straight down to zero."""
        return self.rate * min(1.0, (step + 1) / self.warmup, (self.steps - step) / (self.decay * self.steps))


AUTOENCODER_RUN = Run(steps=2500, batch=24, rate=2e-3)
HARDENING_RUN = Run(steps=900, batch=24, rate=1.2e-3, decay=0.6)
TRANSFORMER_RUN = Run(steps=4400, batch=128, rate=2e-3)


def workplace() -> Path:
    """Where drawn scenes, checkpoints, logs and picture grids are kept between runs."""
    path = Path(platformdirs.user_cache_dir("sana-export")) / "nano"
    path.mkdir(parents=True, exist_ok=True)
    return path
