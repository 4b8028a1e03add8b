"""Publishes the layout of a record: as a JSON schema, and as tables of its fields for the site.

layout -> JSON schema, with `unit` and `source` beside the words of JSON Schema -> [Section], one for each object in it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.records.layout import layout_of
from bench.records.record import RecordLayout
from bench.records.served import ServedLayout

FILES: dict[str, type] = {"record.schema.json": RecordLayout, "served.schema.json": ServedLayout}
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ANY = "NAME"  # stands in a path for a name of the user's, such as that of a text
KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "object",
    "null": "null",
}


@dataclass(frozen=True)
class FieldRow:
    """Describes a field of an object in a record.

    needed  whether every such object has it
    source  the module that writes it
    """

    name: str
    kind: str
    unit: str
    needed: bool
    meaning: str
    source: str


@dataclass(frozen=True)
class Section:
    """Describes an object in a record: where it stands, what it is, and its fields."""

    path: str
    about: str
    rows: tuple[FieldRow, ...]


def schema_of_layout(layout: type) -> dict[str, Any]:
    """Return the JSON schema of a layout. It has all rules that concern a single field."""
    schema: dict[str, Any] = _without_titles(layout_of(layout).model_json_schema())
    return {"$schema": DIALECT, "title": layout.__name__} | schema


def _without_titles(schema: Any, of_names: bool = False) -> Any:
    """Return a schema without titles, since they repeat names, and without the default null of absent fields.

    of_names  whether the keys are names of fields, and no words of JSON Schema
    """
    if isinstance(schema, list):
        return [_without_titles(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    left_out = () if of_names else ("title", "default")
    return {
        name: _without_titles(inner, name in ("properties", "$defs") and not of_names)
        for name, inner in schema.items()
        if name not in left_out
    }


def sections_of_layout(layout: type) -> list[Section]:
    """Return the objects of a layout from the outside to the inside, each kind of them once."""
    schema = schema_of_layout(layout)
    return list(_walk_objects(schema, schema["$defs"], "", "", {}))


def _walk_objects(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str, source: str, path_by_kind: dict[str, str]
) -> Iterator[Section]:
    """Yield an object and those inside it. `path_by_kind` has the place where each kind of object was described."""
    needed, source = schema.get("required", ()), schema.get("source") or source
    rows, inside = [], list[tuple[Mapping[str, Any], str, str]]()
    for name, field in schema["properties"].items():
        by = field.get("source") or source
        meaning = str(field.get("description", ""))
        for kind, ending in _objects(field):
            place = f"{path}.{name}{ending}".removeprefix(".")
            if kind in path_by_kind:
                meaning += f" (as {path_by_kind[kind]})"
            else:
                path_by_kind[kind] = place
                inside.append((definitions[kind], place, by))
        rows.append(FieldRow(name, _kind(field), _unit(field), name in needed, meaning, by))
    yield Section(path, str(schema.get("description", "")), tuple(rows))
    for part, place, by in inside:
        yield from _walk_objects(part, definitions, place, by, path_by_kind)


def _objects(field: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name of each kind of object that a field holds, and the ending that its place adds to the path."""
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2], ""
    for alternative in field.get("anyOf", ()):
        yield from _objects(alternative)
    for key, ending in (("items", "[]"), ("additionalProperties", f".{ANY}")):
        if isinstance(field.get(key), dict):
            yield from ((kind, ending + more) for kind, more in _objects(field[key]))


def _kind(field: Mapping[str, Any]) -> str:
    """Say in words what a field may hold, with its limits."""
    if "anyOf" in field:
        return " or ".join(map(_kind, field["anyOf"]))
    if "enum" in field or "const" in field:
        return ", ".join(map(str, field.get("enum", [field.get("const")])))
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}" if field.get("items") else "list"
    if isinstance(field.get("additionalProperties"), dict):
        return f"object: {_kind(field['additionalProperties'])} by name"
    if "$ref" in field:
        return "object"
    return KINDS.get(str(field.get("type")), "anything")


def _unit(field: Mapping[str, Any]) -> str:
    """Return the unit of a field, or of its items."""
    inner = [*field.get("anyOf", ()), field.get("items"), field.get("additionalProperties")]
    units = [field.get("unit"), *(_unit(schema) for schema in inner if isinstance(schema, dict))]
    return next(filter(None, units), "")
