"""Sizes of the three parts, read from the JSON files of diffusers and transformers."""

from dataclasses import replace

from sana_runtime.errors import CheckpointError

from sana_reference.checkpoint.fields import Fields, is_number
from sana_reference.config import AUTOENCODERS, PRESETS, AutoencoderConfig, SanaConfig, TextConfig

__all__ = ["autoencoder_config", "text_config", "transformer_config"]

MOST_LAYERS, MOST_CHANNELS = 256, 1 << 14
MOST_KERNEL = 63
LONGEST_TEXT = 507  # instruction and prompt together: a window of attention beyond it changes nothing
# What other people's loaders, trainers and generators read, and a text encoder's result does not depend on.
NO_MATTER_TO_TEXT = [
    "architectures",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "max_position_embeddings",
    "initializer_range",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "attention_dropout",
    "final_logit_softcapping",
    "cache_implementation",
    "hidden_act",
    "layer_types",
    "sliding_window_pattern",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "is_encoder_decoder",
    "problem_type",
]


def transformer_config(fields: Fields) -> SanaConfig:
    """The configuration in a SanaTransformer2DModel's config.json, named after the preset of the same sizes."""
    fields.only("_class_name", "SanaTransformer2DModel", default="SanaTransformer2DModel")
    for name, value in (("patch_size", 1), ("attention_bias", False), ("norm_elementwise_affine", False)):
        fields.only(name, value, default=value)
    fields.only("norm_eps", 1e-6, default=1e-6)
    fields.any("dropout")  # of training only
    heads, head_dim = fields.whole("num_attention_heads", 70), fields.whole("attention_head_dim", 32)
    dim = heads * head_dim
    channels = fields.whole("in_channels", 32)
    fields.only("out_channels", channels, None, default=32)
    guided = fields.only("guidance_embeds", True, False, default=False)
    if guided:
        fields.only("guidance_embeds_scale", 0.1, default=0.1)
        fields.any("timestep_scale")  # Sprint's sampler computes its own times
    else:
        fields.any("guidance_embeds_scale")
        fields.only("timestep_scale", 1.0, default=1.0)
    config = SanaConfig(
        name="custom",
        depth=fields.whole("num_layers", 20, MOST_LAYERS),
        dim=dim,
        cross_heads=_cross_heads(fields, dim),
        head_dim=head_dim,
        ffn_hidden=_ffn_hidden(fields, dim),
        latent_channels=channels,
        text_dim=fields.whole("caption_channels", 2304),
        qk_norm=fields.only("qk_norm", None, "rms_norm_across_heads", default=None) is not None,
        guidance_embedding=guided,
        integer_timesteps=not guided,
    )
    config = _with_positions(config, fields)
    fields.finish()
    return _named(config)


def _cross_heads(fields: Fields, dim: int) -> int:
    heads = fields.whole("num_cross_attention_heads", 20)
    fields.only("cross_attention_dim", dim, default=2240)
    fields.only("cross_attention_head_dim", dim / heads, default=112)
    return heads


def _ffn_hidden(fields: Fields, dim: int) -> int:
    """The width of the Mix-FFN, or the 0 that stands for the usual one."""
    hidden = int(fields.number("mlp_ratio", 2.5) * dim)
    return 0 if hidden == int(2.5 * dim) else hidden


def _with_positions(config: SanaConfig, fields: Fields) -> SanaConfig:
    side = fields.whole("sample_size", 32)
    scale = fields.any("interpolation_scale")
    if scale is None:
        return replace(config, sample_size=side)
    return replace(
        config, sample_size=side, position_base=side, position_scale=fields.number("interpolation_scale", 1.0)
    )


def _named(config: SanaConfig) -> SanaConfig:
    """The preset of these sizes, or the configuration as it is."""
    return next(
        (
            preset
            for preset in PRESETS.values()
            if replace(config, name=preset.name, flow_shift=preset.flow_shift) == preset
        ),
        config,
    )


