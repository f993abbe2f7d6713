"""YAML files that people write -> validated models, with every problem of a file at once, each with file:line and key.

Scalars reach the models as the text that was written: `007`, `yes`, `1e3` and `4:30` are what the person typed, and the
type of the field decides what they mean. (YAML's own guesses would turn them into 7, True, 1000.0 and 270.)
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fermigrid.errors import ConfigError, Problem

Key = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)
_PLAIN = {  # pydantic's error types, in the words of the person who wrote the file
    "tuple_type": "must be a list: [a, b]",
    "dict_type": "must be keys with values: {a: b}",
    "model_type": "must be keys with values: {a: b}",
    "string_type": "must be a single text",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "bool_parsing": "must be true or false",
    "too_short": "may not be empty",
}
_FORBIDDEN = {"\0": "NUL", "\r": "a carriage return", "\n": "a line break"}
_SURROGATE = re.compile("[\ud800-\udfff]")


class Model(BaseModel):
    """The base of all models of files: no unknown keys, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Source:
    """Where each value of a file stands: key path -> line (from 1)."""

    file: str
    lines: dict[Key, int] = field(default_factory=dict, repr=False)

    def problem(self, key: Key, message: str) -> Problem:
        """A problem at `key`, or at the nearest parent that was written."""
        where = key
        while where and where not in self.lines:
            where = where[:-1]
        return Problem(self.file, self.lines.get(where, 0), show_key(key), message)


def show_key(key: Key) -> str:
    """`('steps', 'clump', 'command', 2)` -> `steps.clump.command[2]`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a sentence: `; did you mean 'x'?` or a full stop."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else "."


class _Builder:
    """Walks the YAML nodes once: plain data, the line of each key, and the problems of the text itself."""

    def __init__(self, file: str, most: int) -> None:
        self.source = Source(file)
        self.problems: list[Problem] = []
        self.left = most

    def build(self, node: yaml.Node, key: Key) -> Any:
        self.source.lines.setdefault(key, node.start_mark.line + 1)
        self.left -= 1
        if self.left < 0:
            text = "aliases (*name) make the file enormous: write its values out"
            raise ConfigError([self.source.problem(key[:1], text)])
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*key, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, key)

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                line = name_node.start_mark.line + 1
                self.problems.append(Problem(self.source.file, line, show_key(key), "a key must be a single text"))
                continue
            name = str(name_node.value)
            here = (*key, name)
            if name in data:
                first = self.source.lines[here]
                line = name_node.start_mark.line + 1
                self.problems.append(
                    Problem(self.source.file, line, show_key(here), f"written twice (first in line {first})")
                )
                continue
            self.source.lines[here] = name_node.start_mark.line + 1
            self._scalar(name_node, here)
            data[name] = self.build(value_node, here)
        return data

    def _scalar(self, node: yaml.Node, key: Key) -> str | None:
        if node.tag == "tag:yaml.org,2002:null" and node.value in ("", "~", "null", "Null", "NULL"):
            return None
        for char, name in _FORBIDDEN.items():
            if char in node.value and not (char != "\0" and key[-2:-1] == ("environment",)):  # job.env carries those
                text = f"{node.value[:60]!r} contains {name}, which no batch system carries unchanged: remove it"
                self.problems.append(self.source.problem(key, text))
        if bad := _SURROGATE.search(node.value):
            self.problems.append(self.source.problem(key, f"{node.value[:60]!r} contains {bad[0]!r}, half a character"))
        return str(node.value)


def parse_yaml(text: str, file: str) -> tuple[dict[str, Any], Source]:
    """YAML text -> plain data (scalars as text) and the line of each key. Raises ConfigError with all problems."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ConfigError([Problem(file, line, "", f"not YAML: {error.problem}")]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"not YAML: the character {chr(int(error.character))!r} may not be written; remove it"
        raise ConfigError([Problem(file, line, "", what)]) from error
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF"
        raise ConfigError([Problem(file, 0, "", f"not YAML: an escape is no character: {error}")]) from error
    except RecursionError as error:
        raise ConfigError([Problem(file, 0, "", "nested too deeply")]) from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError([Problem(file, 1, "", "must be keys with values (key: value)")])
    builder = _Builder(file, len(text) + 1000)  # without aliases no file has more values than characters
    try:
        data = builder.build(node, ())
    except RecursionError as error:
        raise ConfigError([Problem(file, 0, "", "nested too deeply: does an alias contain itself?")]) from error
    if builder.problems:
        raise ConfigError(builder.problems)
    return data, builder.source


def read_text(path: Path) -> str:
    """The text of a file a person names. Raises ConfigError when it is absent, unreadable or not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError([Problem(str(path), 0, "", f"cannot be read: {error.strerror}")]) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        text = f"not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8"
        raise ConfigError([Problem(str(path), line, "", text)]) from error


def validate(model: type[M], data: dict[str, Any], source: Source) -> M:
    """Plain data -> the model. Raises ConfigError with every problem, each at its line."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [
            _explain(model, details, source)
            for details in error.errors()
            if not (details["type"] == "too_short" and details["input"])  # what it has is wrong, and told by itself
        ]
        raise ConfigError(list(dict.fromkeys(problems))) from error


def load(model: type[M], path: Path) -> tuple[M, Source]:
    """Read, parse and validate one file."""
    data, source = parse_yaml(read_text(path), str(path))
    return validate(model, data, source), source


def _explain(model: type[BaseModel], details: ErrorDetails, source: Source) -> Problem:
    key: Key = tuple(part for part in details["loc"] if part != "[key]")
    kind, value = details["type"], details["input"]
    context = details.get("ctx", {})
    if kind in _PLAIN:
        return source.problem(key, f"{_show(value)} {_PLAIN[kind]}")
    if kind == "missing":
        return source.problem(key, "is required")
    if kind == "extra_forbidden":
        known = sorted(_fields_at(model, key[:-1]))
        return source.problem(key, f"unknown key{nearest(str(key[-1]), known)} Allowed here: {', '.join(known)}")
    if kind in ("literal_error", "enum"):
        allowed = str(context["expected"])
        words = allowed.replace("'", "").replace(" or ", ", ").split(", ")
        return source.problem(key, f"{value!r} is not allowed{nearest(str(value), words)} Allowed: {allowed}")
    why = str(context["error"]) if kind == "value_error" else details["msg"].replace("Input should", "must")
    shown = "" if isinstance(value, dict) else f"{_show(value)}: "
    return source.problem(key, shown + why)


def _show(value: object) -> str:
    text = repr(value) if value is not None else "empty"
    return text if len(text) <= 80 else text[:77] + "..."


def _models(annotation: Any) -> Iterator[Any]:
    """The classes and generics that an annotation may stand for, Optional, Union and Annotated taken apart."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _models(part)
    elif origin is typing.Annotated:
        yield from _models(typing.get_args(annotation)[0])
    else:
        yield annotation


def _children(annotation: Any, part: str | int) -> Iterator[Any]:
    for kind in _models(annotation):
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found = {(f.alias or name): f.annotation for name, f in kind.model_fields.items()}.get(str(part))
            if found is not None:
                yield found
        elif origin is not None and isinstance(origin, type) and args:
            yield args[-1] if issubclass(origin, Mapping) else args[0]


def _fields_at(model: type[BaseModel], key: Key) -> set[str]:
    annotations: list[Any] = [model]
    for part in key:
        annotations = [child for a in annotations for child in _children(a, part)]
    kinds = [k for a in annotations for k in _models(a) if isinstance(k, type) and issubclass(k, BaseModel)]
    return {f.alias or name for kind in kinds for name, f in kind.model_fields.items()}
