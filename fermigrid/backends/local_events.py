"""The folder of a local batch: its paths, its event file, and what the events add up to.

A local batch has a folder of its own beside the event log of its block, `<event_log>.<batch id>/`:

    batch.json    the batch as it was submitted, for the runner
    events        JSON lines, only ever appended to; the first carries the batch id
    lock          held by the runner and the keepers of its jobs: free means that nothing of the batch runs
    commands/     hold, release, remove, pause and resume: obeyed in the order of their names, deleted when done
    runner.log    what the runner had to say
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from fermigrid.backends import Allowed, JobSeen, RenderedBatch
from fermigrid.states import Seen

Event = Mapping[str, Any]  # one line of the event file

WAITING, RUNNING, HELD, OVER = b"w", b"r", b"h", b"o"
_LETTER = {
    Seen.STARTED: RUNNING,
    Seen.EVICTED: WAITING,
    Seen.HELD: HELD,
    Seen.RELEASED: WAITING,
    Seen.ENDED: OVER,
    Seen.REMOVED: OVER,
}
_FULL_DISK_PAUSE = 1.0  # s between two tries to write an event to a full disk


@dataclass(frozen=True)
class Folder:
    """Where the files of one local batch are."""

    path: Path

    @property
    def batch(self) -> Path:
        return self.path / "batch.json"

    @property
    def events(self) -> Path:
        return self.path / "events"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def commands(self) -> Path:
        return self.path / "commands"

    @property
    def log(self) -> Path:
        return self.path / "runner.log"


def folder_of(batch: RenderedBatch) -> Folder:
    """The folder of this batch (it need not exist)."""
    return Folder(batch.event_log.absolute().with_name(f"{batch.event_log.name}.{batch.batch_id}"))


def batch_to_text(batch: RenderedBatch) -> str:
    """The content of batch.json; all paths absolute, for the runner works elsewhere."""
    paths = {name: str(getattr(batch, name).absolute()) for name in ("plan_dir", "work_dir", "event_log")}
    plain = {
        "batch_id": batch.batch_id,
        "name": batch.name,
        "jobs": batch.jobs,
        "options": dict(batch.options),
    }
    return json.dumps({**plain, **paths}, indent=1) + "\n"


def batch_from_text(text: str) -> RenderedBatch:
    """The inverse of `batch_to_text`."""
    data: dict[str, Any] = json.loads(text)
    return RenderedBatch(**data | {name: Path(data[name]) for name in ("plan_dir", "work_dir", "event_log")})


def write_whole(path: Path, text: str) -> None:
    """A file that is there with all its text or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    part.write_text(text)
    part.replace(path)


