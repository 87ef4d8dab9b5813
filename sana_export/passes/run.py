"""All passes in their order."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from sana_export.passes.attach_operator import attach_operator
from sana_export.passes.fix_reshapes import fix_reshapes
from sana_export.passes.fold_constants import INDICES, PREFIXES, fold_constants
from sana_export.passes.name_tensors import name_tensors
from sana_export.passes.narrow_weights import narrow_weights
from sana_export.passes.remove_dead import remove_dead
from sana_export.passes.settle_weights import settle_weights
from sana_export.passes.strip_notes import strip_notes

__all__ = ["PassReport", "run_passes"]


@dataclass(frozen=True)
class PassReport:
    """What one pass did to one graph."""

    name: str
    changes: int


def run_passes(model: ir.Model, part: str, stored: str | None = None) -> tuple[PassReport, ...]:
    """Turn a traced graph into one to ship; float32 weights are `stored` in a narrower type, if one is named.

    Weights are settled before constants are folded, which would copy them.
    """
    passes: tuple[tuple[str, Callable[[ir.Model], int]], ...] = (
        ("settle_weights", settle_weights),
        ("fold_indices", partial(fold_constants, largest=INDICES)),
        ("settle_weights", settle_weights),
        ("fold_constants", partial(fold_constants, largest=PREFIXES)),
        ("fix_reshapes", fix_reshapes),
        ("remove_dead", remove_dead),
        ("name_tensors", partial(name_tensors, part=part)),
        ("strip_notes", strip_notes),
        ("attach_operator", attach_operator),
    )
    if stored is not None:
        passes += (("narrow_weights", partial(narrow_weights, dtype=ir.DataType[stored.upper()])),)
    return tuple(PassReport(name, change(model)) for name, change in passes)
