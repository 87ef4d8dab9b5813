"""Names of tensors in other people's checkpoints, as data.

A row holds our name, then the names it is joined from along dimension 0 (most rows name just one).
`{i}`, `{j}` and `{k}` stand for any number, the same in the whole row.
A 1×1 convolution is stored by others as (O, I, 1, 1) and by us as a Linear's (O, I); the loader reshapes.
"""

__all__ = ["Row", "with_bias"]

Row = tuple[str, ...]


def with_bias(ours: str, *theirs: str) -> tuple[Row, Row]:
    """The rows of a layer's weight and bias."""
    weight, bias = ((f"{ours}.{kind}", *(f"{name}.{kind}" for name in theirs)) for kind in ("weight", "bias"))
    return weight, bias
