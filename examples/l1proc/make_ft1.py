#!/usr/bin/env python3
"""Make the photon file of a run: select from its merged events, and drop what FT1 does not have.

Exit codes: 2 usage, 3 the merged file cannot be used, 4 the output cannot be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from filter_run import (
    Selection,
    parse_run,
    parse_version,
    part_header,
    run_id,
    set_provenance,
    set_times,
)
from pieces import open_piece, run_program, save, table_of, without_derived


def make(args: argparse.Namespace) -> tuple[int, int]:
    """Read, select, write; how many events were read and kept. Raises Failure."""
    with open_piece(args.recon) as hdus:
        table = hdus["EVENTS"]
        events = without_derived(table.data)
        kept = events[Selection(args.emin, args.zmax).of(events)]
        header = part_header(table.header, args.run, args.version)
        for name in ("NPIECES", "NMISSING"):
            header.remove(name, ignore_missing=True)
        args.first = 0
        set_provenance(header, args, len(events), len(kept), table.header["SRCSUM"])
        header["CREATOR"] = ("make_ft1.py", "software creating file")
        made = table_of(kept, header)
        intervals = [hdu.copy() for hdu in hdus if hdu.name == "GTI"]
        start, stop = float(run_id(args.run)), float(events["TIME"].max())
        for hdu in intervals:
            if len(hdu.data):
                start, stop = float(hdu.data["START"].min()), float(hdu.data["STOP"].max())
        for hdu in (made, *intervals):
            set_times(hdu.header, start, stop)
        save(made, intervals, args.output)
    return len(events), len(kept)


def main(arguments: list[str] | None = None) -> int:
    """Do it; the exit code."""
    parser = argparse.ArgumentParser(description="Make the photon file of a run.", allow_abbrev=False)
    parser.add_argument("--recon", required=True, type=Path, metavar="FILE", help="the run's merged events")
    parser.add_argument("--run", required=True, type=parse_run, help="such as r0239557414")
    parser.add_argument("--version", required=True, type=parse_version, help="processing version, such as 401")
    parser.add_argument("--emin", type=float, metavar="MeV", help="keep energies of at least this")
    parser.add_argument("--zmax", type=float, metavar="DEG", help="keep zenith angles of at most this")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    return run_program("make_ft1.py", make, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
