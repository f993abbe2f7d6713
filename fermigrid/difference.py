"""Two plans -> what differs, in the words of the domain. Pure.

The jobs are two streams in the order of the plans, a million of them if need be: jobs that are equal go by, and only
those that wait for their counterpart are remembered, as digests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import zip_longest
from typing import NamedTuple
from zlib import crc32

from fermigrid.plan_words import Fields, line_in_words, settings_in_words

SAID = frozenset({"campaign", "step", "site", "block", "generation", "code.sha256"})
SAID_LINES = re.compile(
    r"batch_name|request_cpus|(?:Max)?NumberOfProcessors|\+Fermigrid(?:Campaign|Step|Site|Block|Generation|ImageDigest)"
)
SHOWN = 10  # jobs and members of the bundle that are named; more are counted
AHEAD = 200_000  # jobs that wait for their counterpart, some 40 MB


class Job(NamedTuple):
    """A job of a plan: its name, and its row as text."""

    name: str
    row: str


Stream = Callable[[], Iterable[Job]]  # begins anew each time


@dataclass(frozen=True)
class PlanText:
    """What a plan folder says. `lines`: those of the submit file or JDL that act; `code`: what each file of the bundle
    is, by name; `others`: the sha256 of its other files, such as sealed secrets."""

    header: Mapping[str, object]
    settings: Fields
    lines: Sequence[str]
    code: Mapping[str, str]
    others: Mapping[str, str]
    worker: str
    backend: str


@dataclass(frozen=True)
class Change:
    """One thing that differs: where (`header`, `settings`, ...), which, how it was and is; None: it is not there."""

    part: str
    what: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.what}: now {self.after}" if self.after else f"{self.what}: new"
        if self.after is None:
            return f"{self.what}: gone, was {self.before}" if self.before else f"{self.what}: gone"
        return f"{self.what}: {self.before} -> {self.after}"


@dataclass
class Jobs:
    """The jobs that differ: how many, and the names of the first of each kind."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    names: dict[str, list[str]] = field(default_factory=lambda: {"added": [], "removed": [], "changed": []})
    fields: list[Change] = field(default_factory=list)  # of the first that changed

    def count(self, kind: str, name: str) -> None:
        """One more."""
        setattr(self, kind, getattr(self, kind) + 1)
        if len(self.names[kind]) < SHOWN:
            self.names[kind].append(name)

    @property
    def same(self) -> bool:
        """Are all jobs the same?"""
        return not (self.added or self.removed or self.changed)


def compare_plans(before: PlanText, after: PlanText) -> list[Change]:
    """What differs but for the jobs, in the order in which a person looks.

    Under `settings` in the words of campaigns and sites; under `submit file` the lines that have no such words.
    """
    found = list(_of_mappings("header", before.header, after.header))
    if before.backend != after.backend:
        found.append(Change("settings", "backend", before.backend, after.backend))
        found += _of_fields("settings", *(list(_unsaid(plan.settings)) for plan in (before, after)))
    else:
        found += _of_fields("settings", *map(_settings, (before, after)))
    found += _of_lines("submit file", before.lines, after.lines)
    found += _of_mappings("code", before.code, after.code)
    found += _of_mappings("files", before.others, after.others)
    if before.worker != after.worker:
        found.append(Change("worker", "worker.sh", before.worker, after.worker))
    return found


def _settings(plan: PlanText) -> Fields:
    """job.env and the submit file in words; what both say, once."""
    fields = list(_unsaid(plan.settings))
    lines = (pair for line in plan.lines for pair in line_in_words(*_split(line)))
    return [*fields, *(pair for pair in lines if pair not in fields)]


def _unsaid(settings: Fields) -> Iterator[tuple[str, str]]:
    """In words, without what the header and the code tell."""
    told = (("batch_system", "dirac"),)
    yield from settings_in_words([pair for pair in settings if pair[0] not in SAID and pair not in told])


def _of_mappings(part: str, before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[Change]:
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name) or (name in before) != (name in after):
            yield Change(part, name, _text(before, name), _text(after, name))


