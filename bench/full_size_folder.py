"""Write a Sana-0.6B of full size, with random weights, as diffusers saves it: what `sana-export build` can be timed on.

    python bench/full_size_folder.py FOLDER --tokenizer GEMMA_TOKENIZER_FOLDER

Gemma-2-2b in bfloat16, the transformer in float16, DC-AE in float32: 7.7 GB. Some channels before each product of the
transformer are made up to a hundred times larger and the weights behind them as much smaller: real models have such
outliers, and rounding has to live with them.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from torch import Tensor, nn
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

OUTLIERS = 0.01  # share of channels
LARGEST = 100.0

AUTOENCODER = {
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
    "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
    "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "scaling_factor": 0.41407,
}
TRANSFORMER = {
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "num_layers": 28,
    "sample_size": 16,
}


def made(kind: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """A module with random weights, never held in another precision."""
    torch.set_default_dtype(dtype)
    try:
        return kind().eval()
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def inject_outliers(transformer: nn.Module, generator: torch.Generator) -> None:
    """Enlarge channels by modulation and shrink the weights that read them; rows 1 and 4 of the table are factors."""
    for block in transformer.transformer_blocks:
        for row, readers in (
            (1, (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)),
            (4, (block.ff.conv_inverted,)),
        ):
            table: Tensor = block.scale_shift_table
            channels = torch.randperm(table.shape[1], generator=generator)[: int(OUTLIERS * table.shape[1])]
            factors = LARGEST ** torch.rand(len(channels), generator=generator)
            table[row, channels] = (factors - 1).to(table.dtype)
            for reader in readers:
                shape = (1, -1) + (1,) * (reader.weight.ndim - 2)
                reader.weight[:, channels] /= factors.view(shape).to(reader.weight.dtype)


def main() -> None:
    """Write the folder, a part at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of Gemma's tokenizer")
    given = parser.parse_args()
    torch.manual_seed(0)
    transformer = made(lambda: SanaTransformer2DModel(**TRANSFORMER), torch.float16)
    inject_outliers(transformer, torch.Generator().manual_seed(1))
    autoencoder = made(lambda: AutoencoderDC(**AUTOENCODER), torch.float32)
    text_encoder = made(lambda: Gemma2Model(Gemma2Config()), torch.bfloat16)
    flow = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    SanaPipeline(tokenizer, text_encoder, autoencoder, transformer, flow).save_pretrained(given.folder)


if __name__ == "__main__":
    main()
