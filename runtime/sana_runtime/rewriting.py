"""Take protobuf messages apart and write new ones: the runtime has no library that writes ONNX."""

from collections.abc import Iterator
from typing import NamedTuple

from sana_runtime.wire import BYTES, FIXED, VARINT, varint

__all__ = ["Field", "content", "fields", "number"]


class Field(NamedTuple):
    """One field: a number, or bytes; and all of it as it stands in the file."""

    tag: int
    number: int
    data: memoryview
    whole: memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """Every field of a message that `onnx_guard` has let pass."""
    position, end = 0, len(message)
    while position < end:
        begun = position
        key, position = varint(message, position)
        kind, value, start = key & 7, 0, position
        if kind == VARINT:
            value, position = varint(message, position)
        elif kind == BYTES:
            length, start = varint(message, position)
            position = start + length
        else:
            position += FIXED[kind]
        yield Field(key >> 3, value, message[start:position], message[begun:position])


def number(tag: int, value: int) -> bytes:
    """A field that holds a number, none below zero."""
    return _varint(tag << 3 | VARINT) + _varint(value)


def content(tag: int, held: bytes | str) -> bytes:
    """A field that holds bytes, a text or a message."""
    held = held.encode() if isinstance(held, str) else held
    return _varint(tag << 3 | BYTES) + _varint(len(held)) + held


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
