"""Fill a module with somebody else's tensors: rename, join, check, and never guess."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TypeVar

import torch
from sana_runtime.errors import CheckpointError
from torch import Tensor, nn

from sana_reference.checkpoint.sources import Shape, TensorSource
from sana_reference.renames import Row

__all__ = ["Naming", "assemble", "problems", "refuse"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Naming:
    """How a foreign checkpoint names one part's tensors, and which of them we do not need."""

    rows: tuple[Row, ...]
    droppable: tuple[str, ...] = ()


def assemble(module: Module, naming: Naming, source: TensorSource, dtype: torch.dtype, what: str) -> Module:
    """Give `module`, built on the meta device, its tensors in `dtype`; `what` names it in errors.

    Reads one tensor at a time, so the peak is the finished module and one window of the files.
    """
    shapes = _shapes(module)
    plan = _plan(shapes, naming.rows, source)
    refuse(_problems(shapes, plan, naming, source), what)
    tensors = {ours: _join(shapes[ours], theirs, source, dtype) for ours, theirs in plan.items()}
    module.load_state_dict(tensors, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def problems(module: nn.Module, naming: Naming, source: TensorSource) -> list[str]:
    """What keeps `source` from filling `module`; nothing when it fits."""
    shapes = _shapes(module)
    return _problems(shapes, _plan(shapes, naming.rows, source), naming, source)


def refuse(found: Sequence[str], what: str) -> None:
    """Raise for the first of the problems found, and count the others."""
    if found:
        more = f" (and {len(found) - 1} more like it)" if len(found) > 1 else ""
        first = found[0] if found[0].isprintable() else ascii(found[0])  # names in a file may be any text
        raise CheckpointError(f"{what}: {first}{more}; use files and a preset that belong together")


def _shapes(module: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@lru_cache(maxsize=4096)
def _pattern(name: str) -> re.Pattern[str]:
    """`blocks.{i}.out` as a regular expression in which i is a number."""
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        letter = match[1]
        again = letter in seen
        seen.add(letter)
        return f"(?P={letter})" if again else rf"(?P<{letter}>\d+)"

    return re.compile(re.sub(r"\\\{(\w)\\\}", group, re.escape(name)))


def _theirs(ours: str, row: Row) -> tuple[str, ...] | None:
    """The names that `row` says our tensor is joined from; None if the row is about another tensor."""
    match = _pattern(row[0]).fullmatch(ours)
    return match and tuple(name.format(**match.groupdict()) for name in row[1:])


def _plan(shapes: Iterable[str], rows: Sequence[Row], source: TensorSource) -> dict[str, tuple[str, ...]]:
    """For each of our tensors the names to join; of several rows that fit, the one whose names are there."""
    plan = {}
    for ours in shapes:
        fitting = [names for row in rows if (names := _theirs(ours, row))]
        assert fitting, f"no rename row for {ours}"
        plan[ours] = next((names for names in fitting if all(name in source.shapes for name in names)), fitting[0])
    return plan


def _problems(
    shapes: Mapping[str, Shape], plan: Mapping[str, tuple[str, ...]], naming: Naming, source: TensorSource
) -> list[str]:
    used = {name for names in plan.values() for name in names}
    extra = [name for name in source.shapes if name not in used and not _is_droppable(name, naming)]
    missing = [
        (name, _piece(shapes[ours], len(names)))
        for ours, names in plan.items()
        for name in names
        if name not in source.shapes
    ]
    return [
        *(_missing(name, shape, extra, source) for name, shape in missing),
        *(problem for ours, names in plan.items() for problem in _misshapen(shapes[ours], names, source)),
        *(f"tensor {name} {source.shapes[name]} is not part of this model" for name in extra),
    ]


def _is_droppable(name: str, naming: Naming) -> bool:
    return any(_pattern(pattern).fullmatch(name) for pattern in naming.droppable)


def _piece(shape: Shape, pieces: int) -> Shape:
    """The shape of each of the equal pieces that are joined to `shape`."""
    return (shape[0] // pieces, *shape[1:])


def _missing(name: str, shape: Shape, extra: Sequence[str], source: TensorSource) -> str:
    renamed = next((other for other in extra if _flat(source.shapes[other]) == _flat(shape)), None)
    hint = f", but the unknown {renamed} has that shape: was it renamed?" if renamed else ""
    return f"tensor {name} {shape} is missing{hint}"


def _flat(shape: Shape) -> Shape:
    """A 1×1 convolution's shape as a Linear's, which is the same numbers; any other shape as it is."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _misshapen(shape: Shape, names: Sequence[str], source: TensorSource) -> list[str]:
    """Complaints about pieces that do not join to `shape`; absent ones are somebody else's complaint."""
    if not all(name in source.shapes for name in names):
        return []
    found = [_flat(source.shapes[name]) for name in names]
    if all(piece[1:] == _flat(shape)[1:] for piece in found) and sum(piece[0] for piece in found if piece) == shape[0]:
        return []
    expected = _piece(shape, len(names))
    return [
        f"tensor {name} has shape {source.shapes[name]}, expected {expected}"
        for name, piece in zip(names, found, strict=True)
        if piece != _flat(expected)
    ]


def _join(shape: Shape, names: Sequence[str], source: TensorSource, dtype: torch.dtype) -> Tensor:
    """A new tensor, filled piece by piece along dimension 0."""
    joined = torch.empty(shape, dtype=dtype)
    start = 0
    for name in names:
        piece = source.read(name)
        rows = prod(piece.shape) // max(prod(shape[1:]), 1)
        target = joined[start : start + rows]
        _check_kind(name, piece, source)
        target.copy_(piece.reshape(target.shape))
        _check_finite(name, piece, target, source)
        start += rows
    return joined


def _check_kind(name: str, piece: Tensor, source: TensorSource) -> None:
    if piece.dtype not in FLOATS:
        kind = str(piece.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{source.file_of(name)}: tensor {name} is stored as {kind}; give the float checkpoint, not a quantised one"
        )


def _is_finite(tensor: Tensor) -> bool:
    low, high = torch.aminmax(tensor)  # NaN wins over every number, so the two tell all, without a temporary
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _check_finite(name: str, piece: Tensor, target: Tensor, source: TensorSource) -> None:
    if _is_finite(target):
        return
    file = source.file_of(name)
    if not _is_finite(piece):
        raise CheckpointError(f"{file}: tensor {name} holds NaN or infinity; the file is damaged, download it again")
    kind = str(target.dtype).removeprefix("torch.")
    raise CheckpointError(f"{file}: tensor {name} does not fit into {kind}; load this part as bfloat16 or float32")
