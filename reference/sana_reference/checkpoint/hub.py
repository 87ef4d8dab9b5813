"""Checkpoints on the Hugging Face hub: only the files that are needed, resumed when interrupted."""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sana_runtime.errors import CheckpointError

from sana_reference.checkpoint.files import weight_names
from sana_reference.checkpoint.sources import PICKLES

__all__ = ["fetch", "is_id", "revision_of"]

ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
PARTS = ("transformer", "vae", "text_encoder")
SMALL = re.compile(r"model_index\.json|(?:[\w-]+/)?(?:\w*config|tokenizer)\.json|LICENSE.*|README\.md")
COMMIT = re.compile(r"[0-9a-f]{40}")


def is_id(name: str) -> bool:
    """Whether `name` is written like `owner/model`."""
    return ID.fullmatch(name) is not None and PurePosixPath(name).suffix not in (*PICKLES, ".safetensors")


def fetch(repo: str, revision: str | None, variant: str | None) -> Path:
    """The local folder of a model on the hub; with HF_HUB_OFFLINE set, of one that was fetched before."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the library reads it once, when it is loaded
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants
    except ImportError as error:
        raise CheckpointError(
            f"{repo} is not a local path, and the hub needs huggingface_hub; pip install 'sana-export[build]'"
        ) from error
    if constants.HF_HUB_OFFLINE:
        return Path(_ask(repo, lambda: hub.snapshot_download(repo, revision=revision, local_files_only=True)))
    names = _ask(repo, lambda: hub.HfApi().list_repo_files(repo, revision=revision))
    wanted = needed(names, variant, repo)
    return Path(_ask(repo, lambda: hub.snapshot_download(repo, revision=revision, allow_patterns=wanted)))


def _ask(repo: str, question: Callable[[], Any]) -> Any:
    """The hub's answer; whatever goes wrong there, on the way or in its cache, is one line here."""
    try:
        return question()
    except Exception as error:  # its errors and its transport's have no common root
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{repo} is neither a local path nor a model to be had from the hub ({reason}); check the name and the "
            "network, log in if it is gated, or give a folder"
        ) from error


def needed(names: Sequence[str], variant: str | None, repo: str) -> list[str]:
    """The files of a repository that loading it will read."""
    small = [name for name in names if SMALL.fullmatch(name)]
    if "model_index.json" in names:
        folders: tuple[str, ...] = PARTS
    elif any(name.endswith(".safetensors") for name in names):
        folders = (".",)  # a repository of one part
    else:
        return [*small, _only_pickle(names, repo)]
    return [*small, *(name for folder in folders for name in _weights_in(folder, names, variant, repo))]


def _weights_in(folder: str, names: Sequence[str], variant: str | None, repo: str) -> list[str]:
    inside = [PurePosixPath(name) for name in names if str(PurePosixPath(name).parent) == folder]
    wanted = weight_names([path.name for path in inside], variant, f"{repo}/{folder}")
    return [str(path) for path in inside if path.name in wanted]


def _only_pickle(names: Sequence[str], repo: str) -> str:
    pickles = [name for name in names if PurePosixPath(name).suffix in PICKLES]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{repo} holds {len(pickles)} .pth files and no model_index.json; download the one you want, give its path"
        )
    return pickles[0]


def revision_of(folder: Path) -> str | None:
    """The commit that a folder in the hub's cache is a snapshot of."""
    path = folder.absolute()
    for inner, outer in zip((path, *path.parents), path.parents, strict=False):
        if outer.name == "snapshots" and COMMIT.fullmatch(inner.name):
            return inner.name
    return None
