"""The reference pages say what the models and the command line are: no key, option or default more, less or other."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fermigrid.campaign import Bind, Campaign
from fermigrid.cli import VERBS, cli
from fermigrid.config import parse_yaml, validate
from fermigrid.image import Catalogue
from fermigrid.site import Site
from fermigrid.units import parse_bytes, parse_seconds

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES: Mapping[str, type[BaseModel]] = {"campaign": Campaign, "site": Site, "images": Catalogue}
TOP = {"campaign": "campaign file", "site": "site file", "images": "catalogue"}
ELSEWHERE = {
    ("site", "binds[]"),
    ("site", "retries.rules[]"),
    ("site", "retries.rules[].when"),
}  # sections that another page has
NUMBER = re.compile(r"[0-9]+\Z")


@dataclass(frozen=True)
class Section:
    """A section of a page: its heading, the rows of its first table, and its YAML."""

    heading: str
    rows: Mapping[str, tuple[str, str, str]]
    examples: tuple[str, ...]


def sections_of(page: str) -> dict[str, Section]:
    """The sections with a code word as heading."""
    text = (DOCS / "reference" / f"{page}.md").read_text()
    found = {}
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        heading, _, body = part.partition("\n")
        if not heading.startswith("`"):
            continue
        table = re.search(r"^\| (?:key|option) \|.*?(?=\n\n|\Z)", body, re.M | re.S)
        rows = {}
        for line in table[0].splitlines()[2:] if table else ():
            name, takes, default, says = (cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|"))
            rows[name] = (takes, default, says)
        examples = re.findall(r"^```yaml\n(.*?)^```", body, re.M | re.S)
        found[heading.strip("`")] = Section(heading, rows, tuple(examples))
    return found


def models_in(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """A model and those in it, with their paths: `steps.NAME.split`, `binds[]`."""
    yield path, model
    for name, field in model.model_fields.items():
        key = f"{path}.{field.alias or name}".lstrip(".")
        for kind, suffix in kinds_of(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from models_in(kind, key + suffix)


def kinds_of(annotation: Any, suffix: str = "") -> Iterator[tuple[Any, str]]:
    """The types that a field may hold, and how they are reached: directly, `.NAME` in a mapping, `[]` in a list."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from kinds_of(parts[0], suffix)
    elif origin in (Union, UnionType):
        for part in parts:
            yield from kinds_of(part, suffix)
    elif origin is dict:
        yield from kinds_of(parts[1], suffix + ".NAME")
    elif origin is tuple:
        yield from kinds_of(parts[0], suffix + "[]")
    else:
        yield annotation, suffix


SECTIONS = [
    pytest.param(page, path or TOP[page], model, id=f"{page}-{path or 'top'}")
    for page, top in PAGES.items()
    for path, model in models_in(top, "")
    if (page, path) not in ELSEWHERE
]


@pytest.mark.parametrize(("page", "heading", "model"), SECTIONS)
def test_keys_are_those_of_the_model(page: str, heading: str, model: type[BaseModel]) -> None:
    keys = [f"`{field.alias or name}`" for name, field in model.model_fields.items()]
    assert list(sections_of(page)[heading].rows) == keys


@pytest.mark.parametrize(("page", "heading", "model"), SECTIONS)
def test_defaults_are_those_of_the_model(page: str, heading: str, model: type[BaseModel]) -> None:
    rows = sections_of(page)[heading].rows
    for name, field in model.model_fields.items():
        takes, written, _ = rows[f"`{field.alias or name}`"]
        assert default_fits(field, takes, written), (
            f"{heading}.{name}: the page says {written}, it is {field.default!r}"
        )


def default_fits(field: FieldInfo, takes: str, written: str) -> bool:
    """Does the page's default say what the model does?"""
    default = field.default
    if field.is_required():
        return written == "*required*"
    if isinstance(default, BaseModel):
        return written == "see there" and default == type(default)()
    if default in (None, "", (), {}):
        return written in ("*none*", "same as `from`")
    if isinstance(default, tuple):
        return written == ", ".join(f"`{value}`" for value in default)
    text = written.strip("`")
    if isinstance(default, bool):
        return text == str(default).lower()
    if takes.startswith("bytes"):
        return parse_bytes(text) == default
    if takes.startswith("time"):
        return parse_seconds(text) == default
    return text == str(default)


