"""The table of settings as JSON Schema (draft 2020-12), for editors and for the test of the documented example.

Decides: nothing. Must not know: anything but the shapes.

A schema cannot hold the rules between settings, nor the traps of YAML; what it accepts may still be refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from yugong.core.settings.kinds import DURATION, SIZE, Kind
from yugong.core.settings.reading import ROOT
from yugong.core.settings.shapes import ListShape, MapShape, RefShape, ScalarShape, SecretShape, Shape, StructShape

__all__ = ["json_schema", "setting_paths"]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a settings file."""
    definitions: dict[str, Any] = {}
    top = _struct(ROOT, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Yugong settings",
        **top,
        "$defs": definitions,
    }


def setting_paths(shape: Shape = ROOT, path: str = "") -> list[str]:
    """Every setting's dotted path; `*` stands for a free name or a list's entry. Sections themselves are not listed."""
    if isinstance(shape, RefShape):
        return [path]
    if isinstance(shape, StructShape):
        parts = shape.fields.items()
        return [one for name, inner in parts for one in setting_paths(inner, f"{path}.{name}" if path else name)]
    if isinstance(shape, MapShape | ListShape) and isinstance(shape.item, StructShape):
        return setting_paths(shape.item, f"{path}.*")
    return [path]


def _schema(shape: Shape, definitions: dict[str, Any]) -> dict[str, Any]:
    found = _bare(shape, definitions)
    return {"anyOf": [found, {"type": "null"}]} if shape.is_nullable else found


def _bare(shape: Shape, definitions: dict[str, Any]) -> dict[str, Any]:
    if isinstance(shape, ScalarShape):
        return _scalar(shape)
    if isinstance(shape, SecretShape):
        return {"type": "string", "minLength": 1, "writeOnly": True}
    if isinstance(shape, ListShape):
        many = {"type": "array", "items": _bare(shape.item, definitions), "maxItems": shape.spec.items_max}
        return {"anyOf": [many, many["items"]]} if isinstance(shape.item, ScalarShape) else many
    if isinstance(shape, MapShape):
        return {
            "type": "object",
            "propertyNames": shape.spec.key.schema,
            "additionalProperties": _bare(shape.item, definitions),
        }
    assert isinstance(shape, StructShape)
    name = shape.record.__name__
    if name not in definitions:
        definitions[name] = {}  # so that a record that holds itself would end
        definitions[name] = _struct(shape, definitions)
    reference = {"$ref": f"#/$defs/{name}"}
    return {"anyOf": [reference, {"type": "string", "minLength": 1}]} if isinstance(shape, RefShape) else reference


def _struct(shape: StructShape, definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {}
    for field in msgspec.structs.fields(shape.record):
        inner = shape.fields[field.name]
        properties[field.name] = {**_schema(inner, definitions), **_about(inner)}
        if field.default is not msgspec.NODEFAULT and not isinstance(field.default, msgspec.Struct):
            properties[field.name]["default"] = _written(inner, field.default)
    found: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    if isinstance(shape, RefShape):
        found |= {"minProperties": 1, "maxProperties": 1}
    return found | ({"required": list(shape.required)} if shape.required else {})


def _scalar(shape: ScalarShape) -> dict[str, Any]:
    found = dict(shape.kind.schema)
    if shape.spec.low is not None and "enum" not in found:
        found |= {"minimum": shape.spec.low, "maximum": shape.spec.high}  # bounds the numbers; text is bound by x-range
    return found


def _about(shape: Shape) -> dict[str, Any]:
    found: dict[str, Any] = {"description": shape.spec.doc}
    kind = shape.spec.kind
    if kind is not None and kind.unit:
        found["x-unit"] = kind.unit
    if kind in (DURATION, SIZE) and shape.spec.low is not None:
        found["x-range"] = [_text(kind, shape.spec.low), _text(kind, shape.spec.high)]
    if shape.spec.restart:
        found["x-restart"] = True
    return found


def _text(kind: Kind | None, bound: float | None) -> Any:
    assert kind is not None
    assert bound is not None
    return kind.write(int(bound) if kind is SIZE else bound)


def _written(shape: Shape, value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or not isinstance(shape, ScalarShape) else shape.kind.write(value)
