"""The JSON Schemas of the files that people write, for editors: made from the models, and shipped in `schemas/`. Pure.

An editor reads YAML with YAML's own guesses, so a text may look like a number to it (`version: 1.5`). What two keys
must have to do with each other only `fermigrid check` knows.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel

from fermigrid.campaign import After, BindPath, Campaign, Inputs, Variable, Word
from fermigrid.config import kinds_of, marks_of
from fermigrid.image import Catalogue
from fermigrid.retry_rule import list_of
from fermigrid.site import Site
from fermigrid.units import BYTES, SECONDS, parse_bytes, parse_seconds

Schema = dict[str, Any]
Descriptions = Mapping[tuple[str, str], str]  # (section of the reference page, key) -> what it says
MODELS: Mapping[str, tuple[type[BaseModel], str]] = {  # file -> its model, and the page's first section
    "campaign": (Campaign, "campaign file"),
    "site": (Site, "site file"),
    "images": (Catalogue, "catalogue"),
}
_DRAFT = "http://json-schema.org/draft-07/schema#"  # what editors know best
_TEXT: Schema = {"type": ["string", "number", "boolean"]}
_BOOLEAN = "^([Tt]rue|TRUE|[Ff]alse|FALSE|[Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF)$"


def _quantity(units: Mapping[str, int], example: str) -> Schema:
    return {"type": "string", "pattern": rf"^\s*[0-9]+(\.[0-9]+)?\s*({'|'.join(units)})\s*$", "examples": [example]}


def _validator(alias: Any) -> Any:
    """The function that an annotated type is checked with."""
    return typing.get_args(alias)[1].func


_PLACES: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}
_KNOWN: Mapping[Any, Schema] = {  # function that checks a type -> the schema of that type
    parse_bytes: _quantity(BYTES, "2 GiB"),
    parse_seconds: _quantity(SECONDS, "4 h"),
    list_of: _PLACES,
    _validator(Word): {**_TEXT, "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$"},
    _validator(Variable): {"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    _validator(BindPath): {"type": "string", "pattern": "^/[^:,]*$"},
    _validator(After): {
        "anyOf": [
            {"type": "array", "items": _TEXT},
            {"type": "object", "additionalProperties": {"enum": ["accepted", "done"]}},
        ]
    },
    _validator(Inputs): {
        "anyOf": [{"type": "array", "items": _TEXT}, {"type": "object", "additionalProperties": _PLACES}]
    },
}


def make_schema(file: str, descriptions: Descriptions) -> Schema:
    """The schema of a `campaign`, `site` or `images` file."""
    model, top = MODELS[file]
    plain = _object(model, "", top, descriptions)
    head = {"$schema": _DRAFT, "title": f"fermigrid: {top}"}
    if file != "site":
        return {**head, **plain}
    whole = {**_overlay(plain), "required": ["site"]}
    return {**head, "if": {"required": ["extends"]}, "then": whole, "else": plain}


def _object(model: type[BaseModel], path: str, section: str, descriptions: Descriptions) -> Schema:
    """A model's keys; `path` is how it is reached (`steps.NAME.split`), by which the pages name its section."""
    properties: Schema = {}
    required = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        found = _of(field.annotation, tuple(field.metadata), f"{path}.{key}".lstrip("."), descriptions)
        if says := descriptions.get((section, key)):
            found = {**found, "description": says}
        if field.is_required():
            required.append(key)
        properties[key] = found
    more = {"required": required} if required else {}
    return {"type": "object", "properties": properties, **more, "additionalProperties": False}


def _of(annotation: Any, metadata: tuple[Any, ...], path: str, descriptions: Descriptions) -> Schema:
    """The schema of one value by its type, with the checks that go with it."""
    marks = (*metadata, *marks_of(annotation))
    kinds = list(kinds_of(annotation))
    found = next((_KNOWN[mark.func] for mark in marks if getattr(mark, "func", None) in _KNOWN), None)
    if found is None:
        kind = next(kind for kind in kinds if kind is not type(None))
        found = {**_plain(kind, path, descriptions), **_bounds(marks, typing.get_origin(kind))}
    return _or_null(found) if type(None) in kinds else found


def _plain(kind: Any, path: str, descriptions: Descriptions) -> Schema:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _object(kind, path, path, descriptions)
    if origin is dict:
        names, values = (_of(argument, (), f"{path}.NAME", descriptions) for argument in arguments)
        only = {"propertyNames": {"pattern": names["pattern"]}} if "pattern" in names else {}
        return {"type": "object", "additionalProperties": values, **only}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0], (), f"{path}[]", descriptions)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {"enum": [each.value for each in kind]}
    if kind is bool:
        return {"type": ["boolean", "string"], "pattern": _BOOLEAN}
    if kind is int:
        return {"type": ["integer", "string"], "pattern": "^-?[0-9]+$"}
    if kind is float:
        return {"type": ["number", "string"], "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}
    return _TEXT


def _bounds(marks: tuple[Any, ...], origin: Any) -> Schema:
    bounds: Schema = {}
    lengths = "minProperties" if origin is dict else "minItems"
    for mark in marks:
        for name, word in (("ge", "minimum"), ("le", "maximum"), ("min_length", lengths)):
            if (bound := getattr(mark, name, None)) is not None:
                bounds[word] = bound
    return bounds


def _or_null(schema: Schema) -> Schema:
    """The same, or nothing."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    if "type" not in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return {**schema, "type": [*kinds, *(() if "null" in kinds else ("null",))]}


def _overlay(schema: Schema) -> Schema:
    """The schema of what lies over another site: nothing is required, and an empty value takes a key away."""
    if schema.get("type") not in ("object", ["object", "null"]):
        return schema
    loose = {name: value for name, value in schema.items() if name not in ("required", "minProperties")}
    if "properties" in schema:
        loose["properties"] = {name: _or_null(_overlay(value)) for name, value in schema["properties"].items()}
    elif isinstance(schema["additionalProperties"], dict):
        loose["additionalProperties"] = _or_null(_overlay(schema["additionalProperties"]))
    return loose
