"""What is known here of a DIRAC batch: the file `dirac.jobs` of its work folder.

The first line has the DIRAC ids of its jobs, in their order; each line after it is something that happened to one of
them. It is only ever added to, so that the byte that was read last is a cursor. All of it can be asked of the server
again: a file that is lost or damaged is made anew, under another stamp.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fermigrid.backends import JobSeen, RenderedBatch
from fermigrid.backends.dirac_states import Known, ServerJob, Stage
from fermigrid.errors import BackendUnavailable, RunFolderError
from fermigrid.plainfile import read_plain, whole_file
from fermigrid.states import Seen

NAME, LOCK, KILLED = "dirac.jobs", "dirac.lock", "dirac.killed"
_FORMAT = 1


@dataclass(frozen=True)
class Line:
    """Something that happened: what is told of the job, and what is known of it from then on."""

    seen: JobSeen
    known: Known


@dataclass
class Book:
    """The content of a batch's file. `ids`: the DIRAC id of each job; `known`: of jobs to which something happened."""

    path: Path
    stamp: str
    where: str
    ids: tuple[int, ...]
    known: dict[int, Known]
    size: int

    @property
    def key(self) -> str:
        """Its name among the cursors: another one when it was made anew."""
        return f"{self.path}#{self.stamp}"

    def of(self, index: int) -> Known:
        return self.known.get(index, Known())

    def add(self, lines: Iterable[Line]) -> None:
        """Write down what happened; on disk when this returns."""
        data = b""
        for line in lines:
            data += (json.dumps(_to_fields(line), separators=(",", ":")) + "\n").encode()
            self.known[line.seen.index] = line.known
        if not data:
            return
        handle = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(handle, self.size)  # half a line of one that was killed
            os.pwrite(handle, data, self.size)
            os.fsync(handle)
        finally:
            os.close(handle)
        self.size += len(data)

    def read(self, batch: RenderedBatch, offset: int, limit: int) -> tuple[list[JobSeen], int]:
        """What was written from a byte on, and the byte after it; some `limit` bytes at a time."""
        data = read_plain(self.path)[: self.size]
        start = offset if 0 < offset <= len(data) else data.index(b"\n") + 1
        end = len(data) if len(data) - start <= limit else data.index(b"\n", start + limit) + 1
        return [_from_fields(batch.batch_id, json.loads(line)) for line in data[start:end].splitlines()], end


def path_of(batch: RenderedBatch) -> Path:
    """The file of this batch (it need not exist)."""
    return batch.work_dir.absolute() / NAME


def book_size(batch: RenderedBatch) -> int:
    """Bytes of the batch's file; 0: there is none."""
    try:
        return path_of(batch).stat().st_size
    except OSError:
        return 0


def open_book(batch: RenderedBatch) -> Book | None:
    """The batch's file; None when it is not there, or is no such file of this batch."""
    path = path_of(batch)
    try:
        data = read_plain(path)
        size = data.rindex(b"\n") + 1
        head, *lines = (json.loads(line) for line in data[:size].splitlines())
        if (head["book"], head["batch"], len(head["ids"])) != (_FORMAT, batch.batch_id, batch.jobs):
            return None
        known = {line["i"]: _known(line) for line in lines}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Book(path, head["stamp"], head["where"], tuple(head["ids"]), known, size)


def make_book(batch: RenderedBatch, where: str, ids: Sequence[int]) -> Book:
    """A new file, of which nothing has been read yet; it takes the place of another."""
    path, stamp = path_of(batch), secrets.token_hex(4)
    head = {"book": _FORMAT, "batch": batch.batch_id, "stamp": stamp, "where": where, "ids": list(ids)}
    text = json.dumps(head, separators=(",", ":")) + "\n"
    with whole_file(path) as file:
        file.write(text)
    return Book(path, stamp, where, tuple(ids), {}, len(text.encode()))


def note_killed(batch: RenderedBatch, ids: Iterable[int]) -> None:
    """Write down, before they are killed, jobs that fermigrid takes back: none of them has landed. Raises
    RunFolderError."""
    path = batch.work_dir.absolute() / KILLED
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write("".join(f"\n{job}" for job in ids) + "\n")  # what a killed one left unfinished ends there
            file.flush()
            os.fsync(handle)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror}") from error


def that_count(batch: RenderedBatch, jobs: Iterable[ServerJob]) -> list[ServerJob]:
    """Jobs of the server without those that fermigrid itself took back and killed."""
    try:
        lines = read_plain(batch.work_dir.absolute() / KILLED).split()
    except FileNotFoundError:
        return list(jobs)
    killed = {int(line) for line in lines if line.isdigit()}
    return [job for job in jobs if not (job.stage is Stage.KILLED and job.id in killed)]


@contextmanager
def locked(batch: RenderedBatch, limit: float) -> Iterator[None]:
    """The batch for one fermigrid alone. Raises BackendUnavailable when another has it for longer than `limit` s."""
    path = batch.work_dir.absolute() / LOCK
    deadline = time.monotonic() + limit
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BackendUnavailable(f"{batch.name}: {path} cannot be used: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    words = f"{batch.name}: another fermigrid has been at work on it for {limit:g} s"
                    raise BackendUnavailable(words, "Try again later. Nothing was changed.") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(handle)


def _to_fields(line: Line) -> dict[str, Any]:
    seen, known = line.seen, line.known
    fields: dict[str, Any] = {"i": seen.index, "seen": seen.seen.value, "time": seen.time.isoformat()}
    fields |= {"stage": known.stage.value, "again": known.reschedules, "begun": known.started}
    more = {"host": seen.host, "exit": seen.exit_code, "reason": seen.reason, "code": seen.code}
    return fields | {name: value for name, value in more.items() if value not in ("", None)}


def _known(fields: Mapping[str, Any]) -> Known:
    return Known(Stage(fields["stage"]), int(fields["again"]), bool(fields["begun"]))


def _from_fields(batch_id: str, fields: Mapping[str, Any]) -> JobSeen:
    return JobSeen(
        batch_id,
        int(fields["i"]),
        Seen(fields["seen"]),
        datetime.fromisoformat(fields["time"]),
        host=str(fields.get("host", "")),
        exit_code=fields.get("exit"),
        reason=str(fields.get("reason", "")),
        code=str(fields.get("code", "")),
    )
