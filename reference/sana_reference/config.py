"""Sizes of every model we can build: frozen values, presets as rows."""

from dataclasses import dataclass, replace

__all__ = ["AUTOENCODERS", "DC_AE_F32C32", "PRESETS", "AutoencoderConfig", "SanaConfig", "TextConfig"]


@dataclass(frozen=True)
class SanaConfig:
    """Shape of one linear diffusion transformer, and how it is meant to be sampled."""

    name: str
    depth: int
    dim: int
    cross_heads: int
    head_dim: int = 32
    ffn_hidden: int = 0  # 0 means int(2.5 · dim), which the released models use
    latent_channels: int = 32
    text_dim: int = 2304
    qk_norm: bool = False
    guidance_embedding: bool = False
    position_base: int | None = None  # side of the latent that positions are scaled to; None: no positions
    position_scale: float = 1.0
    integer_timesteps: bool = True  # Sana was trained on whole timesteps 0…999; Sprint takes reals in [0, 1]
    sample_size: int = 32  # side of the latent that the model was trained at
    flow_shift: float = 3.0

    @property
    def heads(self) -> int:
        """Number of linear self-attention heads."""
        return self.dim // self.head_dim

    @property
    def hidden(self) -> int:
        """Width of the Mix-FFN after its gate."""
        return self.ffn_hidden or int(2.5 * self.dim)


SANA_600M = SanaConfig("sana-600m", depth=28, dim=1152, cross_heads=16)
SANA_1600M = SanaConfig("sana-1600m", depth=20, dim=2240, cross_heads=20)


def _at_every_size(model: SanaConfig) -> tuple[SanaConfig, ...]:
    """The 1024-pixel model itself and its 512, 2K and 4K versions; only the last two know positions."""
    return (
        model,
        replace(model, name=f"{model.name}-512", sample_size=16),
        replace(model, name=f"{model.name}-2k", sample_size=64, position_base=64),
        replace(model, name=f"{model.name}-4k", sample_size=128, position_base=128, position_scale=2.0, flow_shift=6.0),
    )


def _sprint(model: SanaConfig, name: str) -> SanaConfig:
    """The two-step version: normalised queries and keys, guidance as an input, real timesteps."""
    return replace(model, name=name, qk_norm=True, guidance_embedding=True, integer_timesteps=False)


PRESETS = {
    config.name: config
    for config in (
        *_at_every_size(SANA_600M),
        *_at_every_size(SANA_1600M),
        replace(SANA_1600M, name="sana1.5-1600m", qk_norm=True),
        replace(SANA_1600M, name="sana1.5-4800m", qk_norm=True, depth=60),
        _sprint(SANA_600M, "sprint-600m"),
        _sprint(SANA_1600M, "sprint-1600m"),
        SanaConfig("nano", depth=6, dim=160, cross_heads=5, text_dim=160, sample_size=4, flow_shift=2.0),
        SanaConfig("tiny", depth=2, dim=64, cross_heads=2, text_dim=48, sample_size=4),
    )
}


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of one DC-AE with compression 32: six stages, residual blocks first, then attention blocks."""

    name: str
    channels: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_layers: tuple[int, ...] = (2, 2, 2, 3, 3, 3)  # a first stage of no layers means a strided stem
    decoder_layers: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    attention_stages: int = 3  # the last so many stages attend, the others are residual blocks
    head_dim: int = 32
    kernel: int = 5  # of the second scale of the attention
    latent_channels: int = 32
    scaling_factor: float = 0.41407


DC_AE_F32C32 = AutoencoderConfig("dc-ae-f32c32")
AUTOENCODERS = {
    config.name: config
    for config in (
        DC_AE_F32C32,
        AutoencoderConfig(
            "nano",
            channels=(24, 24, 48, 96, 128, 128),
            encoder_layers=(0, 1, 1, 1, 1, 1),
            decoder_layers=(0, 1, 1, 1, 1, 1),
            scaling_factor=0.61899,
        ),
        AutoencoderConfig(
            "tiny",
            channels=(8, 16, 16, 32, 32, 32),
            encoder_layers=(1, 1, 1, 1, 1, 1),
            decoder_layers=(1, 1, 1, 1, 1, 1),
        ),
    )
}


@dataclass(frozen=True)
class TextConfig:
    """Shape of one Gemma-2 decoder used as a text encoder; the defaults are gemma-2-2b's."""

    vocabulary: int = 256000
    dim: int = 2304
    depth: int = 26
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 256
    hidden: int = 9216
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    query_scalar: float = 256.0
    attention_softcap: float = 50.0
