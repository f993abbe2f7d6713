#!/usr/bin/env python3
"""Merge pieces in the order of their events: crumbs to a chunk, chunks to a run.

Takes the pieces that fermigrid gathered, by their table (crumbs.csv; crumbs.missing.csv names those that failed).
Every event of every piece is compared with what was derived of it, and none may be there twice.

Exit codes: 2 usage, 3 a piece cannot be used, 4 the output cannot be written, 5 a piece is not what the table says.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from filter_run import UNUSABLE, Failure, parse_count
from pieces import WRONG_PIECE, derive, open_piece, run_program, save, table_of


@dataclass(frozen=True)
class Piece:
    """A line of the table; without a file: a piece that failed."""

    name: str
    first: int
    events: int
    file: Path | None = None


def read_pieces(folder: str) -> tuple[list[Piece], list[Piece]]:
    """The pieces that are there, in the order of events, and those that are missing. Raises Failure."""
    found = []
    for name in (f"{folder}.csv", f"{folder}.missing.csv"):
        try:
            with Path(name).open(newline="") as stream:
                rows = list(csv.DictReader(stream, strict=True))
            found.append([Piece(r["piece"], int(r["first_event"]), int(r["events"]), _file(r)) for r in rows])
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise Failure(UNUSABLE, f"{name}: cannot be used: {error}") from error
    return found[0], found[1]


def _file(row: dict[str, str]) -> Path | None:
    return Path(row["file"]) if "file" in row else None


def read_events(piece: Piece) -> tuple[fits.FITS_rec, fits.HDUList]:
    """A piece's events, and its file. Raises Failure when it is not what the table says, or damaged."""
    assert piece.file is not None
    hdus = open_piece(piece.file)
    events, header = hdus["EVENTS"].data, hdus["EVENTS"].header
    missing = header.get("NMISSING", 0)
    if header["SEL_FRST"] != piece.first or len(events) + missing != piece.events:
        what = f"{len(events)} events (and {missing} missing) from {header['SEL_FRST']} on"
        raise Failure(WRONG_PIECE, f"{piece.file}: has {what}, not {piece.events} from {piece.first} on")
    for name, values in derive(events).items():
        if not np.array_equal(values, events[name]):
            raise Failure(WRONG_PIECE, f"{piece.file}: {name} is not what its events give")
    return events, hdus


def refuse_holes(pieces: Sequence[Piece], first: int, count: int) -> None:
    """Each event of the whole must be in exactly one piece. Raises Failure."""
    at = first
    for piece in sorted(pieces, key=lambda piece: piece.first):
        if piece.first != at:
            raise Failure(WRONG_PIECE, f"{piece.name} begins with event {piece.first}; the one before it ends at {at}")
        at += piece.events
    if at != first + count:
        raise Failure(WRONG_PIECE, f"the pieces end with event {at}, not with {first + count}")


def merge(args: argparse.Namespace) -> tuple[int, int]:
    """Read, compare, write; how many events were read and kept. Raises Failure."""
    pieces, lost = read_pieces(args.folder)
    refuse_holes([*pieces, *lost], args.first, args.count)
    if not pieces:
        raise Failure(WRONG_PIECE, "there is no good piece")
    read = [read_events(piece) for piece in pieces]
    missing = sum(piece.events for piece in lost) + sum(h["EVENTS"].header.get("NMISSING", 0) for _, h in read)
    if args.whole and missing:
        raise Failure(WRONG_PIECE, f"{missing} events are missing")
    hdus = read[0][1]
    merged = fits.FITS_rec.from_columns(hdus["EVENTS"].columns, nrows=sum(len(events) for events, _ in read))
    at = 0
    for events, _ in read:
        for name in merged.names:
            merged[name][at : at + len(events)] = events[name]
        at += len(events)
    if len(np.unique(merged["EVENT_ID"])) != len(merged):
        raise Failure(WRONG_PIECE, "an event is there twice")
    table = table_of(merged, hdus["EVENTS"].header)
    table.header["SEL_FRST"] = args.first
    table.header["NREAD"] = table.header["NKEPT"] = len(merged)
    table.header["NPIECES"] = (len(pieces), "pieces that were merged")
    table.header["NMISSING"] = (missing, "events of pieces that failed")
    save(table, hdus[2:], args.output)
    return len(merged), len(merged)


def main(arguments: list[str] | None = None) -> int:
    """Do it; the exit code."""
    parser = argparse.ArgumentParser(description="Merge pieces in the order of their events.", allow_abbrev=False)
    parser.add_argument("folder", help="the folder of the pieces; FOLDER.csv and FOLDER.missing.csv are beside it")
    parser.add_argument("--first", required=True, type=parse_count, metavar="N", help="first event of the whole")
    parser.add_argument("--count", required=True, type=parse_count, metavar="N", help="events of the whole")
    parser.add_argument("--whole", action="store_true", help="no event may be missing")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    return run_program("merge.py", merge, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
