"""The graphs that `cpu_parts.py` compares, from one set of random weights; each is made once and kept."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from diffusers import AutoencoderDC, SanaTransformer2DModel
from sana_calibration.quantise import quantise
from sana_reference.autoencoder import Autoencoder
from sana_reference.checkpoint.parts import autoencoder_in_folder, transformer_in_folder
from sana_reference.config import DC_AE_F32C32, PRESETS, SanaConfig
from sana_reference.initialise import initialise
from sana_reference.transformer import SanaTransformer
from torch import nn

from sana_export.export import export_parts
from sana_export.precision import Precision
from sana_export.saving import save_graph

sys.path.insert(0, str(Path(__file__).parent))
from cpu_parts import AUTOENCODER, INT8, NAIVE, OURS, TRANSFORMER

SHAPE = {
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "sample_size": 32,
}
DEPTHS = (3, 3, 3, 3, 3, 3)
CHANNELS = (128, 256, 512, 512, 1024, 1024)
KINDS = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
QUARTER = replace(DC_AE_F32C32, name="quarter", channels=tuple(each // 4 for each in DC_AE_F32C32.channels))
SCALES = ((),) * 3 + ((5,),) * 3


@dataclass(frozen=True)
class Folders:
    """Parts of diffusers' as something to export."""

    folder: Path
    config: SanaConfig = PRESETS["sana-600m"]

    def transformer(self, dtype: torch.dtype) -> Any:
        """The transformer, read now."""
        return transformer_in_folder(self.folder / TRANSFORMER, None).build(dtype)

    def autoencoder(self, dtype: torch.dtype) -> Any:
        """The autoencoder, read now."""
        return autoencoder_in_folder(self.folder / AUTOENCODER, None).build(dtype)

    def text_encoder(self, dtype: torch.dtype) -> Any:
        """There is none."""
        raise NotImplementedError


def prepare_step(folder: Path, depth: int, side: int, naive: bool) -> None:
    """Make what is missing for comparing steps."""
    _once(folder / TRANSFORMER, lambda to: _random(lambda: SanaTransformer2DModel(num_layers=depth, **SHAPE), to))
    parts = ("caption", "transformer")
    if not (folder / OURS / "transformer.onnx").exists():
        config = transformer_in_folder(folder / TRANSFORMER, None).config
        export_parts(Folders(folder, config), folder / OURS, Precision.FP32, parts=parts)
    if not (folder / INT8 / "transformer.onnx").exists():
        (folder / INT8).mkdir(exist_ok=True)
        round_to_int8(folder / OURS / "transformer.onnx", folder / INT8)
    if naive and not (folder / NAIVE / f"{side}.onnx").exists():
        _export_naively(folder, side)


def round_to_int8(graph: Path, folder: Path) -> None:
    """The INT8 form of a transformer, nothing smoothed."""
    model = ir.load(graph)
    quantise(model)
    save_graph(model, folder / graph.name)


def prepare_decode(folder: Path) -> None:
    """Make what is missing for comparing decoders."""
    _once(folder / AUTOENCODER, lambda to: _random(_autoencoder, to))
    if not (folder / OURS / "decoder.onnx").exists():
        export_parts(Folders(folder), folder / OURS, Precision.FP32, parts=("decoder",))


class RandomTransformer:
    """Our transformer of Sana-0.6B's width with so many blocks, as something to export."""

    def __init__(self, depth: int) -> None:
        self.config = replace(PRESETS["sana-600m"], depth=depth)
        self._model = SanaTransformer(self.config).eval()
        initialise(self._model, seed=0)

    @property
    def parameters(self) -> int:
        """How many it has."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def transformer(self, dtype: torch.dtype) -> Any:
        """The transformer."""
        return self._model.to(dtype)

    def autoencoder(self, dtype: torch.dtype) -> Any:
        """A random one, a quarter as wide as DC-AE."""
        model = Autoencoder(QUARTER).eval()
        initialise(model, seed=0)
        return model.to(dtype)

    def text_encoder(self, dtype: torch.dtype) -> Any:
        """There is none."""
        raise NotImplementedError


def prepare_narrow(folder: Path) -> None:
    """Make the decoder that is a quarter as wide, if it is missing."""
    if not (folder / "decoder.onnx").exists():
        export_parts(RandomTransformer(1), folder, Precision.FP32, parts=("decoder",))


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


@torch.no_grad()
def _random(architecture: Callable[[], nn.Module], folder: Path) -> None:
    """Write the network with weights that keep activations about as large as they are."""
    with torch.device("meta"):
        module = architecture()
    module.to_empty(device="cpu")
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        for piece in parameter.view(-1).split(len(noise)):
            piece.copy_(noise[: len(piece)])
        parameter.mul_(parameter[0].numel() ** -0.5)
    module.save_pretrained(folder)  # type: ignore[operator]


class _Positional(nn.Module):
    """diffusers' transformer with inputs in an order, as the tracer wants them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Any, text: Any, timestep: Any, mask: Any) -> Any:
        """The velocity."""
        return self.model(sample, text, timestep, encoder_attention_mask=mask, return_dict=False)[0]


def _export_naively(folder: Path, side: int) -> None:
    """diffusers' module through torch.onnx.export, nothing done to it; its size is fixed, dynamic sizes fail."""
    model = SanaTransformer2DModel.from_pretrained(folder / TRANSFORMER).eval()
    feeds = (torch.randn(2, 32, side, side), torch.randn(2, 300, 2304), torch.full((2,), 500.0), torch.ones(2, 300))
    names = ["sample", "text", "timestep", "mask"]
    with torch.no_grad():
        program = torch.onnx.export(_Positional(model), feeds, dynamo=True, input_names=names, opset_version=20)
    assert program is not None
    (folder / NAIVE).mkdir(exist_ok=True)
    program.save(folder / NAIVE / f"{side}.onnx", external_data=True)
