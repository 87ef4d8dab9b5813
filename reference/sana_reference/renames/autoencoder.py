"""Names of the autoencoder's tensors in diffusers folders and in the original (efficientvit) files.

Stages and the blocks in them are numbered alike everywhere, down- and upsampling included.
A tensor named in two rows has one name or the other: where the first stage has no layers, the first and the last
convolution of the network change size, and others then wrap them.
"""

from collections.abc import Iterator

from sana_reference.renames import Row, with_bias

__all__ = ["DIFFUSERS", "EFFICIENTVIT"]


def _diffusers_stage(ours: str, theirs: str) -> Iterator[Row]:
    """One block of a stage, whichever of the kinds it is."""
    yield from with_bias(f"{ours}.first", f"{theirs}.conv1")
    yield (f"{ours}.second.weight", f"{theirs}.conv2.weight")
    yield from with_bias(f"{ours}.norm", f"{theirs}.norm")
    # thirds of the fused weight, in spite of their names: inside, queries, keys and values alternate head by head
    yield (f"{ours}.attention.qkv.weight", *(f"{theirs}.attn.to_{third}.weight" for third in "qkv"))
    yield (f"{ours}.attention.neighbours.weight", f"{theirs}.attn.to_qkv_multiscale.0.proj_in.weight")
    yield (f"{ours}.attention.neighbour_heads.weight", f"{theirs}.attn.to_qkv_multiscale.0.proj_out.weight")
    yield (f"{ours}.attention.out.weight", f"{theirs}.attn.to_out.weight")
    yield from with_bias(f"{ours}.attention.norm", f"{theirs}.attn.norm_out")
    yield from with_bias(f"{ours}.feed_forward.expand", f"{theirs}.conv_out.conv_inverted")
    yield from with_bias(f"{ours}.feed_forward.depthwise", f"{theirs}.conv_out.conv_depth")
    yield (f"{ours}.feed_forward.contract.weight", f"{theirs}.conv_out.conv_point.weight")
    yield from with_bias(f"{ours}.feed_forward.norm", f"{theirs}.conv_out.norm")
    yield from with_bias(f"{ours}.conv", f"{theirs}.conv")


def _efficientvit_stage(ours: str, theirs: str) -> Iterator[Row]:
    """One block of a stage, whichever of the kinds it is, down- and upsampling excepted."""
    attention, feed_forward = f"{theirs}.context_module.main", f"{theirs}.local_module.main"
    yield from with_bias(f"{ours}.first", f"{theirs}.main.conv1.conv")
    yield (f"{ours}.second.weight", f"{theirs}.main.conv2.conv.weight")
    yield from with_bias(f"{ours}.norm", f"{theirs}.main.conv2.norm")
    yield (f"{ours}.attention.qkv.weight", f"{attention}.qkv.conv.weight")
    yield (f"{ours}.attention.neighbours.weight", f"{attention}.aggreg.0.0.weight")
    yield (f"{ours}.attention.neighbour_heads.weight", f"{attention}.aggreg.0.1.weight")
    yield (f"{ours}.attention.out.weight", f"{attention}.proj.conv.weight")
    yield from with_bias(f"{ours}.attention.norm", f"{attention}.proj.norm")
    yield from with_bias(f"{ours}.feed_forward.expand", f"{feed_forward}.inverted_conv.conv")
    yield from with_bias(f"{ours}.feed_forward.depthwise", f"{feed_forward}.depth_conv.conv")
    yield (f"{ours}.feed_forward.contract.weight", f"{feed_forward}.point_conv.conv.weight")
    yield from with_bias(f"{ours}.feed_forward.norm", f"{feed_forward}.point_conv.norm")


DIFFUSERS: tuple[Row, ...] = (
    *with_bias("encoder.stem", "encoder.conv_in"),
    *with_bias("encoder.stem", "encoder.conv_in.conv"),
    *_diffusers_stage("encoder.stages.{i}.{j}", "encoder.down_blocks.{i}.{j}"),
    *with_bias("encoder.head", "encoder.conv_out"),
    *with_bias("decoder.stem", "decoder.conv_in"),
    *_diffusers_stage("decoder.stages.{i}.{j}", "decoder.up_blocks.{i}.{j}"),
    *with_bias("decoder.norm", "decoder.norm_out"),
    *with_bias("decoder.head", "decoder.conv_out"),
    *with_bias("decoder.head", "decoder.conv_out.conv"),
)

EFFICIENTVIT: tuple[Row, ...] = (
    *with_bias("encoder.stem", "encoder.project_in.conv"),
    *_efficientvit_stage("encoder.stages.{i}.{j}", "encoder.stages.{i}.op_list.{j}"),
    *with_bias("encoder.stages.{i}.{j}.conv", "encoder.stages.{i}.op_list.{j}.main.conv"),
    *with_bias("encoder.head", "encoder.project_out.main.op_list.0.conv"),
    *with_bias("decoder.stem", "decoder.project_in.main.conv"),
    *with_bias("decoder.stages.{i}.{j}.conv", "decoder.stages.{i}.op_list.{j}.main.conv.conv"),
    *_efficientvit_stage("decoder.stages.{i}.{j}", "decoder.stages.{i}.op_list.{j}"),
    *with_bias("decoder.norm", "decoder.project_out.op_list.0"),
    *with_bias("decoder.head", "decoder.project_out.op_list.2.conv"),
    *with_bias("decoder.head", "decoder.project_out.op_list.2.conv.conv"),
)
