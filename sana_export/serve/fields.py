"""The fields of a request: what each may hold, as data."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sana_runtime.rules import shown

from sana_export.serve.refusals import Refusal

__all__ = ["Flag", "Number", "OneOf", "Reader", "Text", "Whole", "parse_object", "read_fields"]


@dataclass(frozen=True)
class Whole:
    """A whole number between two others."""

    low: int
    high: int

    def complaint(self, value: Any) -> str:
        """What the field must be, when it is not."""
        right = type(value) is int and self.low <= value <= self.high
        return "" if right else f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True)
class Number:
    """A number between two others."""

    low: float
    high: float

    def complaint(self, value: Any) -> str:
        """See Whole."""
        right = type(value) in (int, float) and self.low <= value <= self.high
        return "" if right and math.isfinite(value) else f"a number from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Text:
    """A text; how long it may be is for those to say who read it."""

    def complaint(self, value: Any) -> str:
        """See Whole."""
        return "" if isinstance(value, str) else "text"


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def complaint(self, value: Any) -> str:
        """See Whole."""
        return "" if isinstance(value, bool) else "true or false"


@dataclass(frozen=True)
class OneOf:
    """One of a few texts."""

    allowed: tuple[str, ...]

    def complaint(self, value: Any) -> str:
        """See Whole."""
        return "" if isinstance(value, str) and value in self.allowed else " or ".join(self.allowed)


Reader = Whole | Number | Text | Flag | OneOf


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite(float))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120].encode("ascii", "replace").decode()
        raise Refusal(400, "invalid_json", f"the body is not JSON ({reason}); send one JSON object") from None
    if not isinstance(value, dict):
        raise Refusal(400, "invalid_json", f"the body is a JSON {type(value).__name__}; send one JSON object")
    return value


def read_fields(given: Mapping[str, Any], known: Mapping[str, Reader]) -> dict[str, Any]:
    """The fields that were given; null counts as left out, an unknown or wrong one is refused."""
    for name in given:
        if name not in known:
            message = f"unknown field {shown(name)}; the fields are {', '.join(known)}"
            raise Refusal(422, "unknown_field", message, shown(name))
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        if wanted := known[name].complaint(value):
            raise Refusal(422, "invalid_value", f"{name} is {shown(value)}; give {wanted}", name)
    return found


def _finite(read: Callable[[str], float]) -> Callable[[str], float]:
    def reader(text: str) -> float:
        value = read(text)
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return value

    return reader


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
