"""The linear diffusion transformer: latent, time and text in, velocity out."""

from collections.abc import Iterator
from typing import cast

import torch
from sana_runtime.errors import UsageError
from torch import Tensor, nn
from torch.nn import functional as F

from sana_reference.attention import CrossAttention, Kernel, LinearAttention, kernel_named, mask_bias
from sana_reference.config import SanaConfig
from sana_reference.feed_forward import MixFeedForward
from sana_reference.normalisation import RmsNorm, modulated_norm
from sana_reference.positions import GridPositions, Sinusoid

__all__ = ["SanaTransformer"]

GUIDANCE_SCALE = 0.1  # Sprint was trained on a tenth of the guidance


class ScalarEmbedding(nn.Module):
    """A number per picture (time or guidance) as a vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.sinusoid = Sinusoid()
        self.first = nn.Linear(256, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, value: Tensor) -> Tensor:
        """Embed (B,) as (B, C)."""
        x = self.sinusoid(value).to(self.first.weight.dtype)
        y: Tensor = self.second(F.silu(self.first(x)))
        return y


class CaptionProjection(nn.Module):
    """Text states brought to the transformer's width and size."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        self.first = nn.Linear(config.text_dim, config.dim)
        self.second = nn.Linear(config.dim, config.dim)
        self.norm = RmsNorm(config.dim)

    def forward(self, text: Tensor) -> Tensor:
        """Project (B, L, D) to (B, L, C)."""
        x = F.gelu(self.first(text.to(self.first.weight.dtype)), approximate="tanh")
        y: Tensor = self.norm(self.second(x))
        return y


class Block(nn.Module):
    """Attend to the picture, attend to the text, feed forward; time steers the first and the last."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, config.dim) * config.dim**-0.5)
        self.attention = LinearAttention(config)
        self.cross_attention = CrossAttention(config)
        self.feed_forward = MixFeedForward(config)

    def forward(
        self, x: Tensor, modulation: Tensor, text: tuple[Tensor, Tensor, Tensor], size: tuple[int, int]
    ) -> Tensor:
        """One block over (B, N, C); `text` is keys, values and mask bias, `size` the grid's height and width."""
        vectors = (self.table.float() + modulation.float()).chunk(6, dim=1)  # each (B, 1, C)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = vectors

        x = x + gate_a.to(x.dtype) * self.attention(modulated_norm(x, shift_a, scale_a))
        x = x + self.cross_attention(x, *text)
        mixed: Tensor = self.feed_forward(modulated_norm(x, shift_f, scale_f), *size)
        return x + gate_f.to(x.dtype) * mixed


class SanaTransformer(nn.Module):
    """Sana's linear DiT, in two parts: `caption` once per prompt, `forward` once per step."""

    def __init__(self, config: SanaConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch = nn.Linear(config.latent_channels, dim)
        if config.position_base is not None:
            self.positions = GridPositions(dim, config.position_base, config.position_scale)
        self.time = ScalarEmbedding(dim)
        if config.guidance_embedding:
            self.guidance = ScalarEmbedding(dim)
        self.modulation = nn.Linear(dim, 6 * dim)
        self.caption_projection = CaptionProjection(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.table = nn.Parameter(torch.randn(2, dim) * dim**-0.5)
        self.out = nn.Linear(dim, config.latent_channels)

    def use_attention(self, kernel: str | Kernel) -> None:
        """Let every block compute linear attention with "torch", "triton" or a function of q, k and v."""
        chosen = kernel_named(kernel) if isinstance(kernel, str) else kernel
        for block in self._blocks():
            block.attention.kernel = chosen

    def caption(self, text: Tensor) -> Tensor:
        """Every block's keys and values (depth, 2, B, L, C) for the text states (B, L, D)."""
        text = self.caption_projection(text)
        pairs = (block.cross_attention.keys_and_values(text) for block in self._blocks())
        flat = torch.stack([each for pair in pairs for each in pair])
        return flat.reshape(self.config.depth, 2, *flat.shape[1:])

    def forward(
        self, latent: Tensor, timestep: Tensor, text_kv: Tensor, text_mask: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """The fp32 velocity (B, channels, h, w) of a noisy fp32 latent of that shape.

        `timestep` is (B,), `text_kv` what `caption` returned, `text_mask` (B, L) with 0 for padding; `guidance` (B,)
        belongs to the Sprint models only.
        """
        size = (latent.shape[2], latent.shape[3])
        condition = self._condition(timestep, guidance)  # (B, C)
        modulation = self.modulation(F.silu(condition)).unflatten(1, (6, -1))
        bias = mask_bias(text_mask)

        x = self._tokens(latent)
        for index, block in enumerate(self._blocks()):
            x = block(x, modulation, (text_kv[index, 0], text_kv[index, 1], bias), size)

        shift, scale = (self.table.float() + condition.float()[:, None]).chunk(2, dim=1)
        velocity: Tensor = self.out(modulated_norm(x, shift, scale)).float()
        return velocity.transpose(1, 2).reshape(latent.shape)

    def _tokens(self, latent: Tensor) -> Tensor:
        """Tokens (B, h · w, C) of a latent, told where they stand if the model cares."""
        x: Tensor = self.patch(latent.flatten(2).transpose(1, 2).to(self.patch.weight.dtype))
        if self.config.position_base is None:
            return x
        table: Tensor = self.positions(latent.shape[2], latent.shape[3])
        return (x.float() + table).to(x.dtype)

    def _condition(self, timestep: Tensor, guidance: Tensor | None) -> Tensor:
        """Time, and guidance where the model takes it, as one vector (B, C)."""
        if (guidance is not None) != self.config.guidance_embedding:
            needs = "needs" if self.config.guidance_embedding else "takes no"
            raise UsageError(f"{self.config.name} {needs} guidance; only Sprint models are given it as an input")
        time: Tensor = self.time(timestep.floor() if self.config.integer_timesteps else timestep)
        return time if guidance is None else time + self.guidance(guidance * GUIDANCE_SCALE)

    def _blocks(self) -> Iterator[Block]:
        """The blocks, as what they are."""
        return (cast(Block, block) for block in self.blocks)
