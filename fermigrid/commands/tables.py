"""Tables for people and JSON for programs."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fermigrid.values import Value


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell; numbers to the right. Plain text, so that grep and cut work."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [bool(cells) and all(line[i].isdigit() for line in cells) for i in range(len(header))]

    def text(line: Sequence[str]) -> str:
        parts = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        return "  ".join(parts).rstrip()

    click.echo(click.style(text(list(header)), bold=True))
    for line in cells:
        click.echo(text(line))


def print_values(sections: Sequence[tuple[str, Sequence[Value]]]) -> None:
    """Values by section: name, value, where from. As wide as the screen, 120 at most; long values go on below."""
    width = max(60, min(120, shutil.get_terminal_size((120, 0)).columns))
    rows = [(v.name, show_origin(v)) for _, values in sections for v in values]
    names = min(max(len(key) for key, _ in rows), width // 3)
    origins = min(max(len(origin) for _, origin in rows), width * 2 // 5)
    for title, values in sections:
        click.echo(click.style(title, bold=True))
        for value in values:
            _print_value(value, names, max(20, width - names - origins - 6))
        click.echo()


def _print_value(value: Value, names: int, room: int) -> None:
    origin = show_origin(value)
    first, *more = textwrap.wrap(value.text, room, break_on_hyphens=False) or [""]
    click.echo(f"  {value.name.ljust(names)}  {first.ljust(room)}  {click.style(origin, dim=origin == 'built-in')}")
    for line in more:
        click.echo(f"  {' ' * names}  {line}")


def show_origin(value: Value) -> str:
    """Where a value comes from, for a person: a file below this folder by its short name."""
    if value.place is None:
        return value.layer.value
    place = str(value.place).removeprefix(f"{Path.cwd()}/")
    if value.layer == "command line":
        return place
    return f"{place} (taken away)" if value.layer == "built-in" else f"{place} ({value.layer})"


def value_json(value: Value) -> dict[str, Any]:
    """A value with its origin, as JSON."""
    place = (
        {"file": value.place.file, "line": value.place.line or None} if value.place else {"file": None, "line": None}
    )
    return {"key": value.name, "value": value.value, "text": value.text, "from": {"layer": value.layer.value, **place}}
