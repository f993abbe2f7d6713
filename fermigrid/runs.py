"""Which runs a campaign is about: the run table, a list, or a number."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from fermigrid.campaign import Runs
from fermigrid.config import Source, read_text
from fermigrid.errors import ConfigError, Problem
from fermigrid.units import show_count

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}\Z")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
SHOWN = 20  # problems of one table that are listed; the rest is counted


@dataclass(frozen=True, slots=True)
class Run:
    """One run. `events`: number of events, None when the table does not tell. `columns`: the table's other columns."""

    name: str
    events: int | None = None
    columns: Mapping[str, str] | None = None


def load_runs(runs: Runs, folder: Path, source: Source) -> tuple[Run, ...]:
    """The runs of a campaign; a table's path is relative to the campaign file's `folder`. Raises ConfigError."""
    if runs.count is not None:
        width = max(4, len(str(runs.count - 1)))
        return tuple(Run(f"{index:0{width}d}") for index in range(runs.count))
    if runs.list is not None:
        doubles = [name for name, times in Counter(runs.list).items() if times > 1]
        if doubles:
            raise ConfigError([source.problem(("runs", "list"), f"named twice: {', '.join(doubles)}")])
        if not runs.list:
            raise ConfigError([source.problem(("runs", "list"), "names no run")])
        return tuple(Run(name) for name in runs.list)
    path = folder / str(runs.table)
    if not path.is_file():
        raise ConfigError([source.problem(("runs", "table"), f"no such file: {path}")])
    return parse_table(read_text(path), str(path))


def parse_table(text: str, file: str) -> tuple[Run, ...]:
    """A CSV table with a header line (`run`, perhaps `events`, others become placeholders) -> runs in its order.

    Raises ConfigError with every problem: bad names, doubles (with the line of the first), numbers that are none.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    problems: list[Problem] = []
    runs: list[Run] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, file)
        seen: dict[str, int] = {}
        for row in reader:
            if row:
                run = _parse_row(header, row, seen, Problem(file, reader.line_num, "", ""), problems)
                runs.append(run)
    except csv.Error as error:
        problems.append(Problem(file, reader.line_num, "", f"not CSV: {error}"))
    if not runs and not problems:
        problems.append(Problem(file, 1, "", "has a header and no run"))
    if problems:
        if (more := len(problems) - SHOWN) > 0:
            last = problems[SHOWN - 1]
            problems[SHOWN - 1 :] = [replace(last, message=f"{last.message}; and {more} more problems of this table")]
        raise ConfigError(problems)
    return tuple(runs)


def _check_header(header: Sequence[str], file: str) -> None:
    problems = []
    if "run" not in header:
        text = f"the first line must name the columns, one of them 'run'; it has: {', '.join(header) or 'nothing'}"
        problems.append(Problem(file, 1, "", text))
    for name in header:
        if not _COLUMN.match(name):
            problems.append(Problem(file, 1, "", f"column {name!r}: a column's name has letters, digits and '_'"))
    for name in sorted({name for name in header if header.count(name) > 1}):
        problems.append(Problem(file, 1, "", f"column {name!r} is there twice"))
    if problems:
        raise ConfigError(problems)


def _parse_row(
    header: Sequence[str], row: Sequence[str], seen: dict[str, int], here: Problem, problems: list[Problem]
) -> Run:
    def wrong(key: str, message: str) -> None:
        problems.append(Problem(here.file, here.line, key, message))

    if len(row) != len(header):
        wrong("", f"has {show_count(len(row), 'value')} for {show_count(len(header), 'column')}")
        return Run("")
    values = dict(zip(header, (cell.strip() for cell in row), strict=True))
    name = values.pop("run")
    if not _RUN.match(name):
        wrong("run", f"{name!r} is no name of a run: letters, digits, '.', '_', '-', 60 at most")
    elif name in seen:
        wrong("run", f"{name} is there twice (first in line {seen[name]})")
    seen.setdefault(name, here.line)
    events: int | None = None
    if "events" in values:
        written = values.pop("events")
        if written.isascii() and written.isdigit() and len(written) <= 15:
            events = int(written)
        else:
            wrong("events", f"{written!r} is no number of events")
    for key, value in values.items():
        if _CONTROL.search(value):
            wrong(key, f"{value!r} contains a control character")
    return Run(name, events, values or None)


def write_table(runs: Sequence[Run], file: TextIO) -> None:
    """The inverse of `parse_table`."""
    columns = sorted(runs[0].columns or {})
    counted = runs[0].events is not None
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", *(["events"] if counted else []), *columns])
    for run in runs:
        writer.writerow(
            [run.name, *([run.events] if counted else []), *((run.columns or {})[name] for name in columns)]
        )
