"""Walk protobuf messages in memory: field numbers and views of bytes, never copies, never more than there is."""

from collections.abc import Container, Iterator
from typing import NamedTuple

__all__ = ["BYTES", "VARINT", "Damaged", "Field", "Walker"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED = {FIXED64: 8, FIXED32: 4}
INT64 = 1 << 63
LAST_TAG = (1 << 29) - 1  # protobuf cuts a larger number down to 32 bits, and then reads another field than we
ALL = range(1, LAST_TAG + 1)


class Damaged(ValueError):
    """The bytes are not a protobuf message, or one too large to look through."""


class Field(NamedTuple):
    """One field as it stands in a message: `number` of a varint, or `data` of bytes; neither for fixed widths."""

    tag: int
    kind: int
    number: int
    data: memoryview


class Walker:
    """Reads messages within a budget of fields, so that no file takes minutes to refuse."""

    def __init__(self, budget: int) -> None:
        self._left = budget

    def fields(self, message: memoryview, wanted: Container[int] = ALL) -> Iterator[Field]:
        """Every field of `message`, in order, or those with a wanted tag; the others are checked and counted, too."""
        position, end, nothing = 0, len(message), message[:0]
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise Damaged("it has too many fields to look through")
            key, position = message[position], position + 1
            if key > 127:
                key, position = varint(message, position - 1)
            tag, kind, number = key >> 3, key & 7, 0
            if not 0 < tag <= LAST_TAG:
                raise Damaged(f"a field has the number {tag if tag == 0 else 'of no field'}")
            if kind in (VARINT, BYTES):
                if position < end and message[position] < 128:  # nearly all are so short
                    number, position = message[position], position + 1
                else:
                    number, position = varint(message, position)
            elif kind in FIXED:
                position += FIXED[kind]
            else:
                raise Damaged(f"a field is of the unknown kind {kind}")
            start = position
            if kind == BYTES:
                position, number = position + number, 0
            if position > end:
                raise Damaged("a field is longer than the message around it")
            if tag in wanted:
                yield Field(tag, kind, number, message[start:position] if kind == BYTES else nothing)

    def varints(self, packed: memoryview) -> Iterator[int]:
        """The numbers of a packed field."""
        position = 0
        while position < len(packed):
            self._spend()
            number, position = varint(packed, position)
            yield number

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Damaged("it has too many fields to look through")


def varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number that starts at `position`, and where it ends."""
    if position < len(message) and message[position] < 128:  # nearly all are so short
        return message[position], position + 1
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise Damaged("it ends in the middle of a number")
        byte = message[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number & (2 * INT64 - 1), position
    raise Damaged("a number is longer than ten bytes")


def signed(number: int) -> int:
    """A varint as the int64 it stands for."""
    return number - 2 * INT64 if number >= INT64 else number
