"""Names of the transformer's tensors in diffusers folders and in NVlabs' `.pth` files.

Rows that name a tensor the model lacks (norms of queries and keys, the guidance embedding) are not used.
"""

from sana_reference.renames import Row, with_bias

__all__ = ["DIFFUSERS", "DIFFUSERS_GUIDED", "NVLABS", "NVLABS_DROPPED"]

_BLOCK = "transformer_blocks.{i}"

_DIFFUSERS_COMMON: tuple[Row, ...] = (
    *with_bias("patch", "patch_embed.proj"),
    *with_bias("modulation", "time_embed.linear"),
    *with_bias("caption_projection.first", "caption_projection.linear_1"),
    *with_bias("caption_projection.second", "caption_projection.linear_2"),
    ("caption_projection.norm.weight", "caption_norm.weight"),
    ("blocks.{i}.table", f"{_BLOCK}.scale_shift_table"),
    ("blocks.{i}.attention.qkv.weight", *(f"{_BLOCK}.attn1.to_{part}.weight" for part in "qkv")),
    ("blocks.{i}.attention.norm_q.weight", f"{_BLOCK}.attn1.norm_q.weight"),
    ("blocks.{i}.attention.norm_k.weight", f"{_BLOCK}.attn1.norm_k.weight"),
    *with_bias("blocks.{i}.attention.out", f"{_BLOCK}.attn1.to_out.0"),
    *with_bias("blocks.{i}.cross_attention.q", f"{_BLOCK}.attn2.to_q"),
    *with_bias("blocks.{i}.cross_attention.kv", f"{_BLOCK}.attn2.to_k", f"{_BLOCK}.attn2.to_v"),
    ("blocks.{i}.cross_attention.norm_q.weight", f"{_BLOCK}.attn2.norm_q.weight"),
    ("blocks.{i}.cross_attention.norm_k.weight", f"{_BLOCK}.attn2.norm_k.weight"),
    *with_bias("blocks.{i}.cross_attention.out", f"{_BLOCK}.attn2.to_out.0"),
    *with_bias("blocks.{i}.feed_forward.expand", f"{_BLOCK}.ff.conv_inverted"),
    *with_bias("blocks.{i}.feed_forward.depthwise", f"{_BLOCK}.ff.conv_depth"),
    ("blocks.{i}.feed_forward.contract.weight", f"{_BLOCK}.ff.conv_point.weight"),
    ("table", "scale_shift_table"),
    *with_bias("out", "proj_out"),
)

DIFFUSERS: tuple[Row, ...] = (
    *_DIFFUSERS_COMMON,
    *with_bias("time.first", "time_embed.emb.timestep_embedder.linear_1"),
    *with_bias("time.second", "time_embed.emb.timestep_embedder.linear_2"),
)
"""Models without a guidance embedding."""

DIFFUSERS_GUIDED: tuple[Row, ...] = (
    *_DIFFUSERS_COMMON,
    *with_bias("time.first", "time_embed.timestep_embedder.linear_1"),
    *with_bias("time.second", "time_embed.timestep_embedder.linear_2"),
    *with_bias("guidance.first", "time_embed.guidance_embedder.linear_1"),
    *with_bias("guidance.second", "time_embed.guidance_embedder.linear_2"),
)
"""Sprint models, whose guidance embedding moved the time embedding up one level."""

NVLABS: tuple[Row, ...] = (
    *with_bias("patch", "x_embedder.proj"),
    *with_bias("time.first", "t_embedder.mlp.0"),
    *with_bias("time.second", "t_embedder.mlp.2"),
    *with_bias("guidance.first", "cfg_embedder.mlp.0"),
    *with_bias("guidance.second", "cfg_embedder.mlp.2"),
    *with_bias("modulation", "t_block.1"),
    *with_bias("caption_projection.first", "y_embedder.y_proj.fc1"),
    *with_bias("caption_projection.second", "y_embedder.y_proj.fc2"),
    ("caption_projection.norm.weight", "attention_y_norm.weight"),
    ("blocks.{i}.table", "blocks.{i}.scale_shift_table"),
    ("blocks.{i}.attention.qkv.weight", "blocks.{i}.attn.qkv.weight"),
    ("blocks.{i}.attention.norm_q.weight", "blocks.{i}.attn.q_norm.weight"),
    ("blocks.{i}.attention.norm_k.weight", "blocks.{i}.attn.k_norm.weight"),
    *with_bias("blocks.{i}.attention.out", "blocks.{i}.attn.proj"),
    *with_bias("blocks.{i}.cross_attention.q", "blocks.{i}.cross_attn.q_linear"),
    *with_bias("blocks.{i}.cross_attention.kv", "blocks.{i}.cross_attn.kv_linear"),
    ("blocks.{i}.cross_attention.norm_q.weight", "blocks.{i}.cross_attn.q_norm.weight"),
    ("blocks.{i}.cross_attention.norm_k.weight", "blocks.{i}.cross_attn.k_norm.weight"),
    *with_bias("blocks.{i}.cross_attention.out", "blocks.{i}.cross_attn.proj"),
    *with_bias("blocks.{i}.feed_forward.expand", "blocks.{i}.mlp.inverted_conv.conv"),
    *with_bias("blocks.{i}.feed_forward.depthwise", "blocks.{i}.mlp.depth_conv.conv"),
    ("blocks.{i}.feed_forward.contract.weight", "blocks.{i}.mlp.point_conv.conv.weight"),
    ("table", "final_layer.scale_shift_table"),
    *with_bias("out", "final_layer.linear"),
)
"""Every model; training files may hold these under `state_dict`."""

NVLABS_DROPPED = ("pos_embed", "y_embedder.y_embedding", "logvar_linear.weight", "logvar_linear.bias")
"""Tensors of a `.pth` that inference never reads."""
