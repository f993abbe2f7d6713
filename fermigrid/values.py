"""Effective values and where they come from: of one file's model, and of a campaign at its sites. Pure.

Order, the later over the earlier: built-in < parent site < site < campaign < command line.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fermigrid.config import Ask, Key, Place, Source, kinds_of, marks_of, open_questions, show_key
from fermigrid.credential import hidden, what_is_written
from fermigrid.units import exact_bytes, exact_seconds, parse_bytes, parse_seconds

_NAMED = {("environment",), ("parameters",), ("attributes",)}  # their names may tell that a value is a secret
_UNITS = {parse_bytes: exact_bytes, parse_seconds: exact_seconds}


class Layer(StrEnum):
    """What said a value."""

    BUILT_IN = "built-in"
    PARENT = "parent site"
    SITE = "site"
    CATALOGUE = "catalogue"
    CAMPAIGN = "campaign"
    COMMAND_LINE = "command line"
    RENDERED = "rendered"


@dataclass(frozen=True)
class Value:
    """One effective value: `value` as JSON has it (bytes, seconds), `text` as a person writes it. `place`: None for
    what is built in."""

    key: Key
    value: Any
    text: str
    layer: Layer
    place: Place | None = None

    @property
    def name(self) -> str:
        """Its key as a person writes it: `container.limits.path`."""
        return show_key(self.key)


@dataclass(frozen=True)
class Origin:
    """The files of a model, and what they are."""

    source: Source
    layer: Layer

    def of(self, key: Key) -> tuple[Layer, Place | None]:
        """Layer and place of the value at `key`; one that nobody wrote is built in."""
        place = self.source.places.get(key)
        if place is None:
            return Layer.BUILT_IN, None
        is_parent = self.layer is Layer.SITE and place.file != self.source.file
        return Layer.PARENT if is_parent else self.layer, place


def values_of(model: type[BaseModel], data: Mapping[str, Any], origin: Origin, key: Key = ()) -> Iterator[Value]:
    """Every value of a file that `find_wrong` found nothing in, defaults included, in the order of the model."""
    for name, field in model.model_fields.items():
        here = (*key, field.alias or name)
        written = data.get(str(here[-1]))
        if written is None:
            yield from _default(field, here, origin)
        else:
            yield from _written(field, written, here, origin)


def _default(field: FieldInfo, key: Key, origin: Origin) -> Iterator[Value]:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return
    if isinstance(default, BaseModel):
        yield from values_of(type(default), {}, origin, key)
        return
    _, place = origin.of(key)  # an empty value took another one away
    value = list(default) if isinstance(default, tuple) else default
    yield Value(key, value, _show(value, field), Layer.BUILT_IN, place)


def _written(field: FieldInfo, written: Any, key: Key, origin: Origin) -> Iterator[Value]:
    model = _model_in(field.annotation)
    if isinstance(written, dict) and model:
        yield from values_of(model, written, origin, key)
        return
    model = _model_in(_item_of(field.annotation))
    if isinstance(written, dict) and written and model:
        for name, entry in written.items():
            if isinstance(entry, dict):
                yield from values_of(model, entry, origin, (*key, name))
            else:
                yield _value((*key, name), _with_asks(entry), origin)
    elif isinstance(written, dict) and written:
        for name, entry in _normal(field, written).items():
            yield _value((*key, name), entry, origin)
    elif isinstance(written, list) and written and model:
        for index, entry in enumerate(_normal(field, written)):
            yield _value((*key, index), entry, origin)
    else:
        quantity = written if isinstance(written, str) and _unit(field) else None
        yield _value(key, _normal(field, written), origin, quantity)


def _value(key: Key, value: Any, origin: Origin, text: str | None = None) -> Value:
    why = what_is_written(str(key[-1]), value) if key[-2:-1] in _NAMED and isinstance(value, str) else None
    seen = f"(not shown: {why})" if why else _without_secrets(value)
    return Value(key, seen, text or show(seen), *origin.of(key))


def _without_secrets(value: Any) -> Any:
    """The same, but for texts that look like a secret: `check` refuses those, and nothing shows them."""
    if isinstance(value, dict):
        return {name: _without_secrets(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_secrets(entry) for entry in value]
    return hidden(value) if isinstance(value, str) else value


def _normal(field: FieldInfo, written: Any) -> Any:
    """The value of a field as JSON has it: numbers, true and false; open questions as `{ask: ...}`."""
    if any(open_questions(written)):
        return _with_asks(written)
    annotation: Any = Annotated[(field.annotation, None, *field.metadata)]
    adapter = TypeAdapter[Any](annotation)
    return adapter.dump_python(adapter.validate_python(written), mode="json", by_alias=True)


def _with_asks(written: Any) -> Any:
    if isinstance(written, Ask):
        return {"ask": written.question}
    if isinstance(written, dict):
        return {name: _with_asks(value) for name, value in written.items()}
    return [_with_asks(value) for value in written] if isinstance(written, list) else written


def _show(value: Any, field: FieldInfo) -> str:
    unit = _unit(field)
    return _UNITS[unit](value) if unit and isinstance(value, int) else show(value)


def show(value: Any) -> str:
    """A JSON value in one line, as in YAML."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        if list(value) == ["ask"]:
            return f"!ask {value['ask']}"
        parts = (f"{name}: {show(entry)}" for name, entry in value.items() if entry is not None)
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(show(entry) for entry in value) + "]"
    text = str(value)
    return text if text.isprintable() and text else repr(text)


