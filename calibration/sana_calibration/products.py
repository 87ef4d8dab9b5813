"""Find the matrix products of a part that INT8 pays for: wide ones, between tokens and a constant weight."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from sana_runtime.errors import UsageError

__all__ = ["Product", "chosen", "eligible", "find_products", "share"]

NARROWEST = 64  # channels; INT8 tiles are this wide, and less than that is no work worth rounding


@dataclass(frozen=True)
class Product:
    """One product of tokens (…, rows) with a constant weight (rows, columns), named after its weight."""

    name: str
    node: ir.Node
    rows: int
    columns: int

    @property
    def weight(self) -> ir.Value:
        """The initializer."""
        value = self.node.inputs[1]
        assert value is not None
        return value

    @property
    def tokens(self) -> ir.Value:
        """What is multiplied by the weight."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def work(self) -> int:
        """Multiplications for one token."""
        return self.rows * self.columns


def find_products(model: ir.Model) -> tuple[Product, ...]:
    """Every product of tokens with a constant weight, in the order in which the graph computes them.

    Layers that see one vector a picture (time, modulation) are Gemm nodes and no part of this: they cost nothing.
    """
    return tuple(_product(node) for node in model.graph if node.op_type == "MatMul" and _has_weight(node))


def eligible(product: Product) -> bool:
    """Whether INT8 is worth it: patch and output projections are narrower than an INT8 tile."""
    return min(product.rows, product.columns) >= NARROWEST


def chosen(model: ir.Model, names: Iterable[str] | None = None) -> tuple[Product, ...]:
    """The products called `names`, or all eligible ones."""
    products = find_products(model)
    if names is None:
        return tuple(filter(eligible, products))
    known = {product.name: product for product in products}
    wanted = list(names)
    for name in wanted:
        if name not in known:
            raise UsageError(f"{name} is not a product of this graph; its products are {', '.join(known) or 'none'}")
    return tuple(product for product in products if product.name in set(wanted))


def share(part: Sequence[Product], whole: Sequence[Product]) -> float:
    """How much of the work of `whole` lies in `part`."""
    return sum(product.work for product in part) / sum(product.work for product in whole)


def _has_weight(node: ir.Node) -> bool:
    weight = node.inputs[1]
    return weight is not None and weight.const_value is not None and len(weight.const_value.shape) == 2


def _product(node: ir.Node) -> Product:
    weight = node.inputs[1]
    assert weight is not None and weight.const_value is not None
    rows, columns = weight.const_value.shape.numpy()
    return Product(str(weight.name).removesuffix(".weight"), node, int(rows), int(columns))
