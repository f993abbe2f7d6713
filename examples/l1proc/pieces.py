"""What the programs of the example share: files of events in pieces, and what is derived of each event."""

from __future__ import annotations

import argparse
import io
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from filter_run import UNUSABLE, Failure, data_sum, open_events, report, write

WRONG_PIECE = 5
DERIVED = ("DIR_X", "DIR_Y", "DIR_Z", "LOG_E", "EVT_SUM")


def derive(events: fits.FITS_rec) -> dict[str, np.ndarray]:
    """The derived columns, each from the event's own values alone.

    `DIR_X` to `DIR_Z`: the direction as a unit vector (equatorial, J2000). `LOG_E`: log10 of the energy in MeV.
    `EVT_SUM`: the CRC-32 of all that was recorded of the event.
    """
    ra, dec = (np.radians(events[name].astype("f8")) for name in ("RA", "DEC"))
    return {
        "DIR_X": np.cos(dec) * np.cos(ra),
        "DIR_Y": np.cos(dec) * np.sin(ra),
        "DIR_Z": np.sin(dec),
        "LOG_E": np.log10(events["ENERGY"].astype("f8")),
        "EVT_SUM": checksums(events),
    }


def checksums(events: fits.FITS_rec) -> np.ndarray:
    """The CRC-32 of each event: of its values as FITS has them, column by column."""
    sums = [0] * len(events)
    for name in recorded(events.names):
        values = np.asarray(events[name])
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder(">"))
        sums = [zlib.crc32(value.tobytes(), before) for value, before in zip(values, sums, strict=True)]
    return np.array(sums, dtype="i8")


def recorded(names: Sequence[str]) -> list[str]:
    """The columns that were recorded, not derived, in their order."""
    return [name for name in names if name not in (*DERIVED, "PIECE")]


def without_derived(events: fits.FITS_rec) -> fits.FITS_rec:
    """The events with the columns that were recorded."""
    return fits.BinTableHDU.from_columns([events.columns[name] for name in recorded(events.names)]).data


def table_of(events: fits.FITS_rec, header: fits.Header) -> fits.BinTableHDU:
    """A table EVENTS; of the old header what is about its columns is made anew."""
    cards = header.copy(strip=True)
    return fits.BinTableHDU(data=events, header=cards, name="EVENTS")


def save(table: fits.BinTableHDU, others: Sequence[fits.hdu.base.ExtensionHDU], output: Path) -> None:
    """A file of events with checksums. The same input gives the same bytes. Raises Failure."""
    draft = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), table, *(each.copy() for each in others)]).writeto(draft)
    with fits.open(io.BytesIO(draft.getvalue()), lazy_load_hdus=False) as parts:
        for part in parts:  # only now are columns of bits the bytes that they are in a file
            part.add_checksum(when="as the file was made")
        write(parts, output)


def open_piece(path: Path) -> fits.HDUList:
    """A file that a step before this one made: one that does not have its own checksums is refused. Raises Failure."""
    hdus = open_events(path)
    if data_sum(hdus["EVENTS"]) != str(hdus["EVENTS"].header.get("DATASUM")):
        raise Failure(UNUSABLE, f"{path}: its events are not those that were written")
    return hdus


def run_program(name: str, do: Callable[[argparse.Namespace], tuple[int, int]], args: argparse.Namespace) -> int:
    """Do it, and tell fermigrid how many events were read and kept; the exit code."""
    try:
        read, kept = do(args)
    except Failure as failure:
        print(f"{name}: {failure}", file=sys.stderr)
        return failure.code
    report(read, kept)
    print(f"{name}: {read} events read, {kept} kept -> {args.output}")
    return 0
