#!/usr/bin/env python3
"""Select events of one LAT run: from an event file (FT1) to a file of that run alone.

The job of the example campaign. The output holds the selected rows of EVENTS, unchanged and in their order, and the
good time intervals that begin in the run, so that the intervals of all runs together are those of the event file.
Same input, same bytes: nothing in the output depends on when or where it was made.

Exit codes: 1 no such run or events, 2 usage, 3 the event file cannot be used, 4 the output cannot be written.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import re
import sys
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

NO_SUCH_RUN, UNUSABLE, UNWRITABLE = 1, 3, 4
BLOCK, GZIP = 2880, b"\x1f\x8b"
COLUMNS = ("RUN_ID", "EVENT_ID", "TIME", "ENERGY", "ZENITH_ANGLE")
# Of the whole event file or of the program that made it: not true of one run's part.
DROPPED = ("CHECKSUM", "DATASUM", "DATE", "DATE-OBS", "DATE-END", "FILENAME", "CREATOR", "ONTIME", "TELAPSE")


class Failure(Exception):
    """Something a person must know: the message and the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Selection:
    """What is kept: energy of at least `emin` MeV, zenith angle of at most `zmax` degrees; None: any."""

    emin: float | None = None
    zmax: float | None = None

    def of(self, events: fits.FITS_rec) -> np.ndarray:
        """Which of the events are kept: an array of booleans."""
        kept = np.ones(len(events), dtype=bool)
        if self.emin is not None:
            kept &= events["ENERGY"] >= self.emin
        if self.zmax is not None:
            kept &= events["ZENITH_ANGLE"] <= self.zmax
        return kept


def parse_run(text: str) -> str:
    """A run's name: `r` and the ten digits of its mission elapsed time."""
    if not re.fullmatch(r"r[0-9]{10}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no run: it must be 'r' and ten digits, such as r0239557414")
    return text


def parse_count(text: str) -> int:
    """A number of events."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of events")
    return int(text)


def parse_version(text: str) -> str:
    """A processing version, as it stands in file names."""
    if not re.fullmatch(r"[A-Za-z0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no version: it may hold only letters and digits")
    return text


def run_id(run: str) -> int:
    """The RUN_ID of a run: the seconds in its name."""
    return int(run[1:])


def file_name(run: str, version: str) -> str:
    """The name of a run's photon file."""
    return f"gll_ph_p{version}_{run}_v{version}.fit"


def open_events(path: Path) -> fits.HDUList:
    """An event file, read into memory to its end and checked for what is needed. Raises Failure."""
    try:
        data = path.read_bytes()
        if data.startswith(GZIP):
            data = gzip.decompress(data)
        if not data.startswith(b"SIMPLE  ="):
            raise Failure(UNUSABLE, f"{path}: is no FITS file")
        if len(data) % BLOCK:
            raise Failure(
                UNUSABLE, f"{path}: cut short: FITS comes in blocks of {BLOCK} bytes, and its last is not whole"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "(?s).*(truncated|corrupted)")  # a part that is missing is no detail
            hdus = fits.open(io.BytesIO(data), lazy_load_hdus=False)
        for hdu in hdus:
            _ = hdu.data
    except (OSError, EOFError, ValueError, TypeError, zlib.error, Warning) as error:
        raise Failure(UNUSABLE, f"{path}: cannot be read as FITS, or not to its end: {error}") from error
    if "EVENTS" not in hdus:
        raise Failure(UNUSABLE, f"{path}: has no table EVENTS, so it is no event file (FT1)")
    missing = [name for name in COLUMNS if name not in hdus["EVENTS"].columns.names]
    if missing:
        raise Failure(UNUSABLE, f"{path}: EVENTS has no column {', '.join(missing)}")
    return hdus


def wrong_sums(hdus: fits.HDUList) -> str | None:
    """A sentence about the parts whose data do not have the checksum that their header gives; None: all have.

    That is no proof of damage: programs that cut a file often leave the old checksum in it.
    """
    wrong = [hdu.name for hdu in hdus if hdu.verify_datasum() == 0]
    return f"the data of {', '.join(wrong)} do not have the DATASUM of the header" if wrong else None


def data_sum(table: fits.BinTableHDU) -> str:
    """The checksum that the data really have, as DATASUM would give it."""
    if table.verify_datasum() == 1:
        return str(table.header["DATASUM"])
    copy = fits.BinTableHDU(data=table.data)
    copy.add_datasum()
    return str(copy.header["DATASUM"])


def intervals_of(hdus: fits.HDUList, run: str) -> fits.FITS_rec | None:
    """The good time intervals that begin in this run: before the next run of the file begins.

    Those before the file's first run belong to that one, so that each interval belongs to one run and none is lost.
    None: the event file has no intervals.
    """
    if "GTI" not in hdus:
        return None
    runs, starts = np.unique(hdus["EVENTS"].data["RUN_ID"]), hdus["GTI"].data["START"]
    owners = runs[np.clip(np.searchsorted(runs, starts, side="right") - 1, 0, None)]
    return hdus["GTI"].data[owners == run_id(run)]


