#!/usr/bin/env python3
"""Make the run table of a campaign from an event file (FT1): the runs in it and how many events each has.

Exit codes: 2 usage, 3 the event file cannot be used, 4 the table cannot be written.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from filter_run import UNWRITABLE, Failure, open_events, parse_count


def write_table(run_ids: np.ndarray, output: Path, limit: int | None = None) -> int:
    """The table `run,events` of the runs that events belong to, in order of time; the number of runs."""
    runs, events = np.unique(run_ids, return_counts=True)
    rows = [(f"r{run:010d}", int(count)) for run, count in zip(runs[:limit], events[:limit], strict=True)]
    try:
        with output.open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(("run", "events"))
            writer.writerows(rows)
    except OSError as error:
        raise Failure(UNWRITABLE, f"{output}: cannot be written: {error}") from error
    return len(rows)


def main(arguments: list[str] | None = None) -> int:
    """Do it; the exit code."""
    parser = argparse.ArgumentParser(description="Make a run table from an event file.", allow_abbrev=False)
    parser.add_argument("--events", required=True, type=Path, metavar="FILE", help="event file (FT1), may be .gz")
    parser.add_argument("--output", type=Path, default=Path("runs.csv"), metavar="FILE", help="default: runs.csv")
    parser.add_argument("--limit", type=parse_count, metavar="N", help="only the first N runs, for a trial")
    args = parser.parse_args(arguments)
    try:
        with open_events(args.events) as hdus:
            runs = write_table(hdus["EVENTS"].data["RUN_ID"], args.output, args.limit)
    except Failure as failure:
        print(f"make_runs.py: {failure}", file=sys.stderr)
        return failure.code
    print(f"{runs} runs -> {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
