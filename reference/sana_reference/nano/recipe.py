"""The sizes and settings that nano is trained with: one place to read what was done."""

from dataclasses import dataclass
from pathlib import Path

import platformdirs

from sana_reference.config import AutoencoderConfig

__all__ = ["AUTOENCODER", "AUTOENCODER_RUN", "SIDE", "Run", "workplace"]

SIDE = 128  # pixels; the latent is 4 × 4
SCENES = 30_000  # drawn once; the same for the autoencoder and the transformer
VALIDATION = 512

AUTOENCODER = AutoencoderConfig(
    "nano",
    channels=(24, 24, 48, 96, 128, 128),
    encoder_layers=(0, 1, 1, 1, 1, 1),
    decoder_layers=(0, 1, 1, 1, 1, 1),
    scaling_factor=1.0,  # while training; measured at the end
)


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


AUTOENCODER_RUN = Run(steps=4000, batch=24, rate=3e-3)


def workplace() -> Path:
    """Where drawn scenes, checkpoints, logs and picture grids are kept between runs."""
    path = Path(platformdirs.user_cache_dir("sana-export")) / "nano"
    path.mkdir(parents=True, exist_ok=True)
    return path
