"""Read a graph of bfloat16 as the fp32 graph that it stands for: onnxruntime's CPU kernels know no bfloat16.

Every number of bfloat16 is a number of fp32, so nothing is lost; products and sums become more exact, and weights take
twice the memory.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sana_runtime.rewriting import Field, content, fields, number
from sana_runtime.wire import BYTES, varint

__all__ = ["widened"]

FLOAT, BFLOAT16 = 1, 16  # TensorProto.DataType
DTYPES = {1: "<f4", 2: "u1", 3: "i1", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8", 16: "<u2"}

# Field numbers of onnx.proto: which messages lie in which, down to those that name an element type.
TENSOR_TYPE = {1: "type"}
VALUE = {2: {1: TENSOR_TYPE}}
NODE = {5: "attribute"}
MODEL = {7: {1: NODE, 5: "tensor", 11: VALUE, 12: VALUE, 13: VALUE}}
NAME, TO, HELD = 1, 3, 5  # of an attribute: its name, a number, a tensor
DIMS, DATA_TYPE, TENSOR_NAME, RAW, EXTERNAL = 1, 2, 8, 9, 13  # of a tensor
EXTERNAL_FLAG = 1

Arrays = dict[str, NDArray[Any]]
Table = Mapping[int, Any]


def widened(graph: Path) -> tuple[bytes, Arrays] | None:
    """The graph in fp32 and, by name, every weight that lies beside it; None if there is no bfloat16 in it."""
    rewriting = _Rewriting(graph.parent)
    written = rewriting.message(memoryview(graph.read_bytes()), MODEL)
    return (written, rewriting.weights) if rewriting.found else None


class _Rewriting:
    """One walk through one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights: Arrays = {}
        self.found = False

    def message(self, message: memoryview, table: Table) -> bytes:
        """The message with bfloat16 replaced in the fields that the table lists."""
        return b"".join(self._field(field, table.get(field.tag)) for field in fields(message))

    def _field(self, field: Field, what: Any) -> bytes | memoryview:
        if what is None:
            return field.whole
        if what == "type":
            return number(field.tag, self._type(field.number))
        if what == "tensor":
            return content(field.tag, self._tensor(field.data))
        if what == "attribute":
            return content(field.tag, self._attribute(field.data))
        return content(field.tag, self.message(field.data, what))

    def _type(self, kind: int) -> int:
        self.found |= kind == BFLOAT16
        return FLOAT if kind == BFLOAT16 else kind

    def _attribute(self, message: memoryview) -> bytes:
        """Only Cast's `to` names a type by number; a constant is a tensor."""
        named = any(field.tag == NAME and bytes(field.data) == b"to" for field in fields(message))
        return self.message(message, {HELD: "tensor"} | ({TO: "type"} if named else {}))

    def _tensor(self, message: memoryview) -> bytes:
        """A tensor of bfloat16 as one of fp32; one that lies beside the graph is read, whatever its type."""
        held = list(fields(message))
        kind = next(field.number for field in held if field.tag == DATA_TYPE)
        outside = {bytes(key): bytes(value) for key, value in _entries(held)}
        if outside:
            name = next(bytes(field.data).decode() for field in held if field.tag == TENSOR_NAME)
            self.weights[name] = _wide(self._read(outside, kind, list(_shape(held))), kind)
        table = {DATA_TYPE: "type"}
        if kind != BFLOAT16:
            return bytes(message)
        return b"".join(
            content(RAW, _wide(np.frombuffer(field.data, "<u2"), kind).tobytes())
            if field.tag == RAW
            else self._field(field, table.get(field.tag))
            for field in held
        )

    def _read(self, entry: Mapping[bytes, bytes], kind: int, shape: list[int]) -> NDArray[Any]:
        place = self.folder / entry[b"location"].decode()
        offset = int(entry.get(b"offset", b"0"))
        return (
            np.memmap(place, DTYPES[kind], "r", offset, tuple(shape))
            if shape
            else np.fromfile(place, DTYPES[kind], 1, offset=offset).reshape(())
        )


def _wide(array: NDArray[Any], kind: int) -> NDArray[Any]:
    """The same numbers in fp32: bfloat16 is the upper half of it."""
    return (array.astype(np.uint32) << 16).view(np.float32) if kind == BFLOAT16 else array


def _entries(tensor: list[Field]) -> Iterator[tuple[memoryview, memoryview]]:
    """Key and value of each entry that says where a tensor lies."""
    for field in tensor:
        if field.tag == EXTERNAL:
            key, value = (inner.data for inner in sorted(fields(field.data)))
            yield key, value


def _shape(tensor: list[Field]) -> Iterator[int]:
    """The dimensions, which writers pack or not."""
    for field in tensor:
        if field.tag == DIMS and field.whole[0] & 7 == BYTES:
            position = 0
            while position < len(field.data):
                size, position = varint(field.data, position)
                yield size
        elif field.tag == DIMS:
            yield field.number
