"""Reader of HTCondor's classic event log ("user log") from a byte offset; HTCondor's own JobEventLog has no cursor.

The log is a file to which the schedd and the shadows append events, each ended by a line `...`:

    005 (055.001.000) 2026-11-22 13:32:19 Job terminated.
            (1) Normal termination (return value 7)
    ...

Source: HTCondor manual, "Managing a job" (job event log codes). Codes that are not known here are kept: the
reader judges no event.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Container, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from fermigrid.errors import RunFolderError

_END = b"\n...\n"
_CHUNK = 1 << 20  # bytes
_LARGEST_EVENT = 1 << 20
_HEADER = re.compile(
    rb"(\d{3}) \((-?\d+)\.(-?\d+)\.000\) ("
    rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?Z?"  # ISO_DATE, SUB_SECOND, UTC
    rb"|\d\d/\d\d \d\d:\d\d:\d\d) (?!\()"  # LEGACY, and before HTCondor 8.9
)
# The blank and no bracket after the stamp: "13:00:" torn and continued by "005 (007" is no stamp 13:00:00.
_HEADER_MARK = b".000) "  # in every header; only where it comes again is a second header looked for
_ANY_TIME = datetime(2000, 1, 1, tzinfo=UTC)  # where the time of an event does not matter

_MEASURED = re.compile(r"\s*(Memory \(MB\)|Disk \(KB\))\s*:\s*(\d+)\s+\d+\s+\d+\s*\Z")  # with two numbers: not measured
_TERMINATION = re.compile(r"\s*\(([01])\) (?:Normal|Abnormal) termination \((?:return value|signal) (-?[0-9]+)\)")
_CODES = re.compile(r"\bCode (-?[0-9]+) Subcode (-?[0-9]+)\s*$")
_NO_REASON = "Reason unspecified"
_SINFUL = re.compile(r"<[^>]*>")


class EventCode(IntEnum):
    """The events that fermigrid looks at, by HTCondor's numbers."""

    SUBMIT = 0
    EXECUTE = 1
    EVICTED = 4
    TERMINATED = 5
    SHADOW_EXCEPTION = 7
    ABORTED = 9
    HELD = 12
    RELEASED = 13
    REMOTE_ERROR = 21
    DISCONNECTED = 22
    RECONNECTED = 23
    RECONNECT_FAILED = 24
    JOB_AD = 28
    CLUSTER_SUBMIT = 35
    CLUSTER_REMOVE = 36
    FILE_TRANSFER = 40


_SUBMISSIONS = frozenset({EventCode.SUBMIT, EventCode.CLUSTER_SUBMIT})
_WITH_CODES = frozenset({EventCode.HELD, EventCode.EVICTED, EventCode.REMOTE_ERROR})
_WITH_REASON = _WITH_CODES | {
    EventCode.SHADOW_EXCEPTION,
    EventCode.ABORTED,
    EventCode.RELEASED,
    EventCode.DISCONNECTED,
    EventCode.RECONNECT_FAILED,
}


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event of one job, or of a cluster (`proc` -1).

    `time` is in UTC. A stamp of the log without a zone is the local time of this machine, as JobEventLog reads it; in
    the hour that comes twice in autumn the first is meant. `text` is the first line after the stamp, `lines` are the
    others as they are in the log, indented. What an event does not have is None.
    """

    code: int
    cluster: int
    proc: int
    time: datetime
    text: str
    lines: tuple[str, ...]

    @property
    def host(self) -> str | None:
        """Where a job started (001): the slot's name; without one (old HTCondor) the startd's address."""
        if self.code != EventCode.EXECUTE:
            return None
        if slot := self._after("SlotName:"):
            return slot
        address = _SINFUL.search(self.text)
        return address[0] if address else self.text.rpartition(": ")[2]

    @property
    def normal(self) -> bool | None:
        """Whether a terminated job (005) ended by itself, not by a signal."""
        found = self._termination()
        return found[1] == "1" if found else None

    @property
    def return_value(self) -> int | None:
        """The exit code of a job that ended by itself (005)."""
        found = self._termination()
        return int(found[2]) if found and found[1] == "1" else None

    @property
    def signal(self) -> int | None:
        """The signal that ended a job (005)."""
        found = self._termination()
        return int(found[2]) if found and found[1] == "0" else None

    @property
    def hold_reason(self) -> str | None:
        """Why a job is held (012), in HTCondor's or a person's words."""
        return self.reason if self.code == EventCode.HELD else None

    @property
    def hold_code(self) -> int | None:
        """HTCondor's code of a hold (012), an eviction (004) or an error of the starter (021)."""
        codes = self._codes()
        return int(codes[1]) if codes else None

    @property
    def hold_subcode(self) -> int | None:
        """The subcode that goes with `hold_code`."""
        codes = self._codes()
        return int(codes[2]) if codes else None

    @property
    def notes(self) -> str | None:
        """What `submit_event_notes` said at submission (000, 035), with whatever else the schedd noted there."""
        return "\n".join(line.strip() for line in self.lines) if self.code in _SUBMISSIONS else None

    @property
    def reason(self) -> str | None:
        """Why a job was held, released, evicted, aborted, disconnected or could not start; may have blanks in it."""
        if self.code not in _WITH_REASON:
            return None
        if self.code == EventCode.EVICTED:
            return self._after("Reason:")
        first = next((line.strip() for line in self.lines if line.strip()), None)
        return None if first is None or first == _NO_REASON or _CODES.fullmatch(first) else first

    @property
    def measured(self) -> dict[str, int]:
        """What the machine measured of a job that ended (005): `Memory (MB)`, `Disk (KB)`, in these units."""
        found = (_MEASURED.match(line) for line in self.lines) if self.code == EventCode.TERMINATED else ()
        return {match[1]: int(match[2]) for match in found if match}

    def _after(self, label: str) -> str | None:
        values = (line.strip().removeprefix(label).strip() for line in self.lines if line.strip().startswith(label))
        return next(values, None)

    def _termination(self) -> re.Match[str] | None:
        if self.code != EventCode.TERMINATED or not self.lines:
            return None
        return _TERMINATION.match(self.lines[0])

    def _codes(self) -> re.Match[str] | None:
        if self.code not in _WITH_CODES:
            return None
        found = (_CODES.search(line) for line in (self.text, *reversed(self.lines)))
        return next((codes for codes in found if codes), None)