def autoencoder_config(fields: Fields) -> AutoencoderConfig:
    """The configuration in an AutoencoderDC's config.json; only DC-AEs of Sana's kind are supported."""
    fields.only("_class_name", "AutoencoderDC", default="AutoencoderDC")
    fields.only("in_channels", 3, default=3)
    for name, supported, absent in (
        ("downsample_block_type", "Conv", "pixel_unshuffle"),
        ("upsample_block_type", "interpolate", "pixel_shuffle"),
        ("decoder_conv_act_fn", "relu", "relu"),
        ("encoder_out_shortcut", True, True),
        ("decoder_in_shortcut", True, True),
    ):
        fields.only(name, supported, default=absent)
    usual = AutoencoderConfig("usual")
    channels = fields.wholes("encoder_block_out_channels", usual.channels, MOST_CHANNELS)
    fields.only("decoder_block_out_channels", list(channels), default=list(usual.channels))
    stages = len(channels)
    fields.only("decoder_norm_types", "rms_norm", ["rms_norm"] * stages, default="rms_norm")
    fields.only("decoder_act_fns", "silu", ["silu"] * stages, default="silu")
    attending, kernel = _attention(fields, stages)
    config = AutoencoderConfig(
        name="custom",
        channels=channels,
        encoder_layers=fields.wholes("encoder_layers_per_block", usual.encoder_layers, MOST_LAYERS),
        decoder_layers=fields.wholes("decoder_layers_per_block", usual.decoder_layers, MOST_LAYERS),
        attention_stages=attending,
        head_dim=fields.whole("attention_head_dim", 32),
        kernel=kernel,
        latent_channels=fields.whole("latent_channels", 32),
        scaling_factor=fields.number("scaling_factor", 1.0),
    )
    fields.finish()
    return next((known for known in AUTOENCODERS.values() if replace(config, name=known.name) == known), config)


def _attention(fields: Fields, stages: int) -> tuple[int, int]:
    """How many of the last stages attend, and the kernel of their second scale."""
    types = fields.any("encoder_block_types", "ResBlock")
    attending = types.count("EfficientViTBlock") if isinstance(types, list) and len(types) == stages else 0
    expected = ["ResBlock"] * (stages - attending) + ["EfficientViTBlock"] * attending
    scales = fields.any("encoder_qkv_multiscales", [[], [], [], [5], [5], [5]])
    last = scales[-1] if attending and isinstance(scales, list) and scales else None
    kernel = last[0] if isinstance(last, list) and last else 5
    if type(kernel) is not int or not 1 <= kernel <= MOST_KERNEL:
        raise fields.refuse("encoder_qkv_multiscales", f"kernels from 1 to {MOST_KERNEL}")
    for side in ("encoder", "decoder"):
        fields.only(f"{side}_block_types", expected, default="ResBlock")
        multiscales: list[list[int]] = [[]] * (stages - attending) + [[kernel]] * attending
        fields.only(f"{side}_qkv_multiscales", multiscales, default=[[], [], [], [5], [5], [5]])
    return attending, kernel


def text_config(fields: Fields) -> TextConfig:
    """The configuration in a Gemma-2 config.json, of the bare model or of the language model."""
    fields.only("model_type", "gemma2", default=None)
    fields.only("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    fields.only("attention_bias", False, default=False)
    fields.only("use_bidirectional_attention", None, False, default=None)
    window = fields.any("sliding_window", 4096)
    if window is not None and (not isinstance(window, int) or window < LONGEST_TEXT):
        raise fields.refuse("sliding_window", f"{LONGEST_TEXT} or more")
    config = TextConfig(
        vocabulary=fields.whole("vocab_size", 256000),
        dim=fields.whole("hidden_size", 2304),
        depth=fields.whole("num_hidden_layers", 26, MOST_LAYERS),
        heads=fields.whole("num_attention_heads", 8),
        kv_heads=fields.whole("num_key_value_heads", 4),
        head_dim=fields.whole("head_dim", 256),
        hidden=fields.whole("intermediate_size", 9216),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(fields),
        query_scalar=fields.number("query_pre_attn_scalar", 256),
        attention_softcap=fields.number("attn_logit_softcapping", 50.0),
    )
    fields.finish(NO_MATTER_TO_TEXT)
    if config.heads % config.kv_heads:
        raise CheckpointError(
            f"{fields.path}: {config.heads} heads cannot share {config.kv_heads} key heads; download it again"
        )
    return config


def _rope_theta(fields: Fields) -> float:
    """The base of the rotary positions, which transformers moved into a dictionary in its version 5."""
    rope = fields.any("rope_parameters") or {}
    old = fields.number("rope_theta", 10000.0)
    fields.only("rope_scaling", None, default=None)
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise fields.refuse("rope_parameters", "the rope_type 'default'")
    theta = rope.get("rope_theta", old)
    if not is_number(theta):
        raise fields.refuse("rope_parameters", "a rope_theta that is a number above 0")
    return float(theta)
