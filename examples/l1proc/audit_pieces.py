#!/usr/bin/env python3
"""Audit the outputs of the example: each run's photon file as ../l1/audit.py does, and what was derived of each event.

The merged events of every run are compared with the event file by EVENT_ID: lost, doubled and foreign events, events
whose derived values are not what the event file gives, events out of their order, pieces that are not side by side.
Prints the runs that differ, and a total.

Exit codes: 0 everything agrees, 1 something differs, 2 usage, 3 the run table or the event file cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE), str(HERE.parent / "l1")]

import audit  # noqa: E402  (of ../l1, as all that follows; found by the line before)
import numpy as np  # noqa: E402
from filter_run import Failure, parse_version  # noqa: E402
from pieces import derive, open_piece  # noqa: E402


def audit_run(line: audit.Line, path: Path, source: audit.Events) -> None:
    """The merged events of one run against the event file, into the line."""
    expected = source.of(line.run)
    line.expected = len(expected)
    try:
        with open_piece(path) as hdus:
            found = hdus["EVENTS"].data
    except (Failure, OSError) as failure:
        line.lost, line.remarks = len(expected), (str(failure),)
        return
    audit.compare(line, expected, found)
    remarks = list(_remarks(found))
    _, at, to = np.intersect1d(expected["EVENT_ID"], found["EVENT_ID"], return_indices=True)
    wrong = np.zeros(len(at), dtype=bool)
    for name, values in derive(expected).items():
        wrong |= values[at] != found[name][to]
    if wrong.any():
        remarks.append(f"{int(wrong.sum())} events with derived values of others")
    line.remarks = tuple(remarks)


def _remarks(found: np.ndarray) -> Iterator[str]:
    if np.any(np.diff(found["TIME"]) < 0):
        yield "events out of their order"
    changes = 1 + int(np.count_nonzero(found["PIECE"][1:] != found["PIECE"][:-1])) if len(found) else 0
    if changes != len(np.unique(found["PIECE"])):
        yield "a piece is in two places"


def audit_recon(args: argparse.Namespace) -> Iterator[audit.Line]:
    """A line for each run of the table. Raises Failure."""
    source = audit.Events(args.events)
    for run in audit.read_runs(args.runs):
        line = audit.Line(run)
        audit_run(line, args.outputs / "recon" / f"{run}_v{args.version}_recon.fit", source)
        yield line


def main(arguments: list[str] | None = None) -> int:
    """Do it; the exit code."""
    parser = argparse.ArgumentParser(description="Audit the outputs of l1proc, event by event.", allow_abbrev=False)
    parser.add_argument("--runs", required=True, type=Path, metavar="FILE", help="run table (CSV with run and events)")
    parser.add_argument("--events", required=True, type=Path, metavar="FILE", help="event file (FT1), may be .gz")
    parser.add_argument("--outputs", required=True, type=Path, metavar="DIR", help="where the campaign's files are")
    parser.add_argument("--version", type=parse_version, default="401", help="of the campaign (default: 401)")
    parser.add_argument("--emin", type=float, metavar="MeV", help="as the campaign selected")
    parser.add_argument("--zmax", type=float, metavar="DEG", help="as the campaign selected")
    args = parser.parse_args(arguments)
    if not (args.outputs / "ft1").is_dir():
        parser.error(f"--outputs: {args.outputs} has no folder ft1")
    print("merged events:")
    try:
        lines = list(audit_recon(args))
    except Failure as failure:
        print(f"audit_pieces.py: {failure}", file=sys.stderr)
        return failure.code
    bad = [line for line in lines if not line.good]
    print("\n".join(map(audit.show, bad)) + ("\n" if bad else ""), end="")
    print(f"{len(lines)} audited, {len(bad)} differ" if bad else f"{len(lines)} audited: all agree")
    print("photon files:")
    asked = ["--runs", args.runs, "--events", args.events, "--outputs", args.outputs / "ft1", "--version", args.version]
    for name in ("emin", "zmax"):
        if (value := getattr(args, name)) is not None:
            asked += [f"--{name}", value]
    return max(audit.main(list(map(str, asked))), audit.DIFFERS if bad else 0)


if __name__ == "__main__":
    sys.exit(main())
