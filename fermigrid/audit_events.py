"""The events in outputs against those that they were selected from, by their numbers: lost, doubled, foreign.

A kind of file has a module that reads it (`READERS`): `read_columns(path, table, names)` gives whole numbers, one for
each event. These modules, and numpy, are imported only where a campaign asks for this.
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fermigrid.audit import TOLD, Expected, Finding, Found, Kind, Result, RunSeen
from fermigrid.audit_files import copy_here
from fermigrid.campaign import Campaign, EventAudit
from fermigrid.errors import FermigridError
from fermigrid.event_source import READERS, number_of, output_of, reader_of, source_of
from fermigrid.remote_files import Absent, Unreachable
from fermigrid.runs import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[Any]


@dataclass(frozen=True)
class _Events:
    """The events of some files: numbers, and the run of each (None: all are of the run that the files belong to)."""

    ids: Numbers
    runs: Numbers | None

    def of(self, run: Run) -> Numbers:
        return self.ids if self.runs is None else self.ids[self.runs == number_of(run.name)]


class EventsAudit:
    """The comparison, run by run. `unlooked` hears why something could not be compared. Use as a context."""

    def __init__(self, campaign: Campaign, unlooked: Any) -> None:
        try:
            self._np = importlib.import_module("numpy")
            for module in set(READERS.values()):
                importlib.import_module(module)
        except ImportError as error:
            text = f"the campaign's audit reads events, and {(error.name or '').partition('.')[0]} is not installed"
            raise FermigridError(
                text, "pip install 'fermigrid[fits]', or leave the events out with --quick."
            ) from error
        self._campaign, self._unlooked = campaign, unlooked
        self._last: tuple[tuple[object, ...], _Events] | None = None  # an input of many runs is read once
        self._stores = {
            name: _Store(self._np) for name, each in campaign.audit.events.items() if each.unique == "campaign"
        }

    def __enter__(self) -> EventsAudit:
        return self

    def __exit__(self, *_: object) -> None:
        for store in self._stores.values():
            store.close()

    def run(self, seen: RunSeen) -> Iterator[Finding]:
        """What is off with the events of one run."""
        for name, asked in self._campaign.audit.events.items():
            yield from self._step(name, asked, seen)

    def _step(self, name: str, asked: EventAudit, seen: RunSeen) -> Iterator[Finding]:
        run = seen.run.name
        output = output_of(self._campaign.steps[name], asked)
        assert output is not None, "check.py refuses it"
        jobs, parts = list[str](), list[_Events]()
        for expected, result, place in _files(name, output, seen):
            try:
                events = self._read(place, asked)
            except (ValueError, OSError) as error:
                yield Finding(Kind.EVENTS, run, expected.job, f"{output}: {error}")
                continue
            except (Absent, Unreachable) as error:
                self._unlooked(f"events of {name}: {error}", 1)
                continue
            if result.kept is not None and result.kept != len(events.ids):
                text = f"{output} has {len(events.ids)} events; the job says that it kept {result.kept}"
                yield Finding(Kind.EVENTS, run, expected.job, text)
            jobs.append(expected.job)
            parts.append(events)
        if parts:
            yield from self._compare(name, asked, seen, jobs, parts)

    def _compare(
        self, name: str, asked: EventAudit, seen: RunSeen, jobs: Sequence[str], parts: Sequence[_Events]
    ) -> Iterator[Finding]:
        np, run = self._np, seen.run
        for job, part in zip(jobs, parts, strict=True):
            if part.runs is not None and len(others := part.ids[part.runs != number_of(run.name)]):
                other = int(part.runs[part.runs != number_of(run.name)][0])
                text = f"{len(others)} events of other runs ({asked.run} {other}: {asked.column} {_some(others)})"
                yield Finding(Kind.FOREIGN, run.name, job, text)
        have = np.concatenate([part.of(run) for part in parts])
        kinds, times = np.unique(have, return_counts=True)
        if len(doubled := kinds[times > 1]):
            where = [job for job, part in zip(jobs, parts, strict=True) if np.isin(doubled, part.of(run)).any()]
            text = (
                f"{len(doubled)} events are there more than once ({asked.column} {_some(doubled)}, in {_some(where)})"
            )
            yield Finding(Kind.DOUBLED, run.name, name, text)
        if store := self._stores.get(name):
            store.add(run.name, kinds)
        try:
            wanted = self._source(name, asked, seen)
        except (Absent, Unreachable, OSError) as error:
            self._unlooked(f"events of {asked.source}: {getattr(error, 'strerror', None) or error}", 1)
            return
        except ValueError as error:
            yield Finding(Kind.INPUTS, run.name, name, f"{asked.source}: {error}")
            return
        if wanted is None:
            return
        if len(foreign := np.setdiff1d(kinds, wanted)):
            text = f"{len(foreign)} events that are not in {asked.source} ({asked.column} {_some(foreign)})"
            yield Finding(Kind.FOREIGN, run.name, name, text)
        lost = np.setdiff1d(wanted, kinds)
        if len(lost) and not asked.may_drop:
            text = f"{len(lost)} events of {asked.source} are lost ({asked.column} {_some(lost)})"
            yield Finding(Kind.MISSING, run.name, name, text)

    def _source(self, name: str, asked: EventAudit, seen: RunSeen) -> Numbers | None:
        """The events that those of a run were selected from. None: nothing of the run tells where they are."""
        found = source_of(self._campaign, name, asked)
        assert found is not None, "check.py refuses it"
        before, local = found
        if before:
            places = [(place, "") for _, _, place in _files(before, local, seen)]
        else:
            results = [seen.results[one.job][0] for one in seen.expected[name] if seen.results.get(one.job)]
            read = {(each.source, each.sha256): None for r in results for each in r.inputs if each.name == local}
            places = list(read)
        if not places:
            return None
        parts = [self._read(place, asked, digest).of(seen.run) for place, digest in places]
        return self._np.concatenate(parts)  # type: ignore[no-any-return]

    def _read(self, place: str, asked: EventAudit, digest: str = "") -> _Events:
        """The events of a file. With `digest` it must have that sha256, and is remembered: the next may be the same."""
        key = (place, digest, asked.table, asked.column, asked.run)
        if digest and self._last and self._last[0] == key:
            return self._last[1]
        local = place.removeprefix("file://localhost").removeprefix("file://")
        module = reader_of(place)
        if module is None:
            raise ValueError(f"no reader knows files such as {place}: {', '.join(READERS)}")
        with copy_here(local) as path:
            if digest and _sha256(path) != digest:
                raise ValueError(f"{place} is not any more what the jobs read: its sha256 is another")
            names = [asked.column, *([asked.run] if asked.run else [])]
            columns = importlib.import_module(module).read_columns(path, asked.table, names)
        events = _Events(columns[0], columns[1] if asked.run else None)
        if digest:
            self._last = key, events
        return events

    def across(self) -> Iterator[Finding]:
        """The events that several runs have, where the campaign says that there are none."""
        for name, store in self._stores.items():
            column = self._campaign.audit.events[name].column
            for run, other, numbers in store.doubled():
                text = f"{len(numbers)} of its events are in {other} as well ({column} {_some(numbers)})"
                yield Finding(Kind.DOUBLED, run, name, text)


def _files(step: str, output: str, seen: RunSeen) -> Iterator[tuple[Expected, Result, str]]:
    """The accepted files of an output of a step that are there: (job, result, place)."""
    for expected in seen.expected[step]:
        for result in seen.results.get(expected.job, ())[:1]:
            for each in result.outputs:
                look = seen.looks.get(each.to)
                if each.name == output and look and look.found is Found.FILE:
                    yield expected, result, look.place


def _some(values: Any) -> str:
    shown = ", ".join(str(value) for value in values[:TOLD])
    return shown + (f" and {len(values) - TOLD} more" if len(values) > TOLD else "")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Store:
    """The numbers of a campaign's events on disk, 8 bytes each: they would not fit into memory."""

    def __init__(self, np: Any) -> None:
        self._np = np
        self._file = tempfile.TemporaryFile(prefix="fermigrid-audit-")  # noqa: SIM115 - closed by `close`
        self._runs: list[tuple[str, int]] = []

    def add(self, run: str, numbers: Numbers) -> None:
        self._runs.append((run, len(numbers)))
        self._file.write(numbers.astype(self._np.int64).tobytes())

    def doubled(self) -> Iterator[tuple[str, str, Numbers]]:
        """(run, an earlier run, the numbers that both have)."""
        np, count = self._np, sum(number for _, number in self._runs)
        if count == 0:
            return
        self._file.flush()
        kept = np.memmap(self._file, dtype=np.int64, mode="r", shape=(count,))
        with tempfile.TemporaryFile(prefix="fermigrid-audit-") as other:
            other.truncate(8 * count)
            ordered = np.memmap(other, dtype=np.int64, mode="r+", shape=(count,))
            ordered[:] = kept
            ordered.sort()
            twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
            del ordered
        first = np.full(len(twice), -1)
        begin = 0
        for index, (run, number) in enumerate(self._runs):
            mine = np.flatnonzero(np.isin(twice, kept[begin : begin + number]))
            for earlier in np.unique(first[mine]):
                if earlier >= 0:
                    yield run, self._runs[earlier][0], twice[mine[first[mine] == earlier]]
            first[mine[first[mine] < 0]] = index
            begin += number

    def close(self) -> None:
        self._file.close()