def _unit(field: FieldInfo) -> Any:
    """The parser of a field's quantity, if it is one."""
    marks = (*field.metadata, *marks_of(field.annotation))
    return next((mark.func for mark in marks if getattr(mark, "func", None) in _UNITS), None)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, perhaps an optional one."""
    kinds = kinds_of(annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _item_of(annotation: Any) -> Any:
    """What a mapping or list of that annotation holds."""
    for kind in kinds_of(annotation):
        arguments = typing.get_args(kind)
        if typing.get_origin(kind) is dict:
            return arguments[1]
        if typing.get_origin(kind) is tuple:
            return arguments[0]
    return None


def as_tree(values: Iterable[Value]) -> dict[str, Any]:
    """Values in their nested keys, as JSON has them."""
    return _nested((value.key, value.value) for value in values)


def as_yaml_text(values: Iterable[Value]) -> str:
    """Values as one file of YAML: with units, with open questions, without what is not set. It extends nothing."""
    wanted = (value for value in values if value.value is not None and value.key != ("extends",))
    return yaml.dump(_nested((v.key, _as_written(v)) for v in wanted), Dumper=_Dumper, sort_keys=False, width=100)


def _as_written(value: Value) -> Any:
    is_quantity = isinstance(value.value, int) and not isinstance(value.value, bool)
    return value.text if is_quantity and value.text != str(value.value) else _asks_back(value.value)


def _asks_back(value: Any) -> Any:
    if isinstance(value, dict):
        return Ask(value["ask"]) if list(value) == ["ask"] else {k: _asks_back(v) for k, v in value.items()}
    return [_asks_back(entry) for entry in value] if isinstance(value, list) else value


def _nested(pairs: Iterable[tuple[Key, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        *above, last = key if isinstance(key[-1], str) else key[:-1]
        inner = tree
        for part in above:
            inner = inner.setdefault(str(part), {})
        if last is key[-1]:
            inner[str(last)] = value
        else:
            inner.setdefault(str(last), []).append(value)  # the items of a list come in their order
    return tree


class _Dumper(yaml.SafeDumper):
    """YAML with `!ask`."""


_Dumper.add_representer(Ask, lambda dumper, ask: dumper.represent_scalar("!ask", ask.question, style='"'))
