"""Names of Gemma-2's tensors in `transformers`, as the bare model and as part of the language model."""

from sana_reference.renames import Row

__all__ = ["TEXT_ENCODER", "TEXT_ENCODER_IN_LANGUAGE_MODEL"]

TEXT_ENCODER: tuple[Row, ...] = (
    ("embedding.weight", "embed_tokens.weight"),
    ("layers.{i}.attention_norm.weight", "layers.{i}.input_layernorm.weight"),
    (
        "layers.{i}.attention.qkv.weight",
        "layers.{i}.self_attn.q_proj.weight",
        "layers.{i}.self_attn.k_proj.weight",
        "layers.{i}.self_attn.v_proj.weight",
    ),
    ("layers.{i}.attention.out.weight", "layers.{i}.self_attn.o_proj.weight"),
    ("layers.{i}.attention_post_norm.weight", "layers.{i}.post_attention_layernorm.weight"),
    ("layers.{i}.feed_forward_norm.weight", "layers.{i}.pre_feedforward_layernorm.weight"),
    (
        "layers.{i}.feed_forward.expand.weight",
        "layers.{i}.mlp.gate_proj.weight",
        "layers.{i}.mlp.up_proj.weight",
    ),
    ("layers.{i}.feed_forward.contract.weight", "layers.{i}.mlp.down_proj.weight"),
    ("layers.{i}.feed_forward_post_norm.weight", "layers.{i}.post_feedforward_layernorm.weight"),
    ("norm.weight", "norm.weight"),
)

TEXT_ENCODER_IN_LANGUAGE_MODEL: tuple[Row, ...] = tuple(
    (ours, *(f"model.{name}" for name in theirs)) for ours, *theirs in TEXT_ENCODER
)
