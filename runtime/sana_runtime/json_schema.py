"""Make the published JSON Schema from the declarations that the strict reader reads by, so that the two agree."""

from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from sana_runtime.rules import USUAL, Json
from sana_runtime.strict import Refinements, declared_fields

__all__ = ["json_schema"]


def json_schema(kind: Any, refinements: Refinements | None = None) -> Json:
    """The JSON Schema (2020-12) of what `load` accepts for `kind`."""
    definitions: dict[str, Json] = {}
    reference = _schema(kind, refinements or {}, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **reference, "$defs": definitions}


def _schema(kind: Any, refinements: Refinements, definitions: dict[str, Json]) -> Json:
    if get_origin(kind) is Annotated:
        kind, *rules = get_args(kind)
        schema = _schema(kind, refinements, definitions)
        return {"allOf": [schema, *(rule.schema() for rule in rules)]}
    if get_origin(kind) in (Union, UnionType):
        members = [_schema(m, refinements, definitions) for m in get_args(kind) if m is not NoneType]
        return members[0] if len(members) == 1 else {"anyOf": members}
    if is_dataclass(kind):
        return _record_schema(kind, refinements, definitions)
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _schema(get_args(kind)[1], refinements, definitions)}
    if get_origin(kind) is tuple:
        return _row_schema(get_args(kind), refinements, definitions)
    schema = {"type": {str: "string", int: "integer", float: "number", bool: "boolean"}[kind]}
    return {**schema, **{key: limit for rule in USUAL.get(kind, ()) for key, limit in rule.schema().items()}}


def _row_schema(kinds: tuple[Any, ...], refinements: Refinements, definitions: dict[str, Json]) -> Json:
    if kinds[-1] is Ellipsis:
        return {"type": "array", "items": _schema(kinds[0], refinements, definitions)}
    entries = [_schema(kind, refinements, definitions) for kind in kinds]
    return {"type": "array", "prefixItems": entries, "minItems": len(kinds), "maxItems": len(kinds)}


def _record_schema(kind: Any, refinements: Refinements, definitions: dict[str, Json]) -> Json:
    if kind.__name__ not in definitions:
        definition: Json = {"type": "object", "description": (kind.__doc__ or "").split("\n")[0]}
        definitions[kind.__name__] = definition
        declared = declared_fields(kind, refinements)
        definition["properties"] = {
            name: _schema(hint, refinements, definitions) for name, (hint, _) in declared.items()
        }
        definition["required"] = [name for name, (_, optional) in declared.items() if not optional]
        definition["additionalProperties"] = False
    return {"$ref": f"#/$defs/{kind.__name__}"}