@dataclass(frozen=True, slots=True)
class LogProblem:
    """A damaged stretch of the log, bytes `start` to `end`, that was skipped, and what is wrong with it."""

    start: int
    end: int
    what: str


def read_events(
    path: Path, offset: int, now: datetime, limit: int | None = None, codes: Iterable[int] | None = None
) -> tuple[list[LogEvent | LogProblem], int]:
    """Read the complete events from a byte offset on, and the offset from which to read next time.

    Events and problems come in the order of the file, at most `limit` of them: memory is bounded by `limit`, not by
    the file. A half-written event at the end waits for the next call. A file that does not exist has no events. A
    file shorter than `offset` was replaced: a problem says so, and reading begins at 0. `now` (with a zone) gives
    stamps without a year theirs: the latest that is not after `now`, a day allowed for clocks that differ. `codes`: of
    other events only damage is told.
    """
    items: list[LogEvent | LogProblem] = []
    wanted = None if codes is None else {b"%03d" % code for code in codes}
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size < offset:
                what = f"the log has {size} bytes, {offset} had been read: it was replaced; read from its beginning"
                items.append(LogProblem(0, 0, what))
                offset = 0
            for start, end, record in _records(file, offset):
                _add(items, start, end, record, now, wanted)
                offset = end
                if limit is not None and len(items) >= limit:
                    break
    except FileNotFoundError:
        return [], offset
    except OSError as error:
        raise RunFolderError(f"{path}: the event log cannot be read: {error.strerror}") from error
    return items, offset


def mark_of(path: Path) -> int:
    """What tells a log from another in its place: a checksum of its first line, which has its cluster and its time.

    0: it has no whole line, or is not there. A log that was emptied, or was moved away, and has grown since, is as long
    as it was, and only this is not as it was.
    """
    try:
        with path.open("rb") as file:
            line = file.readline(_CHUNK)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise RunFolderError(f"{path}: the event log cannot be read: {error.strerror}") from error
    return zlib.crc32(line) or 1 if line.endswith(b"\n") else 0


def find_clusters(path: Path, batch_id: str) -> Iterator[int]:
    """The clusters whose submission carries `batch=<batch_id>` in its notes, each once, in the order of the log.

    An event that is still being written counts: the schedd writes it after the commit.
    """
    found: set[int] = set()
    needle = f"batch={batch_id}".encode()
    try:
        with path.open("rb") as file:
            for start, end, record in _records(file, 0, unfinished=True):
                if record is None or needle not in record or _cluster_of(record) in found:
                    continue
                items: list[LogEvent | LogProblem] = []
                _add(items, start, end, record, _ANY_TIME)
                for item in items:
                    if isinstance(item, LogEvent) and needle.decode() in (item.notes or "").split():
                        found.add(item.cluster)
                        yield item.cluster
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunFolderError(f"{path}: the event log cannot be read: {error.strerror}") from error


