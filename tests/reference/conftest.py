"""Small random pipelines of diffusers' own making, and the same weights as their authors would keep them."""

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from sana_reference.checkpoint import load_checkpoint
from sana_reference.initialise import initialise
from sana_reference.renames import Row
from sana_reference.renames.autoencoder import EFFICIENTVIT
from sana_reference.renames.transformer import NVLABS
from torch import Tensor
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

CONVOLUTIONS = re.compile(r".*(x_embedder\.proj|inverted_conv\.conv|point_conv\.conv)\.weight")  # 1×1, in NVlabs' files


@dataclass(frozen=True)
class Recipe:
    """What a small pipeline is made of; the usual one is the preset `tiny` in all its parts."""

    seed: int = 0
    transformer: dict[str, Any] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Any] = field(default_factory=dict)
    scheduler: Any = None
    sprint: bool = False

    def build(self, tokenizer_folder: Path) -> Any:
        """The pipeline, every tensor random and no activation lost in saturation."""
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        parts = (self._transformer(), self._autoencoder(), self._text_encoder(len(tokenizer)))
        for offset, part in enumerate(parts):
            initialise(part, 10 * self.seed + offset)
        transformer, autoencoder, text_encoder = parts
        next(autoencoder.decoder.conv_out.parameters()).data.mul_(0.3)  # grey pictures of soft contrast
        scheduler = self.scheduler or (SCMScheduler() if self.sprint else flow_dpm(3.0))
        kind = SanaSprintPipeline if self.sprint else SanaPipeline
        pipeline = kind(tokenizer, text_encoder, autoencoder, transformer, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _transformer(self) -> SanaTransformer2DModel:
        guided = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"} if self.sprint else {}
        sizes = {"num_attention_heads": 2, "num_layers": 2, "num_cross_attention_heads": 2, "sample_size": 4}
        cross = {"cross_attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 48}
        return SanaTransformer2DModel(**{**sizes, **cross, **guided, **self.transformer})

    def _autoencoder(self) -> AutoencoderDC:
        blocks, channels = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, [8, 16, 16, 32, 32, 32]
        usual = {
            f"{side}_{name}": value
            for side in ("encoder", "decoder")
            for name, value in (
                ("block_types", blocks),
                ("block_out_channels", channels),
                ("layers_per_block", [1] * 6),
            )
        }
        kinds = {"downsample_block_type": "Conv", "upsample_block_type": "interpolate", "scaling_factor": 0.41407}
        return AutoencoderDC(**{**usual, **kinds, **self.autoencoder})

    def _text_encoder(self, vocabulary: int) -> Gemma2Model:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16}
        sizes = {"vocab_size": vocabulary, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
        return Gemma2Model(Gemma2Config(**{**sizes, **heads, **self.text_encoder})).eval()


def flow_dpm(shift: float) -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift)


RECIPES = {
    "sana": Recipe(),
    "sana-1.5": Recipe(1, transformer={"qk_norm": "rms_norm_across_heads", "num_layers": 3, "mlp_ratio": 3.0}),
    "sana-2k": Recipe(2, transformer={"interpolation_scale": 1.0, "sample_size": 8}, scheduler=flow_dpm(6.0)),
    "strided": Recipe(
        3,
        autoencoder={"encoder_layers_per_block": [0, 2, 1, 1, 1, 1], "decoder_layers_per_block": [0, 1, 2, 1, 1, 1]},
        text_encoder={"num_hidden_layers": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "euler": Recipe(4, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "sprint": Recipe(5, sprint=True),
    "sprint-deep": Recipe(6, sprint=True, transformer={"num_layers": 4}),
}


@pytest.fixture(scope="session")
def recipes() -> dict[str, Recipe]:
    """Small pipelines by name."""
    return RECIPES


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Callable[[str], tuple[Path, Any]]:
    """A function that writes the pipeline of a recipe once, and gives its folder and diffusers' object."""
    done: dict[str, tuple[Path, Any]] = {}

    def write(name: str) -> tuple[Path, Any]:
        if name not in done:
            folder = tmp_path_factory.mktemp(name) / "pipeline"
            pipeline = RECIPES[name].build(tiny_tokenizer)
            pipeline.save_pretrained(folder)
            done[name] = folder, pipeline
        return done[name]

    return write


@pytest.fixture(scope="session")
def tiny_sana(written: Callable[[str], tuple[Path, Any]]) -> Path:
    """Folder of the pipeline that is the preset `tiny`; not to be changed."""
    return written("sana")[0]


@pytest.fixture
def sana_copy(tiny_sana: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(tiny_sana, tmp_path / "sana"))


def inverted(tensors: dict[str, Tensor], rows: Iterable[Row]) -> dict[str, Tensor]:
    """Our tensors under the names that `rows`, which join nothing, take them from."""
    return {their_name(name, rows): tensor for name, tensor in tensors.items()}


def their_name(ours: str, rows: Iterable[Row]) -> str:
    for row in rows:
        pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(row[0]))
        if match := re.fullmatch(pattern, ours):
            return row[1].format(**match.groupdict())
    raise AssertionError(f"no row for {ours}")


@pytest.fixture(scope="session")
def nvlabs_name() -> Callable[[str, Iterable[Row]], str]:
    """The function that spells one of our names as a table of rows does."""
    return their_name


@pytest.fixture(scope="session")
def nvlabs_state() -> Callable[..., dict[str, Tensor]]:
    """A function that gives a folder's transformer as NVlabs' repository would keep it."""

    def convert(folder: Path, side: int = 4) -> dict[str, Tensor]:
        state = inverted(load_checkpoint(folder).transformer().state_dict(), NVLABS)
        for name in filter(CONVOLUTIONS.fullmatch, state):
            state[name] = state[name][..., None, None].clone()
        dim, text_dim = state["x_embedder.proj.weight"].shape[0], state["y_embedder.y_proj.fc1.weight"].shape[1]
        return {
            **state,
            "pos_embed": torch.zeros(1, side**2, dim),
            "y_embedder.y_embedding": torch.randn(300, text_dim),
        }

    return convert


@pytest.fixture(scope="session")
def tiny_pth(tiny_sana: Path, nvlabs_state: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer of `tiny_sana` as a training checkpoint of NVlabs'."""
    file = tmp_path_factory.mktemp("nvlabs") / "tiny.pth"
    torch.save({"state_dict": nvlabs_state(tiny_sana), "epoch": 7, "optimizer": {"lr": [0.1]}}, file)
    return file


@pytest.fixture(scope="session")
def tiny_efficientvit(tiny_sana: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The autoencoder of `tiny_sana` as the original repository keeps it."""
    file = tmp_path_factory.mktemp("efficientvit") / "dc-ae.pt"
    torch.save({"state_dict": inverted(load_checkpoint(tiny_sana).autoencoder().state_dict(), EFFICIENTVIT)}, file)
    return file