def now() -> str:
    """This instant as events carry it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat()


def say(text: str) -> None:
    """A line for runner.log; on a full disk it is lost, which must end neither runner nor keeper."""
    with contextlib.suppress(OSError):
        os.write(2, f"{now()} {text}\n".encode())


def try_lock(path: Path) -> int | None:
    """An open file that holds the lock, until it is closed; None when somebody else holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def leads_to(path: Path, handle: int) -> bool:
    """Whether this is still the path of the open file or folder; where nobody can tell, it is."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


@dataclass(frozen=True)
class Lines:
    """Whole lines of an event file: the events, the offset after the last, sentences about damaged lines."""

    events: tuple[Event, ...]
    offset: int
    problems: tuple[str, ...]


def read_lines(path: Path, offset: int, limit: int) -> Lines:
    """The events from byte `offset` on, of `limit` bytes at most. Half a line at the end stays for later."""
    with path.open("rb") as stream:
        if offset > os.fstat(stream.fileno()).st_size:
            again = read_lines(path, 0, limit)
            problem = f"{path}: shorter than when it was last read: read anew"
            return Lines(again.events, again.offset, (problem, *again.problems))
        stream.seek(offset)
        text = stream.read(limit)
    events, problems = [], []
    for line in text[: text.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            events.append(_parse(line))
        except ValueError:
            problems.append(f"{path}: byte {offset}: no event: {line[:80]!r}")
        offset += len(line)
    return Lines(tuple(events), offset, tuple(problems))


def _parse(line: bytes) -> Event:
    event = json.loads(line)
    if not isinstance(event, dict) or ("index" in event and ("seen" not in event or "time" not in event)):
        raise ValueError("no event")
    if "index" in event:
        Seen(event["seen"])
    return cast(Event, event)


def read_all(path: Path) -> Iterator[Event]:
    """Every event of the file, a few at a time."""
    offset = 0
    while (lines := read_lines(path, offset, 1 << 20)).offset > offset:
        offset = lines.offset
        yield from lines.events


def last_event(path: Path) -> Event:
    """The last whole line of the file; an empty event when there is none."""
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - 8192))
        lines = stream.read().splitlines(keepends=True)
    for line in reversed(lines):
        if line.endswith(b"\n"):
            try:
                return _parse(line)
            except ValueError:
                return {}
    return {}


def to_seen(event: Event, batch_id: str) -> JobSeen | None:
    """What an event says about a job; None for those about the batch or its runner."""
    if "index" not in event:
        return None
    return JobSeen(
        batch_id=batch_id,
        index=event["index"],
        seen=Seen(event["seen"]),
        time=datetime.fromisoformat(event["time"]),
        host=event.get("host", ""),
        exit_code=event.get("exit"),
        signal=event.get("signal"),
        reason=event.get("reason", ""),
        code=event.get("code", ""),
    )


class EventFile:
    """The event file, for the runner to append to: one whole line an event, whatever happens.

    A full disk is waited for: an event that a job ended is given up only when the file is no longer in its place.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":  # half a line of a runner that was killed
            self._write(b"\n")

    def append(self, event: Event, *, sync: bool = False) -> None:
        """Write one event; `sync`: return when it would survive a power cut."""
        self._write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
        if sync:
            os.fdatasync(self._handle)

    def _write(self, line: bytes) -> None:
        while line:
            try:
                line = line[os.write(self._handle, line) :]
            except OSError as error:
                say(f"an event cannot be written, trying again: {error}")
                if not leads_to(self._path, self._handle):
                    return
                time.sleep(_FULL_DISK_PAUSE)


@dataclass
class Table:
    """What the events of a batch add up to: one byte a job, more for those that run or wait again."""

    jobs: int
    states: bytearray = field(init=False)
    starts: dict[int, int] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)  # by the infrastructure, of this job so far
    finished: bool = False
    paused: bool = False  # no job starts; those that run go on
    allowed: Allowed | None = None  # how many may run, and start in a minute; None: as it was sent

    def __post_init__(self) -> None:
        self.states = bytearray(WAITING * self.jobs)

    def apply(self, event: Event) -> None:
        """Take in one event, in the order of the file."""
        self.finished = bool(event.get("finished"))
        self.paused = bool(event.get("paused", self.paused))
        if "places" in event:
            self.allowed = Allowed(event["places"], event["stay"])
        index = event.get("index")
        if index is None:
            return
        letter = _LETTER[Seen(event["seen"])]
        self.states[index] = letter[0]
        if letter == OVER:
            self.starts.pop(index, None)
            self.failures.pop(index, None)
        elif letter == RUNNING:
            self.starts[index] = event["start"]
        elif event.get("failed"):
            self.failures[index] = self.failures.get(index, 0) + 1

    def state(self, index: int) -> bytes:
        """One of WAITING, RUNNING, HELD, OVER."""
        return bytes(self.states[index : index + 1])

    def find(self, state: bytes) -> int | None:
        """The first job in this state."""
        index = self.states.find(state)
        return None if index < 0 else index

    @property
    def over(self) -> bool:
        """No job has anything left to do."""
        return self.states.count(OVER) == self.jobs
