"""The whole way from prompts to pictures in PyTorch: the numbers that every other backend answers to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sana_runtime.errors import UsageError
from sana_runtime.guidance import Guidance
from sana_runtime.noise import Noise
from sana_runtime.prompt import PromptRules, batch
from sana_runtime.solver import Latent, Scm, Solver, make_solver, walk
from sana_runtime.tokenizer import Tokenizer
from torch import Tensor

from sana_reference.autoencoder import Autoencoder
from sana_reference.checkpoint import Checkpoint, load_checkpoint
from sana_reference.checkpoint.defaults import SolverDefaults
from sana_reference.text_encoder import Prefix, TextEncoder
from sana_reference.transformer import SanaTransformer

__all__ = ["ReferencePipeline"]

COMPRESSION = 32  # pixels of a picture to one of its latent, each way


@dataclass(frozen=True)
class ReferencePipeline:
    """A checkpoint's parts, all in memory at once."""

    transformer: SanaTransformer
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    rules: PromptRules
    prefix: Prefix
    defaults: SolverDefaults

    @classmethod
    def open(cls, checkpoint: Checkpoint | str | Path, dtype: torch.dtype = torch.float32) -> "ReferencePipeline":
        """Read every part; the parts that overflow in float16 are read as bfloat16 then."""
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = load_checkpoint(checkpoint)
        wide = torch.bfloat16 if dtype == torch.float16 else dtype
        tokenizer = Tokenizer(checkpoint.tokenizer)
        rules = PromptRules.derive(tokenizer)
        text_encoder = checkpoint.text_encoder(wide)
        return cls(
            transformer=checkpoint.transformer(dtype),
            autoencoder=checkpoint.autoencoder(wide),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            rules=rules,
            prefix=text_encoder.prefix(rules.prefix),
            defaults=checkpoint.solver,
        )

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        negative: str = "",
        size: tuple[int, int] = (1024, 1024),
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 42,
        solver: str | None = None,
        latents: Latent | None = None,
        fresh: Callable[[], Latent] | None = None,
    ) -> NDArray[np.uint8]:
        """Pictures (B, H, W, 3), one for each prompt; what is left out is the checkpoint's own default.

        `size` is height and width. `latents` (B, C, h, w) is unit noise in place of the seed's, and `fresh` makes
        more of it for the solver that needs noise at every step.
        """
        noise = Noise(seed, len(prompts), self._latent_shape(size))
        chosen = self._solver(solver or self.defaults.name, steps)
        strength = Guidance(self.defaults.guidance if guidance is None else guidance)
        text = self.encode(prompts, negative)

        def velocity(latent: Latent, timestep: float) -> Latent:
            return self.velocity(torch.from_numpy(latent), timestep, text, strength)

        latent = chosen.start(noise.draw() if latents is None else latents)
        for step in walk(chosen, latent, velocity, fresh=fresh or noise.draw):
            latent = step.latent
        return self.autoencoder.decode_picture(torch.from_numpy(latent)).numpy()

    def encode(self, prompts: Sequence[str], negative: str) -> tuple[Tensor, Tensor]:
        """Keys and values of the negative prompt, once for each prompt, and of the prompts; and their mask (2B, L)."""
        plain = self.rules.plain(self.tokenizer, negative)
        tokens = batch([plain] * len(prompts) + [self.rules.instruct(self.tokenizer, prompt) for prompt in prompts])
        text = self.text_encoder(
            torch.from_numpy(tokens.input_ids),
            torch.from_numpy(tokens.text_mask),
            torch.from_numpy(tokens.instructed),
            self.prefix,
        )
        return self.transformer.caption(text), torch.from_numpy(tokens.row_mask)

    def velocity(self, latent: Tensor, timestep: float, text: tuple[Tensor, Tensor], guidance: Guidance) -> Latent:
        """The guided velocity; a model that takes guidance as an input is not run for the negative prompt."""
        count = len(latent)
        text_kv, mask = text
        if self.transformer.config.guidance_embedding:
            scale = torch.full((count,), guidance.scale)
            times = torch.full((count,), timestep)
            return _array(self.transformer(latent, times, text_kv[:, :, count:], mask[count:], scale))
        if not guidance.active(timestep):
            return _array(self.transformer(latent, torch.full((count,), timestep), text_kv[:, :, count:], mask[count:]))
        times = torch.full((2 * count,), timestep)
        unconditional, conditional = self.transformer(torch.cat((latent, latent)), times, text_kv, mask).chunk(2)
        return guidance.combine(_array(unconditional), _array(conditional))

    def _solver(self, name: str, steps: int | None) -> Solver:
        """The solver called `name` with the checkpoint's settings where it has some."""
        usual = self.defaults.steps if name == self.defaults.name else None
        shift = None if name == Scm.name else self.transformer.config.flow_shift
        return make_solver(name, usual if steps is None else steps, shift)

    def _latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        height, width = size
        if min(size) < COMPRESSION or height % COMPRESSION or width % COMPRESSION:
            raise UsageError(f"size {height}x{width}: give a height and a width that are multiples of {COMPRESSION}")
        return self.transformer.config.latent_channels, height // COMPRESSION, width // COMPRESSION


def _array(tensor: Tensor) -> Latent:
    return np.asarray(tensor.numpy(), np.float32)
