"""The ledger: what was intended, submitted and seen of one campaign. The only importer of sqlite3.

Every public method is one transaction: after a crash it happened or it did not. One writer at a time holds the lock
beside the file (`writing`); readers need none. Intents are on disk before they are acted upon (`synchronous = FULL`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from fermigrid.backends import Cursor
from fermigrid.errors import LedgerBusy, LedgerError
from fermigrid.plainfile import kind_of, write_new
from fermigrid.records import AttemptRecord, BatchRecord, CampaignRecord, JobRecord, MessageRecord, NodeFailures
from fermigrid.report import Report
from fermigrid.schema import MIGRATIONS
from fermigrid.states import State
from fermigrid.units import show_count


class Ledger:
    """A campaign's ledger, open. Use `open_ledger` and `create_ledger`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db, self.path = connection, path

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return _transaction(self._db, self.path)

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _fault(self.path, "read", error) from error

    # --- campaign and journal

    def campaign(self) -> CampaignRecord:
        """What this ledger is about."""
        names = [field.name for field in fields(CampaignRecord)]
        rows = self._rows(f"SELECT {', '.join(names)} FROM campaign")
        if not rows:
            raise LedgerError(f"the ledger {self.path} is empty: its campaign was never begun")
        values = dict(zip(names, rows[0], strict=True))
        values.update(parameters=json.loads(values["parameters"]), search=tuple(json.loads(values["search"])))
        return CampaignRecord(**values)

    def note(self, time: datetime, who: str, what: str) -> None:
        """Write a line of the campaign's history."""
        with self._transaction() as db:
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, what))

    def journal(self) -> list[tuple[str, str, str]]:
        """The campaign's history: (time, who, what)."""
        return [
            (time, who, what) for time, who, what in self._rows("SELECT time, who, what FROM journal ORDER BY rowid")
        ]

    # --- batches

    def intend(self, batch: BatchRecord, time: datetime, who: str) -> None:
        """Record that a batch is about to be sent. From here on it may be in the queue, whatever happens."""
        b = batch
        with self._transaction() as db:
            db.execute(
                "INSERT INTO batch VALUES (?,?,?,?,?,?,?,?,?,?,?,NULL,NULL,NULL,NULL)",
                (
                    b.id,
                    b.block,
                    b.step,
                    b.generation,
                    b.site,
                    b.backend,
                    b.name,
                    b.digest,
                    b.jobs,
                    json.dumps(b.options),
                    _text(time),
                ),
            )
            db.execute(
                "INSERT INTO journal VALUES (?, ?, ?)",
                (_text(time), who, f"intends {b.name}: {show_count(b.jobs, 'job')} to {b.site}"),
            )

    def record(self, batch_id: str, place: str, cluster: int, time: datetime, who: str, how: str) -> None:
        """Record that the batch system has the batch; `how` is `submitted` or `adopted`."""
        with self._transaction() as db:
            db.execute(
                "UPDATE batch SET submitted = ?, place = ?, cluster = ? WHERE id = ? AND submitted IS NULL",
                (_text(time), place, cluster, batch_id),
            )
            what = f"{how} batch {batch_id} as cluster {cluster}" + (f" at {place}" if place else "")
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, what))

    def withdraw(self, batch_id: str, time: datetime, who: str, why: str) -> None:
        """Forget an intent that is known not to have landed: the batch system said no."""
        with self._transaction() as db:
            db.execute("DELETE FROM batch WHERE id = ? AND submitted IS NULL", (batch_id,))
            db.execute(
                "INSERT INTO journal VALUES (?, ?, ?)",
                (_text(time), who, f"withdrew batch {batch_id}: {why}"),
            )

    def remove(self, batch_id: str, time: datetime, who: str) -> None:
        """A person removed what is left of a batch: its jobs without a row will never have one."""
        with self._transaction() as db:
            db.execute("UPDATE batch SET removed = ? WHERE id = ?", (_text(time), batch_id))
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"removed batch {batch_id}"))

    def stop(self, time: datetime, who: str) -> None:
        """A person removed the campaign as a whole: nothing more of it is to be submitted."""
        with self._transaction() as db:
            db.execute("UPDATE campaign SET stopped = ? WHERE stopped IS NULL", (_text(time),))
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, "removed the campaign"))

    def go_on(self, time: datetime, who: str, why: str) -> None:
        """Take a removal of the campaign back: the batch system refused it."""
        with self._transaction() as db:
            db.execute("UPDATE campaign SET stopped = NULL")
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"the campaign goes on: {why}"))

    def batches(self) -> list[BatchRecord]:
        """All batches, in the order in which they were intended."""
        names = [field.name for field in fields(BatchRecord)]
        columns = ", ".join(names)
        rows = self._rows(f"SELECT {columns} FROM batch ORDER BY rowid")
        return [BatchRecord(**dict(zip(names, row, strict=True), options=json.loads(row[9]))) for row in rows]

    # --- jobs

    def apply(self, jobs: Iterable[JobRecord], cursor: Cursor, failures: Iterable[tuple[str, int]] = ()) -> None:
        """Take in what was seen, (host, exit code) of nodes that failed, and how far it was read: all or nothing."""
        with self._transaction() as db:
            _upsert(db, jobs)
            once_more = "INSERT INTO node_failure VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1"
            db.executemany(once_more, failures)
            db.executemany(
                "INSERT INTO cursor VALUES (?, ?) ON CONFLICT (file) DO UPDATE SET bytes = excluded.bytes",
                cursor.offsets.items(),
            )

    def cursor(self) -> Cursor:
        """How far the event logs were read."""
        return Cursor(dict(self._rows("SELECT file, bytes FROM cursor")))

    def node_failures(self) -> list[NodeFailures]:
        """The machines on which starts failed for a reason of theirs, the worst first."""
        return [NodeFailures(*row) for row in self._rows("SELECT * FROM node_failure ORDER BY times DESC, host, code")]

    def job(self, batch: str, index: int) -> JobRecord | None:
        """One job, or None when nothing happened to it yet."""
        rows = self._jobs("WHERE batch = ? AND idx = ?", (batch, index))
        return rows[0] if rows else None

    def jobs_in(self, state: State, limit: int = -1, after: tuple[str, int] = ("", -1)) -> list[JobRecord]:
        """The jobs in one state, by batch and index, those after the job (batch, index)."""
        where = "WHERE state = ? AND (batch, idx) > (?, ?) ORDER BY batch, idx LIMIT ?"
        return self._jobs(where, (state, *after, limit))

    def holds(self) -> list[tuple[str, int, str]]:
        """Why jobs are held now: (reason, number of jobs, the first of them)."""
        query = "SELECT reason, count(*), min(name) FROM job WHERE state = 'held' GROUP BY reason ORDER BY min(name)"
        return [(reason, count, first) for reason, count, first in self._rows(query)]

    def jobs_not_done(self, batch: str) -> list[JobRecord]:
        """The jobs of a batch that have a row and are not done."""
        return self._jobs("WHERE batch = ? AND state <> 'done' ORDER BY idx", (batch,))

    def _jobs(self, where: str, values: Sequence[object]) -> list[JobRecord]:
        columns = "batch, idx, name, state, since, starts, host, reason, code"
        rows = self._rows(f"SELECT {columns} FROM job {where}", values)
        return [JobRecord(r[0], r[1], r[2], State(r[3]), *r[4:]) for r in rows]

    def counts(self) -> dict[str, dict[State, int]]:
        """Batch id -> state -> number of jobs; those without a row are not in it."""
        found: dict[str, dict[State, int]] = {}
        for batch, state, count in self._rows("SELECT batch, state, count(*) FROM job GROUP BY batch, state"):
            found.setdefault(batch, {})[State(state)] = count
        return found

    # --- attempts

    def take_in(self, judged: Sequence[tuple[JobRecord, Report | None]]) -> None:
        """Judged jobs with their reports: a job that is DONE has its attempt accepted if it has no accepted one yet."""
        with self._transaction() as db:
            for job, report in judged:
                if report is None:
                    continue
                good = job.state is State.DONE
                published = not (good and any(output.came_back for output in report.outputs))
                values = {
                    "job": report.job,
                    "attempt": report.attempt,
                    "batch": report.batch,
                    "idx": job.index,
                    "exit": report.exit,
                    "rehearsal": report.rehearsal,
                    "good": good,
                    "published": published,
                    "report": report.data,
                }
                db.execute(
                    """INSERT INTO attempt SELECT :job, :attempt, :batch, :idx, :exit, :rehearsal,
                       :good AND NOT EXISTS (SELECT 1 FROM attempt WHERE job = :job AND accepted = 1),
                       :published, :report
                       WHERE true ON CONFLICT DO NOTHING""",
                    values,
                )
                db.executemany(
                    "INSERT OR IGNORE INTO message VALUES (?,?,?,?,?,?,NULL,'',NULL)",
                    [(m.id, report.batch, report.job, m.kind, m.doubt, m.text) for m in report.messages],
                )
            _upsert(db, (job for job, _ in judged))

    def attempts(self, job: str) -> list[AttemptRecord]:
        """The reports of a job, in the order of its attempts."""
        return self._attempts("WHERE job = ? ORDER BY json_extract(report, '$.begin'), attempt", (job,))

    def unpublished(self, after: str, limit: int) -> list[AttemptRecord]:
        """Accepted attempts whose outputs do not have their final names yet, by job, those after the job `after`."""
        where = "WHERE published = 0 AND accepted = 1 AND job > ? ORDER BY job LIMIT ?"
        return self._attempts(where, (after, limit))

    def accepted(self) -> Iterator[AttemptRecord]:
        """The accepted attempts, by job."""
        yield from self._attempts("WHERE accepted = 1 ORDER BY job", ())

    def _attempts(self, where: str, values: Sequence[object]) -> list[AttemptRecord]:
        columns = "job, attempt, batch, idx, exit, accepted, published, report"
        rows = self._rows(f"SELECT {columns} FROM attempt {where}", values)
        return [AttemptRecord(r[0], r[1], r[2], r[3], r[4], bool(r[5]), bool(r[6]), r[7]) for r in rows]

    def published(self, attempts: Iterable[AttemptRecord]) -> None:
        """Their outputs have their final names."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE attempt SET published = 1 WHERE job = ? AND attempt = ?",
                [(a.job, a.attempt) for a in attempts],
            )

    def waiting_to_publish(self) -> int:
        """How many accepted attempts have outputs without their final names."""
        return int(self._rows("SELECT count(*) FROM attempt WHERE published = 0 AND accepted = 1")[0][0])

    # --- messages

    def unsent_messages(self) -> list[MessageRecord]:
        """The start and end messages that are still to be sent, in the order in which they came."""
        columns = "id, batch, job, kind, doubt, text, due, reason"
        rows = self._rows(f"SELECT {columns} FROM message WHERE sent IS NULL ORDER BY rowid")
        return [MessageRecord(r[0], r[1], r[2], r[3], bool(r[4]), r[5], r[6], r[7]) for r in rows]

    def put_off(self, message: str, due: int, doubt: bool, reason: str) -> None:
        """A message is not to be sent before `due` (seconds since 1970): the last try failed, or may have succeeded."""
        with self._transaction() as db:
            db.execute("UPDATE message SET due = ?, doubt = ?, reason = ? WHERE id = ?", (due, doubt, reason, message))

    def message_sent(self, message: MessageRecord, route: str, time: datetime, who: str) -> None:
        """A message is on its way."""
        with self._transaction() as db:
            db.execute("UPDATE message SET sent = ? WHERE id = ?", (_text(time), message.id))
            what = f"sent the {message.kind} message of {message.job} by {route}"
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, what))

    def rehearsed(self) -> int:
        """How many jobs ran without a container (site `local` on a machine without a runtime)."""
        query = "SELECT count(DISTINCT job) FROM attempt WHERE rehearsal = 1"
        return int(self._rows(query)[0][0])


_HINTS = {"database or disk is full": "Make room, then run the same command again: nothing is lost."}


def _fault(path: Path, what: str, error: sqlite3.Error) -> LedgerError:
    return LedgerError(f"{path} cannot be {what}: {error}", _HINTS.get(str(error), ""))


@contextmanager
def _transaction(db: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
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
        raise _fault(path, "written", error) from error


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


def _upsert(db: sqlite3.Connection, jobs: Iterable[JobRecord]) -> None:
    db.executemany(
        """INSERT INTO job VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT (batch, idx) DO UPDATE SET state = excluded.state,
           since = excluded.since, starts = excluded.starts, host = excluded.host, reason = excluded.reason,
           code = excluded.code""",
        ((j.batch, j.index, j.name, j.state, j.since, j.starts, j.host, j.reason, j.code) for j in jobs),
    )


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


def _connect(path: Path, wal: bool = True) -> sqlite3.Connection:
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
        raise _fault(path, "opened", error) from error
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    try:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            text = (
                f"{path} was written by a newer fermigrid (ledger version {version}, this one knows {len(MIGRATIONS)})"
            )
            raise LedgerError(text, "Use the fermigrid that wrote it.")
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            db.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
    except sqlite3.Error as error:
        raise _fault(path, "opened as a ledger", error) from error


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


def create_ledger(path: Path, campaign: CampaignRecord, time: datetime, who: str) -> Ledger:
    """A new ledger for a campaign, whole in its one file when this returns, so that it can be renamed."""
    ledger = _open(path, wal=False)
    c = campaign
    with ledger._transaction() as db:
        db.execute(
            "INSERT INTO campaign VALUES (?,?,?,?,?,?,?,?,?,NULL,?)",
            (
                c.name,
                c.instance,
                c.digest,
                c.site,
                json.dumps(c.parameters),
                c.folder,
                json.dumps(c.search),
                c.created,
                c.version,
                c.team,
            ),
        )
        db.execute(
            "INSERT INTO journal VALUES (?, ?, ?)",
            (_text(time), who, f"began campaign {c.name} with fermigrid {c.version}"),
        )
    return ledger


def open_ledger(path: Path) -> Ledger:
    """The ledger of a run folder. Raises LedgerError when there is none, or it is of a newer version."""
    if not path.is_file():
        raise LedgerError(f"no ledger at {path}")
    return _open(path)


def _open(path: Path, wal: bool = True) -> Ledger:
    """The ledger in this file, made if there is none, its tables brought up to date."""
    db = _connect(path, wal)
    try:
        _migrate(db, path)
    except LedgerError:
        db.close()
        raise
    return Ledger(db, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Be the one writer of the ledger at `path`. Raises LedgerBusy, naming the other's pid, when there is one."""
    lock = path.with_suffix(".lock")
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        opened = os.fdopen(handle, "a+")
    except OSError as error:
        raise LedgerError(f"{lock} cannot be written: {error.strerror}", "Is the campaign another user's?") from error
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


class PackedLogs:
    """The logs of good jobs, compressed, in a file of their own: millions of small files would tire any file system."""

    def __init__(self, path: Path) -> None:
        self._db, self._path = _connect(path), path
        with _transaction(self._db, path) as db:
            columns = "job TEXT, batch TEXT, text BLOB, PRIMARY KEY (job, batch)"
            db.execute(f"CREATE TABLE IF NOT EXISTS log ({columns}) WITHOUT ROWID")

    def pack(self, logs: Iterable[tuple[str, str, bytes]]) -> None:
        """Keep (job, batch, log); doing it again is harmless."""
        with _transaction(self._db, self._path) as db:
            rows = ((job, batch, zlib.compress(text)) for job, batch, text in logs)
            db.executemany("INSERT OR REPLACE INTO log VALUES (?, ?, ?)", rows)

    def read(self, job: str, batch: str) -> bytes | None:
        """A job's log, or None."""
        row = self._db.execute("SELECT text FROM log WHERE job = ? AND batch = ?", (job, batch)).fetchone()
        return zlib.decompress(row[0]) if row else None

    def close(self) -> None:
        """Give the file back."""
        self._db.close()
