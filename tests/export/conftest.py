"""Small random models, exported once for all tests that look at them."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from filelock import FileLock
from sana_reference.autoencoder import Autoencoder
from sana_reference.checkpoint import Checkpoint, load_checkpoint
from sana_reference.config import AUTOENCODERS, PRESETS, AutoencoderConfig, SanaConfig, TextConfig
from sana_reference.initialise import initialise
from sana_reference.text_encoder import TextEncoder
from sana_reference.transformer import SanaTransformer
from sana_runtime.prompt import PromptRules
from sana_runtime.tokenizer import Tokenizer
from transformers import AutoTokenizer, Gemma2Config, Gemma2Model

from sana_export import build as building
from sana_export.build import build
from sana_export.export import ExportedPart, export_parts
from sana_export.precision import Precision

Arrays = dict[str, np.ndarray[Any, Any]]
SMALL_TEXT = TextConfig(
    vocabulary=64,
    dim=48,
    depth=1,
    heads=4,
    kv_heads=2,
    head_dim=16,
    hidden=96,
    query_scalar=16.0,
    attention_softcap=5.0,
)


@dataclass(frozen=True)
class RandomModel:
    """A source of random networks, the same ones at every call."""

    config: SanaConfig = PRESETS["tiny"]
    autoencoder_config: AutoencoderConfig = AUTOENCODERS["tiny"]
    text_config: TextConfig = field(default=SMALL_TEXT)

    def transformer(self, dtype: torch.dtype = torch.float32) -> SanaTransformer:
        return filled(SanaTransformer(self.config), dtype)

    def autoencoder(self, dtype: torch.dtype = torch.float32) -> Autoencoder:
        return filled(Autoencoder(self.autoencoder_config), dtype)

    def text_encoder(self, dtype: torch.dtype = torch.float32) -> TextEncoder:
        return filled(TextEncoder(self.text_config), dtype)


def filled(module: Any, dtype: torch.dtype) -> Any:
    initialise(module, seed=1)
    return module.to(dtype).eval()


@pytest.fixture(scope="session")
def random_model() -> type[RandomModel]:
    """The class of random sources."""
    return RandomModel


def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, ExportedPart]]:
    """A function that exports parts of a source at a precision, each combination once for all workers."""
    root = shared_root(tmp_path_factory)

    @cache
    def exported(source: Any, precision: str, parts: tuple[str, ...], prefix: tuple[int, ...] = (2, 5, 6, 7)) -> Any:
        key = hashlib.sha256(repr((source, precision, parts, prefix)).encode()).hexdigest()[:16]
        folder = root / f"parts-{key}"
        with FileLock(root / f"{folder.name}.lock"):
            done = root / f"{folder.name}.pickle"
            if not done.exists():
                made = export_parts(source, folder, Precision(precision), parts=parts, prefix=prefix)
                done.write_bytes(pickle.dumps(made))
            return pickle.loads(done.read_bytes())

    return exported


def run(part: ExportedPart, feeds: Mapping[str, Any]) -> Any:
    """The one output of a part, through onnxruntime."""
    part.signature.check(feeds)
    return session(part.graph).run(None, dict(feeds))[0]


@cache
def session(graph: Path) -> onnxruntime.InferenceSession:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, settings)


@pytest.fixture(scope="session")
def run_part() -> Callable[[ExportedPart, Mapping[str, Any]], Any]:
    """`run`."""
    return run


@dataclass(frozen=True)
class Written:
    """A small pipeline as diffusers writes it, and what our loader makes of it."""

    folder: Path
    pipeline: Any
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    rules: PromptRules


@pytest.fixture(scope="session")
def written(built: Callable[[str], "Built"]) -> Written:
    """A `save_pretrained` folder of a pipeline with random weights, small in every part."""
    sana = built("sana")
    checkpoint = load_checkpoint(sana.folder)
    tokenizer = Tokenizer(checkpoint.tokenizer)
    return Written(sana.folder, sana.pipeline, checkpoint, tokenizer, PromptRules.derive(tokenizer))


def small_pipeline(tokenizer_folder: Path, *, sprint: bool = False) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    guided = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"} if sprint else {}
    transformer = SanaTransformer2DModel(
        **guided,
        num_attention_heads=2,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=32,
        cross_attention_dim=64,
        caption_channels=48,
        sample_size=4,
    )
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("block_types", ["ResBlock"] * 5 + ["EfficientViTBlock"]),
            ("block_out_channels", [8, 8, 8, 16, 16, 32]),
            ("layers_per_block", [1] * 6),
            ("qkv_multiscales", [[], [], [], [], [], [5]]),
        )
    }
    kinds = {"downsample_block_type": "Conv", "upsample_block_type": "interpolate", "scaling_factor": 0.41407}
    autoencoder = AutoencoderDC(**sides, **kinds)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    text_encoder = Gemma2Model(Gemma2Config(**sizes, **heads)).eval()
    for seed, network in enumerate((transformer, autoencoder, text_encoder)):
        initialise(network, seed)
    next(autoencoder.decoder.conv_out.parameters()).data.mul_(0.3)  # grey pictures of soft contrast
    flow = DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    kind, scheduler = (SanaSprintPipeline, SCMScheduler()) if sprint else (SanaPipeline, flow)
    pipeline = kind(tokenizer, text_encoder, autoencoder, transformer, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class Built:
    """A bundle, and the folder and the pipeline of diffusers that it was made from."""

    path: Path
    folder: Path
    pipeline: Any

    @property
    def changes(self) -> dict[str, int]:
        """How much each pass changed in all the parts that the build exported."""
        changes: dict[str, int] = json.loads(self.path.with_name(f"{self.path.name}.changes").read_text())
        return changes


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Callable[[str], Built]:
    """A function that builds the fp32 bundle of a small "sana" or "sprint" pipeline; all workers share one."""
    root = shared_root(tmp_path_factory)

    @cache
    def bundle(kind: str) -> Built:
        pipeline = small_pipeline(tiny_tokenizer, sprint=kind == "sprint")
        made = Built(root / f"{kind}-bundle", root / f"{kind}-pipeline", pipeline)
        with FileLock(root / f"{kind}.lock"):
            if not made.path.exists():
                pipeline.save_pretrained(made.folder)
                if kind == "sprint":
                    take_what_is_alike(bundle("sana"), made)
                build_noting_changes(made)
        return made

    return bundle


def build_noting_changes(made: Built) -> None:
    """Build the bundle, and write beside it what the passes did."""
    changes: dict[str, int] = {}

    def exporting(*arguments: Any, **options: Any) -> dict[str, ExportedPart]:
        exported = export_parts(*arguments, **options)
        for report in (report for part in exported.values() for report in part.passes):
            changes[report.name] = changes.get(report.name, 0) + report.changes
        return exported

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "export_parts", exporting)
        build(made.folder, made.path, Precision.FP32, resume=True)
    made.path.with_name(f"{made.path.name}.changes").write_text(json.dumps(changes))


def take_what_is_alike(other: Built, made: Built) -> None:
    """Let the build of `made` go on from parts of `other` whose weights are the same, as from its own."""
    work = building._work_folder(made.path, load_checkpoint(made.folder), Precision.FP32, keep=True)
    for network, parts in {"text_encoder": ["text_encoder"], "vae": ["decoder", "encoder"]}.items():
        ours, theirs = (list((each.folder / network).iterdir()) for each in (made, other))
        assert sorted(file.name for file in ours) == sorted(file.name for file in theirs)
        assert all(file.read_bytes() == (other.folder / network / file.name).read_bytes() for file in ours)
        for file in (file for part in parts for file in other.path.glob(f"{part}.*")):
            shutil.copyfile(file, work / file.name)
