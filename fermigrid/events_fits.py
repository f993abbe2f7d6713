"""Columns of tables in FITS files. The only importer of astropy, which is an extra: `pip install 'fermigrid[fits]'`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray


def read_columns(path: Path, table: str, names: Sequence[str]) -> list[NDArray[np.int64]]:
    """Columns of whole numbers of one table, each as long as the table.

    Raises ValueError in words: no FITS, cut short, no such table or column, no whole numbers; and OSError.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*(truncated|corrupted)")
        try:
            with path.open("rb") as file, fits.open(file, memmap=False, lazy_load_hdus=False) as hdus:
                if table not in hdus:
                    raise ValueError(f"it has no table {table}; it has {', '.join(h.name or 'PRIMARY' for h in hdus)}")
                data = hdus[table].data
                return [_whole(data, table, name) for name in names]
        except (fits.VerifyError, Warning, TypeError, EOFError) as error:
            raise ValueError(f"it cannot be read as FITS, or not to its end: {error}") from error


def _whole(data: fits.FITS_rec, table: str, name: str) -> NDArray[np.int64]:
    if data is None or name.upper() not in (known.upper() for known in data.names):
        raise ValueError(f"its table {table} has no column {name}")
    values = np.asarray(data[name])
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(f"its column {name} has no whole number for each event")
    return values.astype(np.int64)