@pytest.mark.parametrize(("page", "heading", "model"), SECTIONS)
def test_choices_and_ranges_are_those_of_the_model(page: str, heading: str, model: type[BaseModel]) -> None:
    rows = sections_of(page)[heading].rows
    for name, field in model.model_fields.items():
        takes = rows[f"`{field.alias or name}`"][0]
        for kind, _ in kinds_of(field.annotation):
            if get_origin(kind) is Literal:
                assert re.findall(r"`([^`]+)`", takes) == list(get_args(kind)), f"{heading}.{name}"
        for limit in limits_of(field):
            assert str(limit) in re.findall(r"-?\d+", takes), f"{heading}.{name}: {takes} does not say {limit}"


def limits_of(field: FieldInfo) -> Iterator[int]:
    """The smallest and the largest number that a field takes."""
    annotations = [field.annotation, *get_args(field.annotation)]
    metadata = [*field.metadata, *(item for part in annotations for item in getattr(part, "__metadata__", ()))]
    for item in metadata:
        for inner in (item, *getattr(item, "metadata", ())):
            for bound in ("ge", "le"):
                if (value := getattr(inner, bound, None)) not in (None, 0):
                    yield value


@pytest.mark.parametrize(("page", "heading", "model"), SECTIONS)
def test_examples_are_valid_and_show_every_key(page: str, heading: str, model: type[BaseModel]) -> None:
    examples = sections_of(page)[heading].examples
    if heading == TOP[page]:
        return  # the page's first example is the whole file: the next test
    assert examples, f"{page}: {heading} has no example"
    shown: set[str] = set()
    for text in "---\n".join(examples).split("---\n"):
        data, source = parse_yaml(text, f"{page}.md {heading}")
        ((_, value),) = data.items()
        validate(model, value[0] if isinstance(value, list) else value, source)
        shown |= set(value[0] if isinstance(value, list) else value)
    assert shown == {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize("page", PAGES)
def test_the_whole_file_is_valid(page: str) -> None:
    text = (DOCS / "reference" / f"{page}.md").read_text()
    first = re.search(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    assert first is not None
    data, source = parse_yaml(first[1], f"{page}.md")
    validate(PAGES[page], data, source)


def test_a_site_links_to_where_binds_are() -> None:
    assert "campaign.md#binds" in sections_of("site")["site file"].rows["`binds`"][2]
    assert "`" + "`, `".join(f.alias or n for n, f in Bind.model_fields.items()) + "`" == ", ".join(
        sections_of("campaign")["binds[]"].rows
    )


def commands() -> Iterator[tuple[str, click.Command]]:
    """`check`, ..., `site list`: every command by the words that call it."""
    yield "", cli
    for verb in VERBS:
        command = importlib.import_module(f"fermigrid.commands.{verb}").command
        if isinstance(command, click.Group):
            yield from ((f"{verb} {name}", each) for name, each in command.commands.items())
        else:
            yield verb, command


COMMANDS = [pytest.param(name, command, id=name or "fermigrid") for name, command in commands()]


def section_of(name: str) -> Section:
    """The section of the page cli.md about a command."""
    for heading, section in sections_of("cli").items():
        if re.match(rf"fermigrid {name}(?: [\[A-Z].*|`.*)?\Z" if name else r"fermigrid\Z", heading):
            return section
    raise AssertionError(f"cli.md has no section on fermigrid {name}")


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_options_are_those_of_the_command_line(name: str, command: click.Command) -> None:
    rows = section_of(name).rows
    known = [", ".join(f"`{word}`" for word in sorted(o.opts, key=len, reverse=True)) for o in options_of(command)]
    if not name:
        known.append("`--help`, `-h`")
    assert list(rows) == known


def options_of(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and not p.hidden]


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_what_options_take_is_said(name: str, command: click.Command) -> None:
    rows = section_of(name).rows
    for option in options_of(command):
        (row,) = (row for key, row in rows.items() if f"`{option.opts[0]}`" in key)
        takes, default, _ = row
        assert (takes == "nothing") == option.is_flag, f"{option.opts[0]}: {takes}"
        assert ("repeated" in takes) == option.multiple, f"{option.opts[0]}: {takes}"
        assert (default == "required") == option.required, f"{option.opts[0]}: {default}"
        if isinstance(option.default, int) and not option.is_flag:
            assert default == str(option.default)
        else:
            assert not NUMBER.match(default), f"{option.opts[0]} has no default {default}"


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_arguments_are_in_the_heading(name: str, command: click.Command) -> None:
    heading = section_of(name).heading
    for argument in command.params:
        if isinstance(argument, click.Argument):
            word = str(argument.human_readable_name).upper()
            assert word in heading, f"{heading} does not name {word}"


def test_no_section_is_about_a_command_that_is_not_there() -> None:
    names = {re.match(r"fermigrid ?((?:[a-z]+ ?)*)", heading)[1].strip() for heading in sections_of("cli")}  # type: ignore[index]
    assert names == {name for name, _ in commands()}
