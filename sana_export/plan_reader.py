"""Read which matrix products a compiled TensorRT-RTX engine really does, and in which types.

The compiler leaves its program in the engine as readable text: tensors with their types, then operations with the
names of the ONNX nodes they came from. Nothing documents it; it was read from engines of TensorRT-RTX 1.7.
"""

import re
from dataclasses import dataclass

__all__ = ["PlanProduct", "products_in"]

TEXT = re.compile(rb"[\t\n\x20-\x7e]{4,}")
TENSOR = re.compile(r"(?:sub_)?tensor=\{ (?P<fields>.*?) type=(?P<type>\w+)")
NAME = re.compile(r'\bname="([^"]*)"')
PRODUCT = re.compile(
    r'\bfully_connected=\{ name="?(?P<name>[^"\s]+)"? output=\{(?P<output>.*?)\} input=\{(?P<input>.*?)\}'
    r'.*?layers="(?P<layers>.*?)"',
    re.DOTALL,
)
LAYER = re.compile(r"\[ONNX Layer: (.*?)\]", re.DOTALL)


@dataclass(frozen=True)
class PlanProduct:
    """One matrix product of the plan."""

    layers: tuple[str, ...]  # ONNX nodes that it came from
    operands: tuple[str, str]  # types, as the plan calls them: int8, half, float, …
    result: str


def products_in(engine: bytes) -> tuple[PlanProduct, ...]:
    """Every matrix product that is an operation of its own, once for each shape profile the plan has code for."""
    text = b"\n".join(TEXT.findall(engine)).decode("ascii")
    types = {name.group(1): found["type"] for found in TENSOR.finditer(text) if (name := NAME.search(found["fields"]))}
    return tuple(_product(found, types) for found in PRODUCT.finditer(text))


def _product(found: re.Match[str], types: dict[str, str]) -> PlanProduct:
    first, second, result = (
        types.get(name, "unknown") for name in (*_quoted(found["input"])[:2], _quoted(found["output"])[0])
    )
    return PlanProduct(tuple(LAYER.findall(found["layers"])), (first, second), result)


def _quoted(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text)
