"""One part of a checkpoint: its sizes, and where and under which names its tensors lie."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from sana_runtime.errors import CheckpointError
from torch import nn

from sana_reference.autoencoder import Autoencoder
from sana_reference.checkpoint.assemble import Naming, assemble, problems, refuse
from sana_reference.checkpoint.configs import autoencoder_config, text_config, transformer_config
from sana_reference.checkpoint.fields import Fields, read_json
from sana_reference.checkpoint.files import weight_files
from sana_reference.checkpoint.shapes import recognise_transformer
from sana_reference.checkpoint.sources import TensorSource
from sana_reference.config import AUTOENCODERS, DC_AE_F32C32, AutoencoderConfig, SanaConfig, TextConfig
from sana_reference.renames import autoencoder as autoencoder_names
from sana_reference.renames import text_encoder as text_names
from sana_reference.renames import transformer as transformer_names
from sana_reference.text_encoder import TextEncoder
from sana_reference.transformer import SanaTransformer

__all__ = [
    "AutoencoderPart",
    "Part",
    "TextPart",
    "TransformerPart",
    "autoencoder_in_file",
    "autoencoder_in_folder",
    "text_encoder_in_files",
    "text_encoder_in_folder",
    "transformer_in_file",
    "transformer_in_folder",
]

Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)

NVLABS = Naming(transformer_names.NVLABS, transformer_names.NVLABS_DROPPED)
DIFFUSERS = Naming(transformer_names.DIFFUSERS)
DIFFUSERS_GUIDED = Naming(transformer_names.DIFFUSERS_GUIDED)
AUTOENCODER = Naming(autoencoder_names.DIFFUSERS)
EFFICIENTVIT = Naming(autoencoder_names.EFFICIENTVIT)
TEXT_ENCODER = Naming(text_names.TEXT_ENCODER)
LANGUAGE_MODEL = Naming(text_names.TEXT_ENCODER_IN_LANGUAGE_MODEL, ("lm_head.weight",))


@dataclass(frozen=True)
class Part(Generic[Config, Module]):
    """Sizes, files and names: enough to build the part when it is wanted, and not before."""

    where: Path
    config: Config
    files: tuple[Path, ...]
    naming: Naming = field(repr=False)
    architecture: Callable[[Config], Module] = field(repr=False)

    def build(self, dtype: torch.dtype) -> Module:
        """The part itself, read from its files into `dtype`."""
        return assemble(self.on_meta(), self.naming, TensorSource(self.files), dtype, self.what)

    def check(self) -> "Part[Config, Module]":
        """The part, if its files hold exactly the tensors that its sizes ask for; reads no weights."""
        refuse(problems(self.on_meta(), self.naming, TensorSource(self.files)), self.what)
        return self

    def on_meta(self) -> Module:
        """The module without memory for its tensors."""
        try:
            with torch.device("meta"):
                return self.architecture(self.config)
        except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise CheckpointError(f"{self.what} makes no model ({reason}); choose another checkpoint") from error

    @property
    def what(self) -> str:
        """The part's name in errors."""
        return f"{self.where} as {getattr(self.config, 'name', 'gemma-2')}"


TransformerPart = Part[SanaConfig, SanaTransformer]
AutoencoderPart = Part[AutoencoderConfig, Autoencoder]
TextPart = Part[TextConfig, TextEncoder]


def transformer_in_folder(folder: Path, variant: str | None) -> TransformerPart:
    """The transformer of a diffusers folder."""
    config = transformer_config(Fields(folder / "config.json"))
    naming = DIFFUSERS_GUIDED if config.guidance_embedding else DIFFUSERS
    return Part(folder, config, weight_files(folder, variant), naming, SanaTransformer)


def transformer_in_file(file: Path, config: SanaConfig | None) -> TransformerPart:
    """The transformer in one of NVlabs' files; its preset is read off the tensors unless one is given."""
    config = config or recognise_transformer(TensorSource((file,)).shapes, str(file))
    return Part(file, config, (file,), NVLABS, SanaTransformer)


def autoencoder_in_folder(folder: Path, variant: str | None) -> AutoencoderPart:
    """The autoencoder of a diffusers folder, or of an efficientvit one."""
    files = weight_files(folder, variant)
    if "_class_name" not in read_json(folder / "config.json"):
        return autoencoder_in_file(files[0])
    return Part(folder, autoencoder_config(Fields(folder / "config.json")), files, AUTOENCODER, Autoencoder)


def autoencoder_in_file(file: Path) -> AutoencoderPart:
    """The autoencoder in one of efficientvit's files, recognised by its tensors."""
    source = TensorSource((file,))
    usual, *others = (
        Part(file, config, (file,), EFFICIENTVIT, Autoencoder) for config in (DC_AE_F32C32, *AUTOENCODERS.values())
    )
    for part in others:
        if not problems(part.on_meta(), EFFICIENTVIT, source):
            return part
    return usual.check()  # says what it misses


def text_encoder_in_folder(folder: Path, variant: str | None) -> TextPart:
    """Gemma-2 in a folder of transformers', bare or inside the language model."""
    return text_encoder_in_files(folder, weight_files(folder, variant))


def text_encoder_in_files(folder: Path, files: tuple[Path, ...]) -> TextPart:
    """The same from those of its weight files that were chosen before."""
    config = text_config(Fields(folder / "config.json"))
    bare = any(not name.startswith("model.") and name != "lm_head.weight" for name in TensorSource(files).shapes)
    return Part(folder, config, files, TEXT_ENCODER if bare else LANGUAGE_MODEL, TextEncoder)
