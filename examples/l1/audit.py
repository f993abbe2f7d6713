#!/usr/bin/env python3
"""Audit a campaign's outputs: open each file again and compare it with the run table and with the event file.

Run by run and event by event (by EVENT_ID): files that are missing, extra or damaged, wrong counts, events that are
lost, there twice, foreign (not this run's, or not selected) or changed, wrong good time intervals. Prints a table of
the runs that differ and what differs, then a total.

Exit codes: 0 everything agrees, 1 something differs, 2 usage, 3 the run table or the event file cannot be used.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from filter_run import (
    UNUSABLE,
    Failure,
    Selection,
    file_name,
    open_events,
    parse_run,
    parse_version,
    run_id,
    wrong_sums,
)

DIFFERS = 1
NAME = re.compile(r"gll_ph_p(?P<proc>[A-Za-z0-9]+)_(?P<run>r[0-9]{10})_v(?P<version>[A-Za-z0-9]+)\.fit")


@dataclass
class Line:
    """What the audit of one run found; counts are of events."""

    run: str
    expected: int = 0
    found: int = 0
    lost: int = 0
    doubled: int = 0
    foreign: int = 0
    changed: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Nothing differs."""
        return not (self.lost or self.doubled or self.foreign or self.changed or self.remarks)


def read_runs(path: Path) -> dict[str, int | None]:
    """Run -> number of its events by the table (None: the table does not tell). Raises Failure."""
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream, strict=True))
        runs = {parse_run(row["run"].strip()): int(row["events"]) if row.get("events") else None for row in rows}
    except (OSError, ValueError, csv.Error, argparse.ArgumentTypeError) as error:
        raise Failure(UNUSABLE, f"{path}: cannot be used as a run table: {error}") from error
    except KeyError as error:
        raise Failure(UNUSABLE, f"{path}: is no run table: it has no column {error}") from error
    if not runs:
        raise Failure(UNUSABLE, f"{path}: names no run")
    if len(runs) < len(rows):
        raise Failure(UNUSABLE, f"{path}: names {len(rows) - len(runs)} runs twice")
    return runs


def find_files(folder: Path, version: str | None) -> tuple[dict[str, list[Path]], list[Path]]:
    """Run -> its files below the folder (of this version only, if given), and the files that are no run's."""
    files: dict[str, list[Path]] = {}
    strange = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        match = NAME.fullmatch(path.name)
        if match is None:
            strange.append(path)
        elif version is None or version == match["version"] == match["proc"]:
            files.setdefault(match["run"], []).append(path)
    return files, strange


class Events:
    """The event file, by run: sorted once, so that a run is two look-ups."""

    def __init__(self, path: Path) -> None:
        with open_events(path) as hdus:
            self.doubt = wrong_sums(hdus)
            self._data = hdus["EVENTS"].data
            self._intervals = hdus["GTI"].data if "GTI" in hdus else None
        ids = np.asarray(self._data["RUN_ID"])
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]

    def of(self, run: str) -> fits.FITS_rec:
        """The events of a run, in the order of the file."""
        left, right = np.searchsorted(self._ids, (run_id(run), run_id(run) + 1))
        return self._data[self._order[left:right]]

    def intervals(self, run: str) -> list[tuple[float, float]]:
        """The good time intervals from the run's start to that of the next run in the file."""
        if self._intervals is None:
            return []
        begin = -np.inf if run_id(run) <= self._ids[0] else run_id(run)
        end = next(iter(self._ids[np.searchsorted(self._ids, run_id(run), side="right") :]), np.inf)
        own = (self._intervals["START"] >= begin) & (self._intervals["START"] < end)
        return pairs(self._intervals[own])


def pairs(intervals: fits.FITS_rec) -> list[tuple[float, float]]:
    """Intervals as (start, stop)."""
    return list(zip(intervals["START"].tolist(), intervals["STOP"].tolist(), strict=True))


def compare(line: Line, expected: fits.FITS_rec, found: fits.FITS_rec) -> None:
    """Event by event, into the line."""
    want, have = np.asarray(expected["EVENT_ID"]), np.asarray(found["EVENT_ID"])
    own = np.asarray(found["RUN_ID"]) == run_id(line.run)
    kinds, times = np.unique(have[own], return_counts=True)
    line.expected, line.found = len(want), len(have)
    line.lost = len(np.setdiff1d(want, kinds))
    line.doubled = int((times - 1).sum())
    line.foreign = int((~own).sum()) + len(np.setdiff1d(kinds, want))
    line.changed = count_changed(expected, found[own])


