"""The logs of a campaign's good jobs, packed into one file."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from fermigrid.ledger_file import connect, settle, transaction


class PackedLogs:
    """The logs of good jobs, compressed, in a file of their own: millions of small files would tire any file system."""

    def __init__(self, path: Path) -> None:
        self._db, self._path = connect(path), path
        with transaction(self._db, path) as db:
            columns = "job TEXT, batch TEXT, text BLOB, PRIMARY KEY (job, batch)"
            db.execute(f"CREATE TABLE IF NOT EXISTS log ({columns}) WITHOUT ROWID")

    def pack(self, logs: Iterable[tuple[str, str, bytes]]) -> None:
        """Keep (job, batch, log); doing it again is harmless."""
        with transaction(self._db, self._path) as db:
            rows = ((job, batch, zlib.compress(text)) for job, batch, text in logs)
            db.executemany("INSERT OR REPLACE INTO log VALUES (?, ?, ?)", rows)

    def read(self, job: str, batch: str) -> bytes | None:
        """A job's log, or None."""
        row = self._db.execute("SELECT text FROM log WHERE job = ? AND batch = ?", (job, batch)).fetchone()
        return zlib.decompress(row[0]) if row else None

    def settle_file(self) -> None:
        """Bring all that was written into the one file. Raises LedgerError when it is damaged, or being read."""
        settle(self._db, self._path)

    def close(self) -> None:
        """Give the file back."""
        self._db.close()
