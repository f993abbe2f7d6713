#!/usr/bin/env python3
"""Reconstruct a crumb: take its events from the file of its chunk, and add what is derived of each.

Exit codes: 2 usage, 3 the chunk's file cannot be used, 4 the output cannot be written, 5 the chunk does not have them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits
from filter_run import Failure, parse_count
from pieces import DERIVED, WRONG_PIECE, derive, open_piece, run_program, save, table_of


def reconstruct(args: argparse.Namespace) -> tuple[int, int]:
    """Read, derive, write; how many events were read and kept. Raises Failure."""
    with open_piece(args.digi) as hdus:
        table = hdus["EVENTS"]
        begin = args.first - table.header["SEL_FRST"]
        if not 0 <= begin <= begin + args.count <= len(table.data):
            has = f"{len(table.data)} events from {table.header['SEL_FRST']} on"
            raise Failure(WRONG_PIECE, f"{args.digi}: has {has}, not {args.count} from {args.first} on")
        events = table.data[begin : begin + args.count]
        derived = derive(events)
        columns = [fits.Column(name, "K" if name == "EVT_SUM" else "D", array=derived[name]) for name in DERIVED]
        columns.append(fits.Column("PIECE", "12A", array=np.full(len(events), args.piece)))
        made = fits.BinTableHDU.from_columns(fits.BinTableHDU(data=events).columns + fits.ColDefs(columns))
        result = table_of(made.data, table.header)
        result.header["SEL_FRST"] = args.first
        result.header["NREAD"] = result.header["NKEPT"] = len(events)
        save(result, hdus[2:], args.output)
    return len(events), len(events)


def main(arguments: list[str] | None = None) -> int:
    """Do it; the exit code."""
    parser = argparse.ArgumentParser(description="Reconstruct a crumb.", allow_abbrev=False)
    parser.add_argument("--digi", required=True, type=Path, metavar="FILE", help="the events of its chunk")
    parser.add_argument("--first", required=True, type=parse_count, metavar="N", help="its first event, in the run")
    parser.add_argument("--count", required=True, type=parse_count, metavar="N", help="how many events it has")
    parser.add_argument("--piece", required=True, help="its name, such as k003u012")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    return run_program("recon.py", reconstruct, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
