"""The files that SQLite keeps for us: opened, brought up to date, locked, written as one transaction.

Only this module, the ledger and the other files of its kind import sqlite3.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fermigrid.errors import LedgerBusy, LedgerError
from fermigrid.old_ledger import runs_in_plan
from fermigrid.plainfile import kind_of, write_new
from fermigrid.schema import GENERATIONS, MIGRATIONS

BUSY_S = 5.0  # of a person's command: a look of `watch` takes moments, unless a batch system is silent
_HINTS = {
    "database or disk is full": "Make room, then run the same command again: nothing is lost.",
    "disk I/O error": "Is its disk full? Make room, then run the same command again: nothing is lost.",
}


def fault(path: Path, what: str, error: sqlite3.Error) -> LedgerError:
    """What SQLite says, as an error that names the file; `what` it cannot be: read, written."""
    return LedgerError(f"{path} cannot be {what}: {error}", _HINTS.get(str(error), ""))


@contextmanager
def transaction(db: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """All or nothing. Raises LedgerError (disk full, locked, damaged)."""
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite may have rolled back already (disk full)
                db.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        raise fault(path, "written", error) from error


def settle(db: sqlite3.Connection, path: Path) -> None:
    """Bring all that was written into the one file. Raises LedgerError when it is damaged, or being read."""
    try:
        busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        fault = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise fault(path, "read", error) from error
    if busy:
        raise LedgerError(f"{path} is being read by another program", "Try again when it has ended.")
    if fault != "ok":
        raise LedgerError(f"{path} is damaged: {fault}")


def _make(path: Path) -> None:
    """An empty file, unless there is one: SQLite makes one that no group can write, and its other files like it.

    One that is there is not opened: to close it would free the locks of other connections of this process.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        write_new(path, b"")
        return
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"it is {kind_of(found)}")


def connect(path: Path, wal: bool = True) -> sqlite3.Connection:
    """The file, made if there is none; `wal`: with a second file, unless it is on a network file system."""
    try:
        _make(path)
    except OSError as error:
        raise LedgerError(f"{path} cannot be opened: {error.strerror}", "Is the campaign another user's?") from error
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=30)
        # WAL needs memory shared between processes of one machine, and a second file.
        mode = "WAL" if wal and not on_network(path) else "DELETE"
        db.execute(f"PRAGMA journal_mode = {mode}")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        raise fault(path, "opened", error) from error
    return db


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring a ledger's tables up to date. Raises LedgerError for one that a newer fermigrid wrote."""
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            text = (
                f"{path} was written by a newer fermigrid (ledger version {version}, this one knows {len(MIGRATIONS)})"
            )
            raise LedgerError(text, "Use the fermigrid that wrote it.")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number};")
            if number == GENERATIONS:
                _add_runs(db, path.parent)
            db.execute("COMMIT")
    except sqlite3.Error as error:
        raise fault(path, "opened as a ledger", error) from error


def _add_runs(db: sqlite3.Connection, folder: Path) -> None:
    """Which runs the batches of an older ledger do; of one without a plan: all of its block."""
    for batch, block, step, generation in db.execute("SELECT id, block, step, generation FROM batch").fetchall():
        with suppress(OSError):
            runs = runs_in_plan(folder / "blocks" / block / f"{step}.g{generation}" / "plan")
            db.execute("UPDATE batch SET runs = ? WHERE id = ?", (json.dumps(runs), batch))


_NETWORK = {
    "nfs",
    "nfs4",
    "afs",
    "lustre",
    "gpfs",
    "beegfs",
    "cifs",
    "smb3",
    "ceph",
    "9p",
    "fuse.sshfs",
    "panfs",
}


def on_network(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Is the file on a network file system, where SQLite's locks and WAL cannot be trusted?"""
    best, kind = "", ""
    target = str(path.resolve())
    for line in mounts.read_text().splitlines():
        point, type_ = line.split()[1:3]
        point = point.replace("\\040", " ")
        if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, type_
    return kind in _NETWORK


@contextmanager
def writing(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Be the one writer of the ledger at `path`. Raises LedgerBusy, naming the other's pid, when there is one, and
    still is after `patience` s: a watch that looks is done soon."""
    lock = path.with_suffix(".lock")
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        opened = os.fdopen(handle, "a+")
    except OSError as error:
        raise LedgerError(f"{lock} cannot be written: {error.strerror}", "Is the campaign another user's?") from error
    with opened as file:
        try:
            _lock(file, time.monotonic() + patience)
        except BlockingIOError as error:
            file.seek(0)
            other = file.read().strip() or "?"
            text = f"another fermigrid (process {other}) is at work on {path.parent}"
            raise LedgerBusy(text, "Wait for it, or end it: nothing is lost if you do.") from error
        except OSError as error:
            raise LedgerError(f"{lock} cannot be locked: {error.strerror}") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _lock(file: IO[str], end: float) -> None:
    """Lock the file, trying until then (monotonic clock, seconds). Raises BlockingIOError when another has it still."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.05)
