#!/usr/bin/env python3
"""Make an event file that looks like the LAT's (FT1), and its run table, for trying things out: invented events.

Runs of 95 minutes one after the other from August 2008 on, about 30 photons in each: energies by a power law,
directions all over the sky, event numbers that grow within a run and begin anew in the next one, as the LAT's do.
Same seed, same bytes.

Exit codes: 2 usage, 4 a file cannot be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits
from filter_run import Failure, parse_count, write
from make_runs import write_table

FIRST_RUN = 239557414  # s: mission elapsed time, counted from 2001-01-01
ORBIT = 5700  # s
# From equatorial (J2000) to galactic: The Hipparcos and Tycho Catalogues, ESA SP-1200 (1997), vol. 1, section 1.5.3.
GALACTIC = np.array(
    [
        [-0.0548755604, -0.8734370902, -0.4838350155],
        [+0.4941094279, -0.4448296300, +0.7469822445],
        [-0.8676661490, -0.1980763734, +0.4559837762],
    ]
)


def make_runs(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The runs' start times, and the number of events in each (1 or more)."""
    starts = FIRST_RUN + np.cumsum(rng.integers(ORBIT, ORBIT + 300, count)) - ORBIT
    return starts, 1 + rng.poisson(29, count)


def to_galactic(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Galactic longitude and latitude; all in degrees."""
    a, d = np.radians(ra), np.radians(dec)
    x, y, z = GALACTIC @ np.array([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arcsin(np.clip(z, -1, 1)))


def make_table(starts: np.ndarray, events: np.ndarray, rng: np.random.Generator) -> fits.BinTableHDU:
    """EVENTS: every event of every run, in order of time."""
    n, runs = int(events.sum()), np.repeat(starts, events)
    order = np.lexsort((moments := rng.uniform(10, ORBIT - 50, n), runs))
    times = runs + moments[order]
    ids = np.concatenate([1000 + np.cumsum(rng.integers(1, 400_000, count)) for count in events])
    ra, dec = rng.uniform(0, 360, n), np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    longitude, latitude = to_galactic(ra, dec)
    kind = np.zeros((n, 32), dtype=bool)
    front = rng.random(n) < 0.55
    kind[:, 31], kind[:, 30] = front, ~front
    classes = np.zeros((n, 32), dtype=bool)
    classes[:, 24:28] = True

    def column(name: str, form: str, values: np.ndarray, unit: str | None = None) -> fits.Column:
        return fits.Column(name=name, format=form, array=values, unit=unit)

    columns = [
        column("ENERGY", "E", 100 * rng.random(n) ** (-1 / 1.4), "MeV"),
        column("RA", "E", ra, "deg"),
        column("DEC", "E", dec, "deg"),
        column("L", "E", longitude, "deg"),
        column("B", "E", latitude, "deg"),
        column("THETA", "E", np.degrees(np.arccos(rng.uniform(0.3, 1, n))), "deg"),
        column("PHI", "E", rng.uniform(0, 360, n), "deg"),
        column("ZENITH_ANGLE", "E", rng.triangular(0, 60, 115, n), "deg"),
        column("EARTH_AZIMUTH_ANGLE", "E", rng.uniform(0, 360, n), "deg"),
        column("TIME", "D", times, "s"),
        column("EVENT_ID", "J", ids),
        column("RUN_ID", "J", runs),
        column("RECON_VERSION", "I", np.zeros(n, dtype=np.int16)),
        column("CALIB_VERSION", "3I", np.zeros((n, 3), dtype=np.int16)),
        column("EVENT_CLASS", "32X", classes),
        column("EVENT_TYPE", "32X", kind),
        column("CONVERSION_TYPE", "I", (~front).astype(np.int16)),
        column("LIVETIME", "D", rng.uniform(0, 300, n), "s"),
    ]
    return fits.BinTableHDU.from_columns(columns, name="EVENTS")


def make_intervals(starts: np.ndarray) -> fits.BinTableHDU:
    """GTI: the good time of each run, all but its first and last seconds."""
    columns = [
        fits.Column(name="START", format="D", array=starts + 5.0, unit="s"),
        fits.Column(name="STOP", format="D", array=starts + ORBIT - 40.0, unit="s"),
    ]
    return fits.BinTableHDU.from_columns(columns, name="GTI")


def label(hdu: fits.PrimaryHDU | fits.BinTableHDU, start: float, stop: float) -> None:
    """The keywords that say whose data it is and what its times mean."""
    cards = {"TELESCOP": "GLAST", "INSTRUME": "LAT", "EQUINOX": 2000.0, "RADECSYS": "FK5", "OBSERVER": "nobody"}
    cards |= {"TSTART": start, "TSTOP": stop, "MJDREFI": 51910, "MJDREFF": 7.428703703703703e-4, "TIMEUNIT": "s"}
    cards |= {"TIMESYS": "TT", "TIMEREF": "LOCAL", "TIMEZERO": 0.0, "CREATOR": "make_events.py", "ORIGIN": "invented"}
    hdu.header.update(cards)
    hdu.add_checksum(when="as the file was made")


def main(arguments: list[str] | None = None) -> int:
    """Do it; the exit code."""
    parser = argparse.ArgumentParser(description="Make an event file of invented events.", allow_abbrev=False)
    parser.add_argument("--runs", type=parse_count, default=200, metavar="N", help="default: 200")
    parser.add_argument("--seed", type=parse_count, default=1, metavar="N", help="default: 1")
    parser.add_argument("--output", type=Path, default=Path("events.fits"), metavar="FILE", help="default: events.fits")
    parser.add_argument("--table", type=Path, default=Path("runs.csv"), metavar="FILE", help="default: runs.csv")
    args = parser.parse_args(arguments)
    if args.runs == 0:
        parser.error("--runs: a file without a run is of no use")
    rng = np.random.default_rng(args.seed)
    starts, events = make_runs(args.runs, rng)
    hdus = fits.HDUList([fits.PrimaryHDU(), make_table(starts, events, rng), make_intervals(starts)])
    for hdu in hdus:
        label(hdu, float(starts[0]), float(starts[-1] + ORBIT))
    try:
        write(hdus, args.output)
        write_table(hdus["EVENTS"].data["RUN_ID"], args.table)
    except Failure as failure:
        print(f"make_events.py: {failure}", file=sys.stderr)
        return failure.code
    print(f"{args.runs} runs, {int(events.sum())} events -> {args.output}, {args.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
