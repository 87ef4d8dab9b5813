"""The graphs that `cpu_parts.py` compares, from one set of random weights; each is made once and kept."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from sana_calibration.quantise import quantise
from sana_reference.autoencoder import Autoencoder
from sana_reference.checkpoint.parts import autoencoder_in_folder, transformer_in_folder
from sana_reference.config import DC_AE_F32C32, SanaConfig
from sana_reference.initialise import initialise
from sana_reference.transformer import SanaTransformer
from torch import nn

from sana_export.export import export_parts
from sana_export.saving import save_graph

sys.path.insert(0, str(Path(__file__).parent))
from cpu_parts import AUTOENCODER, INT8, NAIVE, OURS, TRANSFORMER, Job
from limits import preset

DEPTHS = (3, 3, 3, 3, 3, 3)
CHANNELS = (128, 256, 512, 512, 1024, 1024)
KINDS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
QUARTER = replace(DC_AE_F32C32, name="quarter", channels=tuple(each // 4 for each in DC_AE_F32C32.channels))
SCALES = ((),) * 3 + ((5,),) * 3


def prepare_step(job: Job, naive: bool = False) -> None:
    """Make what is missing for comparing steps."""
    folder = job.folder
    _once(folder / TRANSFORMER, lambda to: _random(lambda: SanaTransformer2DModel(**_theirs(job.model)), to))
    if not (folder / OURS / "transformer.onnx").exists():
        part = transformer_in_folder(folder / TRANSFORMER, None)
        source = SimpleNamespace(config=part.config, transformer=part.build)
        export_parts(source, folder / OURS, parts=("caption", "transformer"))
    if not (folder / INT8 / "transformer.onnx").exists():
        (folder / INT8).mkdir(exist_ok=True)
        round_to_int8(folder / OURS / "transformer.onnx", folder / INT8)
    if naive and not (folder / NAIVE / f"{job.side}.onnx").exists():
        _export_naively(job)


def round_to_int8(graph: Path, folder: Path) -> None:
    """The INT8 form of a transformer, nothing smoothed."""
    model = ir.load(graph)
    quantise(model)
    save_graph(model, folder / graph.name)


def prepare_decode(folder: Path) -> None:
    """Make what is missing for comparing decoders."""
    _once(folder / AUTOENCODER, lambda to: _random(_autoencoder, to))
    if not (folder / OURS / "decoder.onnx").exists():
        part = autoencoder_in_folder(folder / AUTOENCODER, None)
        export_parts(SimpleNamespace(config=preset(), autoencoder=part.build), folder / OURS, parts=("decoder",))


def random_transformer(depth: int) -> SanaTransformer:
    """Our transformer of Sana-0.6B's width with so many blocks."""
    model = SanaTransformer(preset(depth)).eval()
    initialise(model, seed=0)
    return model


def prepare_narrow(folder: Path) -> None:
    """Make the decoder that is a quarter as wide, if it is missing."""
    if not (folder / "decoder.onnx").exists():
        model = Autoencoder(QUARTER).eval()
        initialise(model, seed=0)
        export_parts(SimpleNamespace(config=preset(), autoencoder=model.to), folder, parts=("decoder",))


def _once(folder: Path, make: Callable[[Path], None]) -> None:
    if not folder.exists():
        make(folder)


def _autoencoder() -> AutoencoderDC:
    encoder_depths = (2, 2, 2, 3, 3, 3)
    return AutoencoderDC(
        encoder_block_types=KINDS,
        decoder_block_types=KINDS,
        encoder_block_out_channels=CHANNELS,
        decoder_block_out_channels=CHANNELS,
        encoder_layers_per_block=encoder_depths,
        decoder_layers_per_block=DEPTHS,
        encoder_qkv_multiscales=SCALES,
        decoder_qkv_multiscales=SCALES,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )


def _random(architecture: Callable[[], nn.Module], folder: Path) -> None:
    """Write the network with random weights, no two alike: compilers compute products of equal weights only once."""
    with torch.device("meta"):
        module = architecture()
    module.to_empty(device="cpu")
    initialise(module, seed=0)
    module.save_pretrained(folder)  # type: ignore[operator]


def _theirs(model: SanaConfig) -> dict[str, Any]:
    """The sizes as diffusers calls them."""
    return {
        "num_layers": model.depth,
        "num_attention_heads": model.heads,
        "attention_head_dim": model.head_dim,
        "num_cross_attention_heads": model.cross_heads,
        "cross_attention_head_dim": model.dim // model.cross_heads,
        "cross_attention_dim": model.dim,
        "caption_channels": model.text_dim,
        "sample_size": model.sample_size,
        "interpolation_scale": model.position_scale if model.position_base else None,
        "qk_norm": "rms_norm_across_heads" if model.qk_norm else None,
        "guidance_embeds": model.guidance_embedding,
    }


def _export_naively(job: Job) -> None:
    """diffusers' module through torch.onnx.export, nothing done to it; its size is fixed, dynamic sizes fail."""
    model = SanaTransformer2DModel.from_pretrained(job.folder / TRANSFORMER).eval()
    feeds = {name: torch.from_numpy(array) for name, array in job.theirs().items()}
    with torch.no_grad():
        program = torch.onnx.export(model, kwargs=feeds, dynamo=True, opset_version=20)
    assert program is not None
    (job.folder / NAIVE).mkdir(exist_ok=True)
    program.save(job.folder / NAIVE / f"{job.side}.onnx", external_data=True)