def part_header(header: fits.Header, run: str, version: str) -> fits.Header:
    """The header of the event file, without what is not true of its part."""
    part = header.copy()
    for name in DROPPED:
        part.remove(name, ignore_missing=True, remove_all=True)
    part["VERSION"] = (version, "release version of the file")
    if version.isdecimal():
        part["PROC_VER"] = (int(version), "processing version of this file")
    part["CREATOR"] = ("filter_run.py", "software creating file")
    part["FILENAME"] = (file_name(run, version), "name of this file")
    return part


def set_times(header: fits.Header, start: float, stop: float) -> None:
    """The observation's start and end, in mission elapsed time."""
    header["TSTART"] = (start, "mission time of the start of the observation")
    header["TSTOP"] = (stop, "mission time of the end of the observation")


def set_provenance(header: fits.Header, args: argparse.Namespace, read: int, kept: int, source_sum: str) -> None:
    """How the part was made: what an audit needs."""
    header["RUN"] = (args.run, "LAT run of all events")
    if args.emin is not None:
        header["SEL_EMIN"] = (args.emin, "[MeV] selected: ENERGY of at least")
    if args.zmax is not None:
        header["SEL_ZMAX"] = (args.zmax, "[deg] selected: ZENITH_ANGLE of at most")
    header["SEL_FRST"] = (args.first, "first event of the run that was read, from 0")
    header["NREAD"] = (read, "events of the run that were read")
    header["NKEPT"] = (kept, "events that were selected")
    header["SRCSUM"] = (source_sum, "DATASUM of the event file's EVENTS, as computed")


def select(hdus: fits.HDUList, args: argparse.Namespace) -> tuple[fits.HDUList, int, int]:
    """The run's file, the number of its events read, and of those kept. Raises Failure."""
    table = hdus["EVENTS"]
    rows = np.flatnonzero(table.data["RUN_ID"] == run_id(args.run))
    if len(rows) == 0:
        raise Failure(NO_SUCH_RUN, f"{args.events}: has no event of run {args.run} (RUN_ID {run_id(args.run)})")
    if args.first >= len(rows):
        raise Failure(
            NO_SUCH_RUN, f"{args.events}: run {args.run} has {len(rows)} events, so none from {args.first} on"
        )
    last = len(rows) if args.count is None else args.first + args.count
    read = table.data[rows[args.first : last]]
    events = read[Selection(args.emin, args.zmax).of(read)]
    header = part_header(table.header, args.run, args.version)
    set_provenance(header, args, len(read), len(events), data_sum(table))
    parts = fits.HDUList([fits.PrimaryHDU(header=part_header(hdus[0].header, args.run, args.version))])
    parts.append(fits.BinTableHDU(data=events, header=header))
    intervals = intervals_of(hdus, args.run)
    start, stop = float(run_id(args.run)), float(table.data["TIME"][rows].max())
    if intervals is not None:
        parts.append(fits.BinTableHDU(data=intervals, header=part_header(hdus["GTI"].header, args.run, args.version)))
        if len(intervals):
            start, stop = float(intervals["START"].min()), float(intervals["STOP"].max())
    for part in parts:
        set_times(part.header, start, stop)
        part.add_checksum(when="as the file was made")
    return parts, len(read), len(events)


def write(parts: fits.HDUList, output: Path) -> None:
    """The file, whole or not at all. Raises Failure."""
    try:
        parts.writeto(output, overwrite=True, output_verify="exception")
    except (OSError, fits.VerifyError) as error:
        output.unlink(missing_ok=True)
        raise Failure(UNWRITABLE, f"{output}: cannot be written: {error}") from error


def report(read: int, kept: int) -> None:
    """Tell fermigrid how many events there were."""
    summary = os.environ.get("FERMIGRID_SUMMARY")
    if summary:
        with Path(summary).open("a") as stream:
            stream.write(f"events_read: {read}\nevents_kept: {kept}\n")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; argparse ends the program with exit code 2 when it is wrong."""
    parser = argparse.ArgumentParser(description="Select events of one LAT run.", allow_abbrev=False)
    parser.add_argument("--events", required=True, type=Path, metavar="FILE", help="event file (FT1), may be .gz")
    parser.add_argument("--run", required=True, type=parse_run, help="such as r0239557414")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument("--version", required=True, type=parse_version, help="processing version, such as 400")
    parser.add_argument("--emin", type=float, metavar="MeV", help="keep energies of at least this")
    parser.add_argument("--zmax", type=float, metavar="DEG", help="keep zenith angles of at most this")
    parser.add_argument("--first", type=parse_count, default=0, metavar="N", help="first event of the run, from 0")
    parser.add_argument(
        "--count", type=parse_count, metavar="N", help="how many events of the run (default: to its end)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Do it; the exit code."""
    args = parse_arguments(arguments)
    try:
        with open_events(args.events) as hdus:
            doubt = wrong_sums(hdus)
            if doubt:
                print(f"filter_run.py: warning: {args.events}: {doubt}", file=sys.stderr)
            parts, read, kept = select(hdus, args)
        write(parts, args.output)
    except Failure as failure:
        print(f"filter_run.py: {failure}", file=sys.stderr)
        return failure.code
    report(read, kept)
    print(f"{args.run}: {read} events read, {kept} kept -> {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