def count_changed(expected: fits.FITS_rec, found: fits.FITS_rec) -> int:
    """Events that are in both and not the same in every column; a column missing or of another form changes all."""
    _, at, to = np.intersect1d(expected["EVENT_ID"], found["EVENT_ID"], return_indices=True)
    changed = np.zeros(len(at), dtype=bool)
    for name in expected.names:
        if name not in found.names or expected[name].shape[1:] != found[name].shape[1:]:
            return len(at)
        one, other = np.asarray(expected[name])[at], np.asarray(found[name])[to]
        same = (one == other) | ((one != one) & (other != other))  # NaN is the same as NaN
        changed |= ~same.all(axis=tuple(range(1, same.ndim)))
    return int(changed.sum())


def audit_run(run: str, events: int | None, paths: list[Path], source: Events, selection: Selection) -> Line:
    """One run of the table: its file against the table and the event file."""
    line, read, remarks = Line(run), source.of(run), list[str]()
    if events is not None and events != len(read):
        remarks.append(f"the table says {events} events, the event file has {len(read)}")
    expected = read[selection.of(read)]
    line.expected = len(expected)
    if not paths:
        line.lost = len(expected)
        remarks.append("no file")
    if len(paths) > 1:
        remarks.append(f"{len(paths)} files: {', '.join(map(str, paths))}")
    for path in paths[:1]:
        try:
            with open_events(path) as hdus:
                header, found, damage = hdus["EVENTS"].header, hdus["EVENTS"].data, wrong_sums(hdus)
                intervals = pairs(hdus["GTI"].data) if "GTI" in hdus else []
        except Failure as failure:
            line.lost = len(expected)
            remarks.append(str(failure))
            continue
        compare(line, expected, found)
        if damage:
            remarks.append(f"damaged: {damage}")
        if intervals != source.intervals(run):
            remarks.append("its good time intervals are not those of the run")
        said = {"RUN": run, "NREAD": len(read), "NKEPT": len(found)}
        said |= {"SEL_EMIN": selection.emin, "SEL_ZMAX": selection.zmax}
        remarks += [
            f"{key} is {header.get(key)}, not {value}" for key, value in said.items() if header.get(key) != value
        ]
        if header.get("FILENAME") != path.name:
            remarks.append(f"calls itself {header.get('FILENAME')}")
    line.remarks = tuple(remarks)
    return line


def audit(args: argparse.Namespace) -> Iterator[Line]:
    """A line for each run of the table and for each file too many. Raises Failure."""
    runs, source, selection = read_runs(args.runs), Events(args.events), Selection(args.emin, args.zmax)
    files, strange = find_files(args.outputs, args.version)
    if source.doubt:
        print(f"audit.py: warning: {args.events}: {source.doubt}", file=sys.stderr)
    for run, events in runs.items():
        yield audit_run(run, events, files.get(run, []), source, selection)
    for run, paths in files.items():
        if run not in runs:
            yield Line(run, remarks=(f"not in the run table: {', '.join(map(str, paths))}",))
    for path in strange:
        yield Line("-", remarks=(f"no run's file: {path} (they are named as {file_name('r0239557414', '400')})",))


def show(line: Line) -> str:
    """A row of the table."""
    counts = (line.expected, line.found, line.lost, line.doubled, line.foreign, line.changed)
    return f"{line.run:<12}" + "".join(f"{count:>9}" for count in counts) + f"  {'; '.join(line.remarks)}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    """Do it; the exit code."""
    parser = argparse.ArgumentParser(description="Audit a campaign's outputs, event by event.", allow_abbrev=False)
    parser.add_argument("--runs", required=True, type=Path, metavar="FILE", help="run table (CSV with run and events)")
    parser.add_argument("--events", required=True, type=Path, metavar="FILE", help="event file (FT1), may be .gz")
    parser.add_argument("--outputs", required=True, type=Path, metavar="DIR", help="where the campaign's files are")
    parser.add_argument("--version", type=parse_version, help="look at files of this version only")
    parser.add_argument("--emin", type=float, metavar="MeV", help="as the campaign selected")
    parser.add_argument("--zmax", type=float, metavar="DEG", help="as the campaign selected")
    args = parser.parse_args(arguments)
    if not args.outputs.is_dir():
        parser.error(f"--outputs: {args.outputs} is no folder")
    total, bad, audited = Line("total"), 0, 0
    print(f"{'run':<12}" + "".join(f"{n:>9}" for n in ("expected", "found", "lost", "doubled", "foreign", "changed")))
    try:
        for line in audit(args):
            audited += 1
            for name in ("expected", "found", "lost", "doubled", "foreign", "changed"):
                setattr(total, name, getattr(total, name) + getattr(line, name))
            if not line.good:
                bad += 1
                print(show(line))
    except Failure as failure:
        print(f"audit.py: {failure}", file=sys.stderr)
        return failure.code
    print(show(total))
    print(f"{audited} audited, {bad} differ" if bad else f"{audited} audited: all agree")
    return DIFFERS if bad else 0


if __name__ == "__main__":
    sys.exit(main())
