"""Tables for people and JSON for programs."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fermigrid.resources import shipped

if TYPE_CHECKING:
    from fermigrid.values import Value


_NUMBER = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?)?")  # or nothing


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell; numbers to the right. Plain text, so that grep and cut work; on a screen
    that is too narrow the last column goes on below itself."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [any(column) and all(map(_NUMBER.fullmatch, column)) for column in zip(*cells, strict=True)]
    right = right or [False] * len(header)
    before = sum(width + 2 for width in widths[:-1])
    room = max(20, (_screen() or before + widths[-1]) - before)

    def show(line: Sequence[str], *, is_head: bool = False) -> None:
        *others, last = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        for number, part in enumerate(_wrap(last.rstrip() if len(last) > room else last, room)):
            text = "  ".join((*others, part)) if number == 0 else " " * before + part
            click.echo(click.style(text.rstrip(), bold=is_head))

    show(list(header), is_head=True)
    for line in cells:
        show(line)


def _screen() -> int | None:
    """The columns of the screen; None where the output goes elsewhere and every line may be as long as it is."""
    return max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def _wrap(text: str, width: int) -> list[str]:
    """Lines, broken at blanks alone: a path or an expression can be copied whole."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [text]


def print_values(sections: Sequence[tuple[str, Sequence[Value]]]) -> None:
    """Values by section: name, where from, value. On a screen a value that does not fit stands below, whole."""
    width = _screen()
    rows = [(v.name, show_origin(v)) for _, values in sections for v in values]
    most = width // 3 if width else None
    names, origins = (_fit([row[column] for row in rows], most) for column in (0, 1))
    for title, values in sections:
        click.echo(click.style(title, bold=True))
        for value in values:
            _print_value(value, names, origins, width)
        click.echo()


def _fit(texts: Sequence[str], most: int | None) -> int:
    """The width of a column: that of its longest text which is not longer than `most`."""
    return max((len(text) for text in texts if most is None or len(text) <= most), default=0)


def _print_value(value: Value, names: int, origins: int, width: int | None) -> None:
    origin = show_origin(value)
    head = f"  {value.name.ljust(names)}  {click.style(origin.ljust(origins), dim=origin == 'built-in')}"
    before = max(len(value.name), names) + max(len(origin), origins) + 6
    if width is None or before + len(value.text) <= width:
        click.echo(f"{head}  {value.text}".rstrip())
        return
    click.echo(head.rstrip())
    for line in _wrap(value.text, width - 6):
        click.echo(f"      {line}")


def show_origin(value: Value) -> str:
    """Where a value comes from, for a person: a file below this folder, and a shipped one, by its short name."""
    if value.place is None:
        return value.layer.value
    if value.layer == "command line":
        return str(value.place)
    place, layer = str(value.place).removeprefix(f"{Path.cwd()}/"), value.layer.value
    if Path(value.place.file).parent == shipped("sites"):
        place = f"{Path(value.place.file).name}:{value.place.line}"
        layer = "shipped parent" if value.layer == "parent site" else "shipped"
    return f"{place} (taken away)" if value.layer == "built-in" else f"{place} ({layer})"


def value_json(value: Value) -> dict[str, Any]:
    """A value with its origin, as JSON."""
    place = (
        {"file": value.place.file, "line": value.place.line or None} if value.place else {"file": None, "line": None}
    )
    return {"key": value.name, "value": value.value, "text": value.text, "from": {"layer": value.layer.value, **place}}
