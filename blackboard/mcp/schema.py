"""JSON Schemas as MCP clients take them best: no references, no titles, no nulls; fewer tokens for the model."""

from __future__ import annotations

from typing import Any, cast

from pydantic import BaseModel

__all__ = ["input_schema", "output_schema"]


def input_schema(model: type[BaseModel]) -> dict[str, Any]:
    """What a tool takes. An argument that may be left out is not required; that it may also be null is not shown."""
    raw = model.model_json_schema()
    schema = _inlined(raw, raw.get("$defs", {}), nullable=False)
    schema.setdefault("properties", {})
    # What the class says of itself is for readers of the code.
    del schema["description"]
    return schema


def output_schema(model: type[BaseModel]) -> dict[str, Any]:
    """What a tool's structured content is like; null stays, for clients check against it."""
    raw = model.model_json_schema(mode="serialization")
    return _inlined(raw, raw.get("$defs", {}), nullable=True)


def _inlined(node: dict[str, Any], definitions: dict[str, Any], *, nullable: bool) -> dict[str, Any]:
    if "$ref" in node:
        target = definitions[str(node["$ref"]).rsplit("/", 1)[1]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    choices = node.get("anyOf")
    if not nullable and choices:
        kept = [choice for choice in choices if choice != {"type": "null"}]
        if len(kept) == 1:
            node = {**{key: value for key, value in node.items() if key != "anyOf"}, **kept[0]}
            return _inlined(_without_null_default(node), definitions, nullable=nullable)
    inlined: dict[str, Any] = {}
    for key, value in node.items():
        if key in {"$defs", "title"} or (nullable and key == "description"):
            continue
        if key == "properties":
            properties = cast("dict[str, dict[str, Any]]", value)
            inlined[key] = {name: _inlined(part, definitions, nullable=nullable) for name, part in properties.items()}
        elif key in {"items", "additionalProperties"} and isinstance(value, dict):
            inlined[key] = _inlined(cast("dict[str, Any]", value), definitions, nullable=nullable)
        elif key in {"anyOf", "oneOf", "allOf"}:
            parts = cast("list[dict[str, Any]]", value)
            inlined[key] = [_inlined(part, definitions, nullable=nullable) for part in parts]
        else:
            inlined[key] = value
    return inlined if nullable else _without_null_default(inlined)


def _without_null_default(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if not (key == "default" and value is None)}
