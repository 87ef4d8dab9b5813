"""Where a bundle's weights come from: found, told apart from others, and named with their licences."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sana_runtime.manifest import Source
from sana_runtime.names import LICENCES

if TYPE_CHECKING:
    from sana_reference.checkpoint import Checkpoint
    from sana_reference.checkpoint.licence import Licence

__all__ = ["Origin", "Terms", "identity", "terms_of"]

BUILT_IN = "nano"
HUB_FOLDER = re.compile(r"models--(.+?)--(.+)")  # owner and name, as the hub's cache spells them
NETWORKS = {  # which field of a checkpoint each part's weights are in
    "text_encoder": "text_part",
    "caption": "transformer_part",
    "transformer": "transformer_part",
    "decoder": "autoencoder_part",
    "encoder": "autoencoder_part",
}


@dataclass(frozen=True)
class Origin:
    """What is to be loaded; the fields mean what they mean to `load_checkpoint`."""

    model: str = BUILT_IN
    variant: str | None = None
    revision: str | None = None
    autoencoder: str | None = None
    text_encoder: str | None = None

    def load(self) -> "Checkpoint":
        """Find and check it; weights are read later."""
        from sana_reference.checkpoint import load_checkpoint

        return load_checkpoint(
            self.model,
            variant=self.variant,
            revision=self.revision,
            autoencoder=self.autoencoder,
            text_encoder=self.text_encoder,
        )


@dataclass(frozen=True)
class Terms:
    """Where each part comes from, and the licence texts that go with them, by name in the bundle."""

    sources: Mapping[str, Source]
    texts: Mapping[str, str]


def identity(checkpoint: "Checkpoint") -> str:
    """A name for everything that exported parts depend on: sizes, weight files, tokenizer and the exporter itself."""
    described = [
        version("sana-export"),
        version("torch"),
        hashlib.sha256(checkpoint.tokenizer.read_bytes()).hexdigest(),
    ]
    for part in (checkpoint.transformer_part, checkpoint.autoencoder_part, checkpoint.text_part):
        if part is not None:
            described.append(repr(part.config))
            # Reading 10 GB to hash them takes as long as exporting them: size and time stand for the content.
            described += [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in part.files]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()


def terms_of(checkpoint: "Checkpoint", model: str) -> Terms:
    """The source of every part, and all licence texts under names that a bundle may hold."""
    texts: dict[str, str] = {}
    by_place: dict[Path, Source] = {}
    sources = {}
    for part, field in NETWORKS.items():
        place = _place(checkpoint, getattr(checkpoint, field).where)
        if place not in by_place:
            licence = _licence(checkpoint, place)
            names = [_add(texts, name, text) for name, text in sorted(licence.texts.items()) if text]
            by_place[place] = _source(checkpoint, model, place, licence, names)
        sources[part] = by_place[place]
    return Terms(sources, texts)


def _place(checkpoint: "Checkpoint", where: Path) -> Path:
    """The checkpoint itself for what lies inside it, else the folder or file that was named instead."""
    return checkpoint.where if where == checkpoint.where or checkpoint.where in where.parents else where


def _licence(checkpoint: "Checkpoint", place: Path) -> "Licence":
    from sana_reference.checkpoint.licence import read_licence

    if place == checkpoint.where:
        return checkpoint.licence
    folder = place if place.is_dir() else place.parent
    own = read_licence(folder)
    return own if own.fields or own.texts else read_licence(folder.parent)


def _source(checkpoint: "Checkpoint", model: str, place: Path, licence: "Licence", names: list[str]) -> Source:
    from sana_reference.checkpoint.hub import revision_of

    built_in = model == BUILT_IN and place == checkpoint.where
    return Source(
        repository=BUILT_IN if built_in else _repository(place),
        revision=version("sana-export") if built_in else revision_of(place) or "",
        licence=licence.fields.get("license_name") or licence.fields.get("license") or "not stated",
        licence_files=tuple(names),
    )


def _repository(place: Path) -> str:
    """`owner/name` for a snapshot of the hub; else the last part of the path, which says nothing of this machine."""
    for folder in place.absolute().parts:
        if match := HUB_FOLDER.fullmatch(folder):
            return f"{match[1]}/{match[2]}"
    return place.name


def _add(texts: dict[str, str], name: str, text: str) -> str:
    """Put a text under a name of its own; the same text is kept once."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).stem)[:80].strip("-") or "LICENSE"
    number = 1
    while texts.get(path := f"{LICENCES}/{stem}{f'-{number}' if number > 1 else ''}.txt", text) != text:
        number += 1
    texts[path] = text
    return path
