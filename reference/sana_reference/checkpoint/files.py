"""Which files of a folder hold one part's weights: plain or sharded, in one of several variants."""

import re
from collections.abc import Iterable
from pathlib import Path

from sana_runtime.errors import CheckpointError

from sana_reference.checkpoint.fields import read_json

__all__ = ["weight_files", "weight_names"]

STEM = r"(?:diffusion_pytorch_model|model)"
WHOLE = re.compile(rf"{STEM}(?:\.(?P<variant>\w+))?\.safetensors")
INDEX = re.compile(rf"{STEM}\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
SHARDS = (
    re.compile(rf"{STEM}(?:\.(?P<variant>\w+))?-\d+-of-\d+\.safetensors"),
    re.compile(rf"{STEM}-\d+-of-\d+\.(?P<variant>\w+)\.safetensors"),  # how diffusers named them before 0.30
)


def weight_names(names: Iterable[str], variant: str | None, where: str) -> list[str]:
    """The names, out of one folder's, that `variant` of its weights consists of.

    A part that lacks the variant gives its plain weights; without a variant wanted, the only one there is will do.
    """
    variants: dict[str | None, list[str]] = {}
    for name in sorted(names):
        for pattern in (WHOLE, INDEX, *SHARDS):
            if match := pattern.fullmatch(name):
                variants.setdefault(match["variant"], []).append(name)
                break
    if not variants:
        raise CheckpointError(f"{where} holds no .safetensors weights; download the part again, as safetensors")
    return variants[_choose(variants, variant, where)]


def _choose(variants: dict[str | None, list[str]], wanted: str | None, where: str) -> str | None:
    for choice in (wanted, None):
        if choice in variants:
            return choice
    if wanted is None and len(variants) == 1:
        return next(iter(variants))
    there = ", ".join(sorted(name for name in variants if name))
    raise CheckpointError(f"{where} has no {wanted or 'plain'} weights, only {there}; choose one with variant=")


def weight_files(folder: Path, variant: str | None) -> tuple[Path, ...]:
    """The files that hold the weights in `folder`; every shard that an index names must be there."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing; download the checkpoint again, with all its parts")
    names = weight_names((path.name for path in folder.iterdir()), variant, str(folder))
    whole = [name for name in names if WHOLE.fullmatch(name)]
    index = [name for name in names if INDEX.fullmatch(name)]
    if not whole and not index:
        raise CheckpointError(f"{folder}: the index of its shards is missing; download the part again")
    return (folder / whole[0],) if whole else _shards(folder / index[0])


def _shards(index: Path) -> tuple[Path, ...]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index} has no weight_map of shard names; download it again")
    shards = tuple(index.parent / name for name in sorted(set(places.values())))
    for shard in shards:
        if shard.parent != index.parent or shard.suffix != ".safetensors":
            raise CheckpointError(f"{index} names {shard.name}, which is no shard beside it; download it again")
        if not shard.is_file():
            raise CheckpointError(f"{shard} is missing, though {index.name} names it; download the part again")
    return shards
