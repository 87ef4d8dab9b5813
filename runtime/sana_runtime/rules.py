"""Limits on JSON values that a Python type cannot say; each also says itself in JSON Schema."""

import json
import re
from dataclasses import dataclass
from types import NoneType
from typing import Any, Protocol

__all__ = ["USUAL", "Choice", "Json", "Keys", "Length", "Range", "Rule", "Text", "printable", "shown"]

Json = dict[str, Any]


class Rule(Protocol):
    """A limit on a value, which can also say itself in JSON Schema."""

    def complaint(self, value: Any) -> str:
        """What is wrong with a value of the right type; empty when nothing is."""

    def schema(self) -> Json:
        """The keywords of JSON Schema that say the same."""


@dataclass(frozen=True)
class Range:
    """A number between two others, both included."""

    low: float
    high: float

    def complaint(self, value: Any) -> str:
        """See Rule."""
        return "" if self.low <= value <= self.high else f"is {shown(value)}, allowed is {self.low} to {self.high}"

    def schema(self) -> Json:
        """See Rule."""
        return {"minimum": self.low, "maximum": self.high}


@dataclass(frozen=True)
class Text:
    """A string that matches a pattern, from its first to its last character."""

    pattern: str
    meaning: str

    def complaint(self, value: Any) -> str:
        """See Rule."""
        return "" if re.fullmatch(self.pattern, value) else f"is {shown(value)}, must be {self.meaning}"

    def schema(self) -> Json:
        """See Rule."""
        return {"pattern": f"^(?:{self.pattern})$(?!\\n)", "description": self.meaning}


@dataclass(frozen=True)
class Choice:
    """One of a few strings."""

    allowed: tuple[str, ...]

    def complaint(self, value: Any) -> str:
        """See Rule."""
        return "" if value in self.allowed else f"is {shown(value)}, must be one of {', '.join(self.allowed)}"

    def schema(self) -> Json:
        """See Rule."""
        return {"enum": list(self.allowed)}


@dataclass(frozen=True)
class Length:
    """A list or table of a limited number of entries."""

    low: int
    high: int

    def complaint(self, value: Any) -> str:
        """See Rule."""
        size = len(value)
        return "" if self.low <= size <= self.high else f"has {size} entries, allowed is {self.low} to {self.high}"

    def schema(self) -> Json:
        """See Rule."""
        return {"minItems": self.low, "maxItems": self.high}


@dataclass(frozen=True)
class Keys:
    """A table of a limited number of entries whose keys obey a rule; those `required` must be there."""

    rule: Rule
    high: int
    required: tuple[str, ...] = ()

    def complaint(self, value: Any) -> str:
        """See Rule."""
        missing = [name for name in self.required if name not in value]
        if missing:
            return f"lacks {missing[0]!r}"
        if len(value) > self.high:
            return f"has {len(value)} entries, at most {self.high} are allowed"
        wrong = ((name, self.rule.complaint(name)) for name in value)
        return next((f"has a key that {complaint}" for _, complaint in wrong if complaint), "")

    def schema(self) -> Json:
        """See Rule."""
        return {"propertyNames": self.rule.schema(), "maxProperties": self.high, "required": list(self.required)}


# What holds for every string and number, whatever else is said of it.
PLAIN_TEXT = Text(r"[^\x00-\x1f\x7f-\x9f]{0,2000}", "text of at most 2,000 characters without control characters")
WHOLE = Range(0, 2**63 - 1)
FINITE = Range(-1e30, 1e30)
USUAL: dict[type, tuple[Rule, ...]] = {str: (PLAIN_TEXT,), int: (WHOLE,), float: (FINITE,)}


def printable(text: str) -> str:
    """What another library says, on one line, and without the terminal codes of a file that it may quote."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def shown(value: Any) -> str:
    """A value as it is quoted in a message: on one line, and short."""
    text = ascii(value) if isinstance(value, str) else type(value).__name__
    if isinstance(value, bool | int | float | NoneType) and not (isinstance(value, int) and abs(value) >= 2**70):
        text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
