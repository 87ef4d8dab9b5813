"""One part of a checkpoint: its sizes, and where and under which names its tensors lie."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch
from sana_runtime.errors import CheckpointError
from torch import nn

from sana_reference.autoencoder import Autoencoder
from sana_reference.checkpoint.assemble import Naming, assemble, problems
from sana_reference.checkpoint.configs import autoencoder_config, text_config, transformer_config
from sana_reference.checkpoint.fields import Fields, read_json
from sana_reference.checkpoint.files import weight_files
from sana_reference.checkpoint.shapes import recognise_transformer
from sana_reference.checkpoint.sources import TensorSource
from sana_reference.config import AUTOENCODERS, DC_AE_F32C32, AutoencoderConfig, SanaConfig, TextConfig
from sana_reference.renames import autoencoder as autoencoder_names
from sana_reference.renames import text_encoder as text_names
from sana_reference.renames import transformer as transformer_names

__all__ = [
    "Part",
    "autoencoder_in_file",
    "autoencoder_in_folder",
    "text_encoder_in_folder",
    "transformer_in_file",
    "transformer_in_folder",
]

Config = TypeVar("Config", SanaConfig, AutoencoderConfig, TextConfig)
Module = TypeVar("Module", bound=nn.Module)

NVLABS = Naming(transformer_names.NVLABS, transformer_names.NVLABS_DROPPED)
DIFFUSERS = Naming(transformer_names.DIFFUSERS)
DIFFUSERS_GUIDED = Naming(transformer_names.DIFFUSERS_GUIDED)
AUTOENCODER = Naming(autoencoder_names.DIFFUSERS)
EFFICIENTVIT = Naming(autoencoder_names.EFFICIENTVIT)
TEXT_ENCODER = Naming(text_names.TEXT_ENCODER)
LANGUAGE_MODEL = Naming(text_names.TEXT_ENCODER_IN_LANGUAGE_MODEL, ("lm_head.weight",))


@dataclass(frozen=True)
class Part(Generic[Config]):
    """Sizes, files and names: enough to build the part when it is wanted, and not before."""

    where: Path
    config: Config
    files: tuple[Path, ...]
    naming: Naming = field(repr=False)

    def build(self, architecture: Callable[[Config], Module], dtype: torch.dtype) -> Module:
        """The part itself, read from its files into `dtype`."""
        name = getattr(self.config, "name", "gemma-2")
        return assemble(
            on_meta(architecture, self.config), self.naming, TensorSource(self.files), dtype, f"{self.where} as {name}"
        )


def on_meta(architecture: Callable[[Config], Module], config: Config) -> Module:
    """The module without memory for its tensors."""
    with torch.device("meta"):
        return architecture(config)


def transformer_in_folder(folder: Path, variant: str | None) -> Part[SanaConfig]:
    """The transformer of a diffusers folder."""
    config = transformer_config(Fields(folder / "config.json"))
    naming = DIFFUSERS_GUIDED if config.guidance_embedding else DIFFUSERS
    return Part(folder, config, weight_files(folder, variant), naming)


def transformer_in_file(file: Path, config: SanaConfig | None) -> Part[SanaConfig]:
    """The transformer in one of NVlabs' files; its preset is read off the tensors unless one is given."""
    config = config or recognise_transformer(TensorSource((file,)).shapes, str(file))
    return Part(file, config, (file,), NVLABS)


def autoencoder_in_folder(folder: Path, variant: str | None) -> Part[AutoencoderConfig]:
    """The autoencoder of a diffusers folder, or of an efficientvit one."""
    files = weight_files(folder, variant)
    if "_class_name" not in read_json(folder / "config.json"):
        return autoencoder_in_file(files[0])
    return Part(folder, autoencoder_config(Fields(folder / "config.json")), files, AUTOENCODER)


def autoencoder_in_file(file: Path) -> Part[AutoencoderConfig]:
    """The autoencoder in one of efficientvit's files, recognised by its tensors."""
    source = TensorSource((file,))
    for config in AUTOENCODERS.values():
        if not problems(on_meta(Autoencoder, config), EFFICIENTVIT, source):
            return Part(file, config, (file,), EFFICIENTVIT)
    complaint = problems(on_meta(Autoencoder, DC_AE_F32C32), EFFICIENTVIT, source)[0]
    raise CheckpointError(f"{file} is no DC-AE that we know ({complaint}); give a diffusers folder with a config.json")


def text_encoder_in_folder(folder: Path, variant: str | None) -> Part[TextConfig]:
    """Gemma-2 in a folder of transformers', bare or inside the language model."""
    config = text_config(Fields(folder / "config.json"))
    files = weight_files(folder, variant)
    bare = any(not name.startswith("model.") and name != "lm_head.weight" for name in TensorSource(files).shapes)
    return Part(folder, config, files, TEXT_ENCODER if bare else LANGUAGE_MODEL)
