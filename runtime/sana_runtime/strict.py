"""Read JSON into frozen dataclasses and refuse whatever is not exactly as declared.

A dataclass is the declaration: its fields are the keys, their types the types, a default makes a key optional.
Limits that a Python type cannot say are rules, attached with `Annotated`.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from sana_runtime.errors import BundleError
from sana_runtime.rules import USUAL, Rule, shown

__all__ = ["WRITTEN", "Refinements", "declared_fields", "dump", "load"]

T = TypeVar("T")
Refinements = Mapping[tuple[type, str], Rule]  # rules for the fields of dataclasses that are declared elsewhere
WRITTEN = {"written": True}  # metadata of a field that every text must have, though our own code need not give it
SCALARS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


class _Pairs(dict[str, Any]):
    """A JSON object that remembers which key came twice."""

    twice: str | None = None


def _pairs(items: list[tuple[str, Any]]) -> _Pairs:
    pairs = _Pairs(items)
    if len(pairs) < len(items):
        counts = Counter(name for name, _ in items)
        pairs.twice = next(name for name, count in counts.items() if count > 1)
    return pairs


def load(kind: type[T], content: bytes, where: str, refinements: Refinements | None = None) -> T:
    """The `kind` that the JSON in `content` describes; BundleError names the place in it that is wrong."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_pairs)
    except UnicodeDecodeError:
        raise BundleError(f"{where} is not UTF-8 text; build the bundle again") from None
    except RecursionError:
        raise BundleError(f"{where} is nested too deeply; build the bundle again") from None
    except ValueError as error:
        raise BundleError(f"{where} is not JSON ({ascii(str(error))[1:-1][:100]}); build the bundle again") from None
    return cast(T, _Reader(where, refinements or {}).read(kind, value, "$"))


def dump(value: Any) -> bytes:
    """The one way in which a dataclass is written: sorted keys, absent instead of null, a final newline.

    What `load` would refuse is not looked for here: read the result back.
    """
    text = json.dumps(_without_none(asdict(value)), sort_keys=True, indent=1, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list | tuple):
        return [_without_none(entry) for entry in value]
    return value


class _Reader:
    """Walks a value and its declaration side by side."""

    def __init__(self, where: str, refinements: Refinements) -> None:
        self.where = where
        self.declared: dict[Any, dict[str, tuple[Any, bool]]] = {}
        self.refinements = refinements

    def refuse(self, path: str, complaint: str) -> BundleError:
        return BundleError(f"{self.where}: {path} {complaint}; build the bundle again")

    def read(self, kind: Any, value: Any, path: str) -> Any:
        if get_origin(kind) in (Union, UnionType):
            return self.read(_member(kind, value), value, path)
        rules: tuple[Rule, ...] = ()
        if get_origin(kind) is Annotated:
            kind, *attached = get_args(kind)
            rules = tuple(attached)
        if get_origin(kind) is tuple:
            return self.row(kind, self.obeying(rules, self.listed(value, path), path), path)
        if get_origin(kind) is dict:
            return self.table(kind, self.obeying(rules, self.pairs(value, path), path), path)
        result = self.record(kind, value, path) if is_dataclass(kind) else self.scalar(kind, value, path)
        return self.obeying((*USUAL.get(kind, ()), *rules), result, path)

    def obeying(self, rules: Iterable[Rule], value: Any, path: str) -> Any:
        for rule in rules:
            if complaint := rule.complaint(value):
                raise self.refuse(path, complaint)
        return value

    def scalar(self, kind: Any, value: Any, path: str) -> Any:
        if kind is float and type(value) in (int, float):
            value = float(value) if abs(value) < 1e300 else math.inf
            if not math.isfinite(value):
                raise self.refuse(path, "is not a finite number")
        if type(value) is not kind:
            raise self.refuse(path, f"is {shown(value)}, must be {SCALARS[kind]}")
        if kind is str and not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise self.refuse(path, "contains half a character (a lone surrogate)")
        return value

    def listed(self, value: Any, path: str) -> list[Any]:
        if type(value) is not list:
            raise self.refuse(path, f"is {shown(value)}, must be a list")
        return value

    def row(self, kind: Any, value: list[Any], path: str) -> tuple[Any, ...]:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise self.refuse(path, f"has {len(value)} entries, must have {len(kinds)}")
        pairs = zip(kinds, value, strict=True)
        return tuple(self.read(kind, entry, f"{path}[{i}]") for i, (kind, entry) in enumerate(pairs))

    def pairs(self, value: Any, path: str) -> _Pairs:
        if not isinstance(value, _Pairs):
            raise self.refuse(path, f"is {shown(value)}, must be an object")
        if value.twice is not None:
            raise self.refuse(path, f"has the key {shown(value.twice)} twice")
        return value

    def table(self, kind: Any, value: _Pairs, path: str) -> dict[str, Any]:
        _, entry_kind = get_args(kind)
        return {name: self.read(entry_kind, entry, f"{path}{_step(name)}") for name, entry in value.items()}

    def record(self, kind: Any, value: Any, path: str) -> Any:
        given = self.pairs(value, path)
        if kind not in self.declared:
            self.declared[kind] = declared_fields(kind, self.refinements)
        declared = self.declared[kind]
        for name in given:
            if name not in declared:
                raise self.refuse(path, f"has the unknown key {shown(name)}")
        for name, (_, optional) in declared.items():
            if name not in given and not optional:
                raise self.refuse(path, f"lacks {name!r}")
        return kind(**{name: self.read(declared[name][0], given[name], f"{path}.{name}") for name in given})


def _step(name: str) -> str:
    """One key of a JSON path."""
    return f".{name}" if name.isascii() and name.isidentifier() else f"[{shown(name)}]"


def _member(union: Any, value: Any) -> Any:
    """The member of a union that a value is read as; unions here are of one scalar and one record, or with None."""
    members = [member for member in get_args(union) if member is not NoneType]
    records = [member for member in members if is_dataclass(member)]
    return records[0] if records and (isinstance(value, dict) or len(members) == 1) else members[0]


def declared_fields(kind: Any, refinements: Refinements) -> dict[str, tuple[Any, bool]]:
    """Type and optionality of every field; a refinement adds a rule to a type that is declared elsewhere."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: (_refined(hints[field.name], refinements.get((kind, field.name))), _optional(field))
        for field in fields(kind)
    }


def _refined(hint: Any, rule: Rule | None) -> Any:
    return hint if rule is None else Annotated[hint, rule]


def _optional(field: "Field[Any]") -> bool:
    defaulted = field.default is not MISSING or field.default_factory is not MISSING
    return defaulted and not field.metadata.get("written")
