"""Open a checkpoint, wherever it lies and whoever wrote it."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from sana_runtime.errors import CheckpointError, UsageError
from sana_runtime.solver import FlowEuler

from sana_reference.autoencoder import Autoencoder
from sana_reference.checkpoint import hub
from sana_reference.checkpoint.defaults import SolverDefaults, defaults_of_preset, solver_defaults
from sana_reference.checkpoint.fields import TOKENIZER_BYTES, Fields, refuse_strange
from sana_reference.checkpoint.licence import Licence, read_licence
from sana_reference.checkpoint.parts import (
    AutoencoderPart,
    TextPart,
    TransformerPart,
    autoencoder_in_file,
    autoencoder_in_folder,
    text_encoder_in_folder,
    transformer_in_file,
    transformer_in_folder,
)
from sana_reference.checkpoint.sources import PICKLES
from sana_reference.config import PRESETS, AutoencoderConfig, SanaConfig, TextConfig
from sana_reference.text_encoder import TextEncoder
from sana_reference.transformer import SanaTransformer

__all__ = ["Checkpoint", "load_checkpoint"]

NANO = Path(__file__).parents[1] / "nano" / "weights"
PIPELINES = ("SanaPipeline", "SanaPAGPipeline", "SanaSprintPipeline", "SanaSprintImg2ImgPipeline")
NOT_SIZES = ("name", "flow_shift", "integer_timesteps")
FILES = (*PICKLES, ".safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and understood; its weights are read when a part is asked for."""

    where: Path
    solver: SolverDefaults
    licence: Licence
    revision: str | None  # the commit on the hub, where it is known
    transformer_part: TransformerPart
    autoencoder_part: AutoencoderPart | None = None
    text_part: TextPart | None = None
    tokenizer_file: Path | None = None

    def transformer(self, dtype: torch.dtype = torch.float32) -> SanaTransformer:
        """The transformer, read now."""
        return self.transformer_part.build(dtype)

    def autoencoder(self, dtype: torch.dtype = torch.float32) -> Autoencoder:
        """The autoencoder, read now."""
        return self._autoencoder_part().build(dtype)

    def text_encoder(self, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """The text encoder, read now; Gemma-2 overflows in float16."""
        if dtype == torch.float16:
            raise UsageError("the text encoder overflows in float16; ask for torch.bfloat16 or torch.float32")
        return self._text_part().build(dtype)

    @property
    def config(self) -> SanaConfig:
        """Sizes of the transformer, and the flow shift it was trained with."""
        return self.transformer_part.config

    @property
    def autoencoder_config(self) -> AutoencoderConfig:
        """Sizes of the autoencoder."""
        return self._autoencoder_part().config

    @property
    def text_config(self) -> TextConfig:
        """Sizes of the text encoder."""
        return self._text_part().config

    @property
    def tokenizer(self) -> Path:
        """The tokenizer.json."""
        if self.tokenizer_file is None:
            raise self._lacks("text encoder", "text_encoder")
        return self.tokenizer_file

    def _autoencoder_part(self) -> AutoencoderPart:
        if self.autoencoder_part is None:
            raise self._lacks("autoencoder", "autoencoder")
        return self.autoencoder_part

    def _text_part(self) -> TextPart:
        if self.text_part is None:
            raise self._lacks("text encoder", "text_encoder")
        return self.text_part

    def _lacks(self, part: str, argument: str) -> CheckpointError:
        return CheckpointError(
            f"{self.where} holds the transformer alone, no {part}; name a folder that has one with {argument}="
        )


def load_checkpoint(
    path_or_id: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    autoencoder: str | Path | None = None,
    text_encoder: str | Path | None = None,
    preset: str | SanaConfig | None = None,
) -> Checkpoint:
    """Find a checkpoint, recognise its sizes, and check that its parts belong together.

    `path_or_id` is a diffusers folder, an NVlabs file, a model on the Hugging Face hub, or "nano". `variant` is the
    kind of weights, such as "fp16"; `revision` a branch or commit on the hub. `autoencoder` and `text_encoder` name
    what an NVlabs file lacks (folders, files or ids), or replace what a folder has. `preset` says which sizes an
    NVlabs file must have where its tensors do not tell.
    """
    wanted = _preset(preset)
    where = _locate(path_or_id, revision, variant)
    checkpoint = _open_pipeline(where, variant) if where.is_dir() else _open_file(where, wanted)
    if wanted is not None:
        _check_preset(checkpoint, wanted)
    if autoencoder is not None:
        checkpoint = replace(
            checkpoint, autoencoder_part=_find_autoencoder(_locate(autoencoder, None, variant), variant)
        )
    if text_encoder is not None:
        folder, tokenizer = _text_folders(_locate(text_encoder, None, variant))
        checkpoint = replace(
            checkpoint, text_part=text_encoder_in_folder(folder, variant), tokenizer_file=_tokenizer_in(tokenizer)
        )
    _check_widths(checkpoint)
    for part in (checkpoint.transformer_part, checkpoint.autoencoder_part, checkpoint.text_part):
        if part is not None:
            part.check()
    return checkpoint


def _preset(preset: str | SanaConfig | None) -> SanaConfig | None:
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise UsageError(f"{preset!r} is not a preset; choose from {', '.join(PRESETS)}")
        return PRESETS[preset]
    return preset


def _locate(path_or_id: str | Path, revision: str | None, variant: str | None) -> Path:
    """The local folder or file that a path or an id stands for."""
    if path_or_id == "nano":
        path = NANO
        if not path.is_dir():
            raise CheckpointError(f"{path} is missing, so this install has no nano model; install sana-export again")
        return path
    path = Path(path_or_id)
    if not path.exists():
        if not hub.is_id(str(path_or_id)):
            raise CheckpointError(f"{path} does not exist; give a folder, a .pth file, or a hub id like owner/model")
        path = hub.fetch(str(path_or_id), revision, variant)
    return path if path.is_file() or (path / "model_index.json").is_file() else _lone_file(path)


def _lone_file(folder: Path) -> Path:
    """The one NVlabs file in a folder that is laid out as theirs; the folder itself if it is not."""
    found = [file for file in (*folder.glob("*.pth"), *folder.glob("checkpoints/*.pth")) if file.is_file()]
    return found[0] if len(found) == 1 else folder


def _open_pipeline(folder: Path, variant: str | None) -> Checkpoint:
    """A diffusers folder."""
    if not (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} is not a checkpoint: it has no model_index.json; give a diffusers folder")
    index = Fields(folder / "model_index.json")
    index.only("_class_name", *PIPELINES, default=None)
    solver = solver_defaults(Fields(folder / "scheduler" / "scheduler_config.json"))
    part = transformer_in_folder(folder / "transformer", variant)
    part = replace(part, config=_as_sampled(part.config, solver))
    return Checkpoint(
        where=folder,
        solver=solver,
        licence=read_licence(folder),
        revision=hub.revision_of(folder),
        transformer_part=part,
        autoencoder_part=autoencoder_in_folder(folder / "vae", variant),
        text_part=text_encoder_in_folder(folder / "text_encoder", variant),
        tokenizer_file=_tokenizer_in(folder / "tokenizer"),
    )


def _as_sampled(config: SanaConfig, solver: SolverDefaults) -> SanaConfig:
    """The configuration with what its scheduler adds: diffusers' Euler, unlike NVlabs', feeds fractions of a step."""
    whole = config.integer_timesteps and solver.name != FlowEuler.name
    shift = config.flow_shift if solver.shift is None else solver.shift
    return replace(config, integer_timesteps=whole, flow_shift=shift)


def _open_file(file: Path, wanted: SanaConfig | None) -> Checkpoint:
    """A file of NVlabs': the transformer alone."""
    if file.suffix not in FILES:
        raise CheckpointError(
            f"{file} is not a checkpoint; give a diffusers folder or a file ending in {', '.join(FILES)}"
        )
    part = transformer_in_file(file, wanted)
    folder = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    return Checkpoint(
        where=file,
        solver=defaults_of_preset(part.config),
        licence=read_licence(folder),
        revision=hub.revision_of(folder),
        transformer_part=part,
    )


def _find_autoencoder(path: Path, variant: str | None) -> AutoencoderPart:
    """The autoencoder in a pipeline's folder, in its own, or in a file."""
    if path.is_file():
        return autoencoder_in_file(path)
    return autoencoder_in_folder(path / "vae" if (path / "model_index.json").is_file() else path, variant)


def _text_folders(path: Path) -> tuple[Path, Path]:
    """Where in a pipeline's folder, or in the text encoder's own, the weights and the tokenizer lie."""
    if (path / "model_index.json").is_file():
        return path / "text_encoder", path / "tokenizer"
    beside = path.parent / "tokenizer"
    return path, beside if not (path / "tokenizer.json").is_file() and beside.is_dir() else path


def _tokenizer_in(folder: Path) -> Path:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; copy the tokenizer.json of the checkpoint's text encoder there")
    refuse_strange(file, TOKENIZER_BYTES)
    return file


def _check_preset(checkpoint: Checkpoint, wanted: SanaConfig) -> None:
    """Refuse a folder whose sizes are not those the caller expects."""
    found = checkpoint.config
    for name in (field.name for field in fields(SanaConfig) if field.name not in NOT_SIZES):
        if getattr(found, name) != getattr(wanted, name):
            raise CheckpointError(
                f"{checkpoint.where} is {found.name}, not {wanted.name}: its {name} is {getattr(found, name)}, "
                f"not {getattr(wanted, name)}; leave preset= out, or give another checkpoint"
            )


def _check_widths(checkpoint: Checkpoint) -> None:
    """Refuse parts of different models."""
    config, autoencoder, text = checkpoint.config, checkpoint.autoencoder_part, checkpoint.text_part
    if autoencoder and autoencoder.config.latent_channels != config.latent_channels:
        raise CheckpointError(
            f"{autoencoder.where} has {autoencoder.config.latent_channels} latent channels, the transformer "
            f"{config.latent_channels}; give the autoencoder it was trained with"
        )
    if text and text.config.dim != config.text_dim:
        raise CheckpointError(
            f"{text.where} gives {text.config.dim} numbers a token, the transformer takes {config.text_dim}; "
            "give the text encoder it was trained with"
        )