def find_measured(path: Path, jobs: Container[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """The most memory, in bytes, that HTCondor measured of these jobs, (cluster, proc), that ended; others are left
    out."""
    found: dict[tuple[int, int], int] = {}
    ended = b"%03d (" % EventCode.TERMINATED
    with suppress(FileNotFoundError), path.open("rb") as file:
        for start, end, record in _records(file, 0):
            header = _HEADER.match(record) if record and record.startswith(ended) else None
            if header is None or (int(header[2]), int(header[3])) not in jobs:
                continue
            items: list[LogEvent | LogProblem] = []
            _add(items, start, end, record, _ANY_TIME)
            for item in items:
                if isinstance(item, LogEvent) and (memory := item.measured.get("Memory (MB)")) is not None:
                    found[item.cluster, item.proc] = memory * 2**20
    return found


def _cluster_of(record: bytes) -> int | None:
    """The cluster of a record that is one whole event, as all but damaged ones are."""
    header = _HEADER.match(record)
    return int(header[2]) if header and record.find(_HEADER_MARK, header.end()) < 0 else None


def _records(file: BinaryIO, offset: int, unfinished: bool = False) -> Iterator[tuple[int, int, bytes | None]]:
    """Start, end and bytes of each record from `offset` on, without its terminator; None for bytes without one.

    No event is as long as `_LARGEST_EVENT`; what goes on longer is damaged and not kept in memory.
    """
    file.seek(offset)
    rest = b""
    while chunk := file.read(_CHUNK):
        *records, rest = (rest + chunk).split(_END)
        for record in records:
            end = offset + len(record) + len(_END)
            yield offset, end, record
            offset = end
        if len(rest) > _LARGEST_EVENT:
            end = offset + len(rest) - len(_END) + 1  # a terminator may have begun
            yield offset, end, None
            rest, offset = rest[end - offset :], end
    if unfinished and rest:
        yield offset, offset + len(rest), rest


def _add(
    items: list[LogEvent | LogProblem],
    start: int,
    end: int,
    record: bytes | None,
    now: datetime,
    wanted: Container[bytes] | None = None,
) -> None:
    """Add the event of a record, or what is wrong with it, and before it what was torn there."""
    if record is None:
        _add_problem(items, start, end, "no event ends within 1 MiB")
        return
    header = _last_header(record)
    if header is None:
        _add_problem(items, start, end, "no event begins here")
        return
    begin = start + header.start()
    if begin > start:
        _add_problem(items, start, begin, "an event without its end, or bytes that are no event")
    if wanted is not None and header[1] not in wanted:
        return
    event = _parse(header, now)
    if isinstance(event, LogEvent):
        items.append(event)
    else:
        _add_problem(items, begin, end, event)


def _last_header(record: bytes) -> re.Match[bytes] | None:
    """Where the event of a record begins: at its start, unless a machine or a disk gave up within another event.

    Then the next event was appended to what there was, perhaps in the middle of a line or after NULs.
    """
    header = _HEADER.match(record)
    if header and record.find(_HEADER_MARK, header.end()) < 0:
        return header
    headers = list(_HEADER.finditer(record))
    return headers[-1] if headers else None


def _parse(header: re.Match[bytes], now: datetime) -> LogEvent | str:
    """The event that begins with this header, or in words why it is none."""
    body = header.string[header.end() :]
    if b"\0" in body:
        return "NUL bytes in an event"
    code, cluster, proc, stamp = header.groups()
    try:
        time = _parse_stamp(stamp.decode(), now)
    except ValueError:
        return f"no such time: {stamp.decode()}"
    text, *lines = body.decode("utf-8", "replace").split("\n")
    return LogEvent(int(code), int(cluster), int(proc), time, text, tuple(lines))


def _add_problem(items: list[LogEvent | LogProblem], start: int, end: int, what: str) -> None:
    last = items[-1] if items else None
    if isinstance(last, LogProblem) and last.end == start and last.what == what:
        items[-1] = LogProblem(last.start, end, what)
    else:
        items.append(LogProblem(start, end, what))


@lru_cache(maxsize=4096)
def _parse_stamp(stamp: str, now: datetime) -> datetime:
    """The moment of a stamp, in UTC; ValueError when there is no such date."""
    if "/" not in stamp:
        return datetime.fromisoformat(stamp).astimezone(UTC)
    latest = now + timedelta(days=1)
    for year in range(latest.year, latest.year - 9, -1):  # 02/29 may be eight years ago
        try:
            time = datetime.strptime(f"{year}/{stamp}", "%Y/%m/%d %H:%M:%S").astimezone(UTC)
        except ValueError:
            continue
        if time <= latest:
            return time
    raise ValueError(stamp)
