"""YAML files that people write -> validated models, with every problem of a file at once, each with file:line and key.

A value that only somebody else can tell is written `!ask "what to ask"`: it is kept as an open question (Ask).
Scalars reach the models as the text that was written: `007`, `yes`, `1e3` and `4:30` are what the person typed, and the
type of the field decides what they mean. (YAML's own guesses would turn them into 7, True, 1000.0 and 270.)
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from fermigrid.credential import hidden
from fermigrid.errors import ConfigError, Problem
from fermigrid.yaml_words import in_words

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
_ASK = "!ask"
_STANDARD = "tag:yaml.org,2002:"
_STANDARD_TAGS = frozenset(  # what plain values are taken for, and what a person may call them
    f"{_STANDARD}{name}"
    for name in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq", "merge", "value")
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Model(BaseModel):
    """The base of all models of files: no unknown keys, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Clash(ValueError):
    """What one key of a mapping says does not go with what another says, which may stand in another file."""

    def __init__(self, key: str, other: str, why: str) -> None:
        self.key, self.other = key, other
        super().__init__(why)


class Place(NamedTuple):
    """Where a value stands: file and line (from 1; 0: the file as a whole)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True)
class Ask:
    """A value that is not known yet: what to ask the site's people."""

    question: str


@dataclass(frozen=True)
class Source:
    """Where each value stands: key path -> place. `file` is the one that was read; values may be of what it extends.

    `unanswered`: of secrets that are left out because something of them is still to be asked for, what that is.
    """

    file: str
    places: dict[Key, Place] = field(default_factory=dict, repr=False)
    unanswered: Mapping[str, tuple[Problem, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_lines(cls, file: str, lines: Mapping[Key, int]) -> Source:
        """All values in one file: key path -> line."""
        return cls(file, {key: Place(file, line) for key, line in lines.items()})

    def place(self, key: Key) -> Place:
        """Where the value of `key` stands, or the nearest parent that was written."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, Place(self.file, 0))

    def problem(self, key: Key, message: str) -> Problem:
        """A problem at `key`, or at the nearest parent that was written."""
        return Problem(*self.place(key), show_key(key), message)

    def clash(self, key: Key, other: Key, message: str) -> Problem:
        """A problem of two values: at the one that this file has, saying where the other stands."""
        if other in self.places and self.place(key).file != self.file:
            key, other = other, key
        where = f". {show_key(other)} is at {self.place(other)}" if other in self.places else ""
        return self.problem(key, message + where)


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
        self.source.places.setdefault(key, Place(self.source.file, node.start_mark.line + 1))
        self.left -= 1
        if self.left < 0:
            text = "aliases (*name) make the file enormous: write its values out"
            raise ConfigError([self.source.problem(key[:1], text)])
        if node.tag != "!" and node.tag not in _STANDARD_TAGS:
            return self._tagged(node, key)
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
                first = self.source.places[here].line
                line = name_node.start_mark.line + 1
                self.problems.append(
                    Problem(self.source.file, line, show_key(here), f"written twice (first in line {first})")
                )
                continue
            self.source.places[here] = Place(self.source.file, name_node.start_mark.line + 1)
            self._scalar(name_node, here)
            data[name] = self.build(value_node, here)
        return data

    def _tagged(self, node: yaml.Node, key: Key) -> Ask | None:
        """`!ask "the question"`; no other tag is known."""
        if node.tag != _ASK:
            self.problems.append(
                self.source.problem(key, f"unknown tag {node.tag}{nearest(node.tag, [_ASK])} Known: !ask")
            )
        elif not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            self.problems.append(self.source.problem(key, '!ask takes one text, the question: !ask "what to ask"'))
        else:
            return Ask(str(self._scalar(node, key)))
        return None

    def _scalar(self, node: yaml.Node, key: Key) -> str | None:
        if node.tag == f"{_STANDARD}null" and node.value in ("", "~", "null", "Null", "NULL"):
            return None
        shown = repr(hidden(node.value)[:60])
        for char, name in _FORBIDDEN.items():
            if char in node.value and not (char != "\0" and key[-2:-1] == ("environment",)):  # job.env carries those
                text = f"{shown} contains {name}, which no batch system carries unchanged: remove it"
                self.problems.append(self.source.problem(key, text))
        if bad := _SURROGATE.search(node.value):
            self.problems.append(self.source.problem(key, f"{shown} contains {bad[0]!r}, half a character"))
        return str(node.value)


def parse_yaml(text: str, file: str) -> tuple[dict[str, Any], Source]:
    """YAML text -> plain data (scalars as text) and the line of each key. Raises ConfigError with all problems."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line, what = in_words(error)
        raise ConfigError([Problem(file, line, "", f"not YAML: {what}")]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"not YAML: the character {chr(int(error.character))!r} may not be written; remove it"
        raise ConfigError([Problem(file, line, "", what)]) from error
    except (ValueError, OverflowError) as error:  # "\UFFFFFFFF"
        raise ConfigError([Problem(file, 0, "", f"not YAML: an escape is no character: {error}")]) from error
    except RecursionError as error:
        raise ConfigError([Problem(file, 0, "", "nested too deeply")]) from error
    if not isinstance(node, yaml.MappingNode):
        empty = "has nothing in it; it " if node is None else ""
        raise ConfigError([Problem(file, 1, "", f"{empty}must be keys with values (key: value)")])
    builder = _Builder(file, len(text) + 1000)  # without aliases no file has more values than characters
    try:
        data = builder.build(node, ())
    except RecursionError as error:
        raise ConfigError([Problem(file, 0, "", "nested too deeply: does an alias contain itself?")]) from error
    if builder.problems:
        raise ConfigError(builder.problems)
    return data, builder.source


def _beside(path: Path) -> list[str]:
    """The YAML files of the same folder."""
    with suppress(OSError):
        return sorted(one.name for one in path.parent.glob("*.yaml"))
    return []


def read_text(path: Path) -> str:
    """The text of a file a person names. Raises ConfigError when it is absent, unreadable or not UTF-8."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        near = nearest(path.name, _beside(path)).rstrip(".") if isinstance(error, FileNotFoundError) else ""
        raise ConfigError([Problem(str(path), 0, "", f"cannot be read: {error.strerror}{near}")]) from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        text = f"not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8"
        raise ConfigError([Problem(str(path), line, "", text)]) from error


def open_questions(data: Any, key: Key = ()) -> Iterator[tuple[Key, Ask]]:
    """Every `!ask` in plain data, in its order."""
    if isinstance(data, Ask):
        yield key, data
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from open_questions(value, (*key, name))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from open_questions(value, (*key, index))


def find_wrong(model: type[BaseModel], data: dict[str, Any], source: Source) -> list[Problem]:
    """Everything that is wrong with plain data; open questions are not."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        return _wrong(model, error, source)
    return []


def validate(model: type[M], data: dict[str, Any], source: Source) -> M:
    """Plain data -> the model. Raises ConfigError with every problem, each at its line; open questions are some."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        questions = [source.problem(key, f"is to be filled in: {ask.question}") for key, ask in open_questions(data)]
        raise ConfigError([*_wrong(model, error, source), *questions]) from error


def _wrong(model: type[BaseModel], error: ValidationError, source: Source) -> list[Problem]:
    problems = [
        _explain(model, details, source)
        for details in error.errors()
        if not isinstance(details["input"], Ask)
        and not (details["type"] == "too_short" and details["input"])  # what it has is wrong, and told by itself
    ]
    return list(dict.fromkeys(problems))


def load(model: type[M], path: Path) -> tuple[M, Source]:
    """Read, parse and validate one file."""
    data, source = parse_yaml(read_text(path), str(path))
    return validate(model, data, source), source


def _explain(model: type[BaseModel], details: ErrorDetails, source: Source) -> Problem:
    key: Key = tuple(part for part in details["loc"] if part != "[key]")
    kind, value = details["type"], details["input"]
    context = details.get("ctx", {})
    if kind in _PLAIN:
        braces = kind == "string_type" and isinstance(value, dict) and not any(value.values())
        quotes = "; one that begins with '{' needs quotes" if braces else ""
        return source.problem(key, f"{_show(value)} {_PLAIN[kind]}{quotes}")
    if kind == "missing":
        return source.problem(key, "is required")
    if kind == "extra_forbidden":
        return _unknown(key, fields_at(model, key[:-1]), source)
    if kind in ("literal_error", "enum"):
        allowed = str(context["expected"])
        words = allowed.replace("'", "").replace(" or ", ", ").split(", ")
        return source.problem(key, f"{_show(value)} is not allowed{nearest(str(value), words)} Allowed: {allowed}")
    error = context.get("error")
    if isinstance(error, Clash):
        return source.clash((*key, error.key), (*key, error.other), str(error))
    why = str(error) if kind == "value_error" else details["msg"].replace("Input should", "must")
    shown = "" if isinstance(value, dict) else f"{_show(value)}: "
    return source.problem(key, shown + why)


def _show(value: object) -> str:
    text = hidden(repr(value)) if value is not None else "empty"
    return text if len(text) <= 80 else text[:77] + "..."


def kinds_of(annotation: Any) -> Iterator[Any]:
    """The classes and generics that an annotation may stand for, Optional, Union and Annotated taken apart."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from kinds_of(part)
    elif origin is typing.Annotated:
        yield from kinds_of(typing.get_args(annotation)[0])
    else:
        yield annotation


def marks_of(annotation: Any) -> Iterator[Any]:
    """The checks that are written into an annotation, or into one of the types that it may stand for."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for part in arguments:
            yield from marks_of(part)
    elif origin is typing.Annotated:
        for mark in arguments[1:]:
            yield from (mark, *getattr(mark, "metadata", ()))
        yield from marks_of(arguments[0])


def _children(annotation: Any, part: str | int) -> Iterator[Any]:
    for kind in kinds_of(annotation):
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found = {(f.alias or name): f.annotation for name, f in kind.model_fields.items()}.get(str(part))
            if found is not None:
                yield found
        elif origin is not None and isinstance(origin, type) and args:
            yield args[-1] if issubclass(origin, Mapping) else args[0]


def find_unknown(model: type[BaseModel], keys: Iterable[Key], source: Source) -> list[Problem]:
    """Those of `keys` that the model does not have; what stands in a free mapping it always has."""
    found = ((key, fields_at(model, key[:-1])) for key in keys)
    return [_unknown(key, known, source) for key, known in found if known and key[-1] not in known]


def _unknown(key: Key, known: set[str], source: Source) -> Problem:
    names = sorted(known)
    return source.problem(key, f"unknown key{nearest(str(key[-1]), names)} Allowed here: {', '.join(names)}")


def fields_at(model: type[BaseModel], key: Key) -> set[str]:
    """The keys that a file may have below `key`; none where it may have any."""
    annotations: list[Any] = [model]
    for part in key:
        annotations = [child for a in annotations for child in _children(a, part)]
    kinds = [k for a in annotations for k in kinds_of(a) if isinstance(k, type) and issubclass(k, BaseModel)]
    return {f.alias or name for kind in kinds for name, f in kind.model_fields.items()}