def _text(mapping: Mapping[str, object], name: str) -> str | None:
    return str(mapping[name]) if name in mapping else None


def _of_fields(part: str, before: Fields, after: Fields) -> Iterator[Change]:
    """By key. A key that repeats is a list."""
    old, new = _by_key(before), _by_key(after)
    for key in dict.fromkeys((*old, *new)):
        gone = [value for value in old.get(key, ()) if value not in new.get(key, ())]
        come = [value for value in new.get(key, ()) if value not in old.get(key, ())]
        if not (gone or come) and old.get(key) != new.get(key):
            yield Change(part, key, ", ".join(old[key]), ", ".join(new[key]))  # another order, or another number
        for was, now in zip_longest(gone, come):
            yield Change(part, key, was, now)


def _by_key(fields: Fields) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in fields:
        found.setdefault(key, []).append(value)
    return found


def _of_lines(part: str, before: Sequence[str], after: Sequence[str]) -> Iterator[Change]:
    """Of a submit file: `name = value`, but for what the settings tell; other lines are compared as they are."""
    old, new = dict(map(_split, before)), dict(map(_split, after))
    for change in _of_mappings(part, old, new):
        was, now = (
            [] if value is None else line_in_words(change.what, value) for value in (change.before, change.after)
        )
        is_told = was != now and bool(before and after)
        if not is_told and not SAID_LINES.fullmatch(change.what):
            yield change


def _split(line: str) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    return (name.strip(), value.strip()) if equals else (line.strip(), "")


def compare_jobs(before: Stream, after: Stream, jobs: int, ahead: int = AHEAD) -> Jobs:
    """The jobs that were added, removed or changed; `jobs`: how many there are, of both plans together.

    Jobs in the same order are compared as they come; one without its counterpart waits for it, as a name and a digest
    of its row, 200 bytes or so. When more than `ahead` wait, the plans are read once more for each part of the names.
    """
    found = Jobs()
    if not _compare(found, before(), after(), ahead):
        found, parts = Jobs(), jobs // ahead + 2
        for part in range(parts):
            _compare(found, _part(before(), part, parts), _part(after(), part, parts), jobs)
    return found


def _part(jobs: Iterable[Job], part: int, parts: int) -> Iterator[Job]:
    return (job for job in jobs if crc32(job.name.encode()) % parts == part)


def _compare(found: Jobs, before: Iterable[Job], after: Iterable[Job], ahead: int) -> bool:
    """False, and nothing is to be believed, when too many wait."""
    old: dict[str, bytes] = {}
    new: dict[str, bytes] = {}
    kept: dict[str, str] = {}  # rows of the first ones that wait, to tell what changed in them
    for was, now in zip_longest(before, after):
        if was == now:
            continue
        if was is not None:
            _meet(found, was, old, new, kept, is_old=True)
        if now is not None:
            _meet(found, now, new, old, kept, is_old=False)
        if len(old) + len(new) > ahead:
            return False
    for name in old:
        found.count("removed", name)
    for name in new:
        found.count("added", name)
    return True


def _meet(
    found: Jobs, job: Job, waiting: dict[str, bytes], others: dict[str, bytes], kept: dict[str, str], *, is_old: bool
) -> None:
    """Compare a job with its counterpart if that has come; let it wait otherwise."""
    digest = blake2b(job.row.encode(), digest_size=16).digest()
    other = others.pop(job.name, None)
    if other is None:
        waiting[job.name] = digest
        if len(kept) < SHOWN:
            kept[job.name] = job.row
    elif other != digest:
        found.count("changed", job.name)
        if not found.fields and job.name in kept:
            rows = (job.row, kept[job.name]) if is_old else (kept[job.name], job.row)
            found.fields = list(_of_fields(f"job {job.name}", *(list(settings_in_words(_fields(row))) for row in rows)))
    if other is not None:
        kept.pop(job.name, None)


def _fields(row: str) -> Fields:
    return [(key, value) for key, _, value in (text.partition("=") for text in row.split("\t"))]
