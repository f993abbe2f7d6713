"""The run table against what is there: jobs, files, numbers of events, inputs. Pure.

`audit_run` is given what there should be of one run (`Expected`, by the run table and `split.py`), what was accepted
of it (`Result`, by the ledger) and what lies under the final names (`Look`); it tells what does not fit.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from fermigrid.campaign import Campaign, Gather, Step
from fermigrid.gather import file_in_folder
from fermigrid.records import AttemptRecord
from fermigrid.report import Output, outputs_in
from fermigrid.runs import Run
from fermigrid.split import Piece, group_of

TOLD = 3  # of many of a kind so many are named, the others are counted
_OF_PIECES = frozenset({"piece", "first_event", "event_count", "chunk", "crumb", "job"})


class Kind(StrEnum):
    """What is off."""

    MISSING = "missing"  # a run, job, output or event that should be there
    DOUBLED = "doubled"  # what may be there once only
    ALTERED = "altered"  # a file is not what the job wrote
    OLDER = "older"  # of a generation that was done anew
    FOREIGN = "foreign"  # what nobody asked for
    INPUTS = "inputs"  # made from another version of an input
    EVENTS = "events"  # numbers that do not add up


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is off: of which run ("": of none), which job, file or step, and how, in words."""

    kind: Kind
    run: str
    subject: str
    words: str


@dataclass(frozen=True, slots=True)
class Made:
    """A batch, as far as its results depend on it. `parameters`: what replaced those of the campaign in it."""

    id: str
    generation: int
    site: str
    parameters: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Expected:
    """A job that there must be, the newest batch that does it (None: it was never sent), (local, final name) of its
    outputs."""

    job: str
    piece: Piece
    batch: Made | None
    outputs: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Input:
    """What a job read: a file, or (`files` is a number) a folder of gathered files, with the digest of their list."""

    name: str
    source: str
    sha256: str
    files: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """An attempt that was good, as its report tells. `read`, `kept`: numbers of events, None: not told."""

    job: str
    attempt: str
    batch: str
    published: bool
    outputs: tuple[Output, ...]
    inputs: tuple[Input, ...]
    read: int | None
    kept: int | None
    begin: int
    end: int


class Found(StrEnum):
    """What lies under the final name of an output."""

    FILE = "file"
    NOTHING = "nothing"
    OTHER = "other"  # no plain file, or one that cannot be read
    UNKNOWN = "unknown"  # it cannot be looked at from here


@dataclass(frozen=True, slots=True)
class Look:
    """A look at an output in its `place` (path or URL): `sha256` is "" when only its size was looked at; `why` goes
    with OTHER and UNKNOWN."""

    place: str
    found: Found
    bytes: int | None = None
    sha256: str = ""
    why: str = ""


@dataclass(frozen=True)
class RunSeen:
    """All that was found of a run. `expected` by step; `results`, the accepted ones, by job; `looks` by final name."""

    run: Run
    expected: Mapping[str, Sequence[Expected]]
    results: Mapping[str, Sequence[Result]]
    looks: Mapping[str, Look]


@dataclass(frozen=True)
class Knowledge:
    """What the audit can ask when something is off: why a job has no result; its attempts that are not accepted."""

    why_missing: Callable[[str], str]
    superseded: Callable[[str], Sequence[Result]]


@dataclass
class SharedInputs:
    """The inputs that all runs read, as the first job that did says: (step, name, parameters) -> digest, job."""

    known: dict[tuple[str, str, tuple[tuple[str, str], ...]], tuple[str, str]] = field(default_factory=dict)


def result_of(record: AttemptRecord) -> Result:
    """A report, taken apart. Raises ValueError, KeyError, TypeError for one that the ledger should not have."""
    data = json.loads(record.report)
    summary = data["summary"]
    return Result(
        record.job,
        record.attempt,
        record.batch,
        record.published,
        outputs_in(data),
        tuple(_input(each) for each in data.get("inputs", ())),
        _number(summary.get("events_read")),
        _number(summary.get("events_kept")),
        int(data["begin"]),
        int(data["end"]),
    )


def _input(data: Mapping[str, Any]) -> Input:
    files = data.get("files") if data["source"] == "gathered" else None
    return Input(str(data["name"]), str(data["source"]), str(data["sha256"]), None if files is None else int(files))


def _number(text: object) -> int | None:
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 19 else None


def audit_run(
    campaign: Campaign, seen: RunSeen, knowledge: Knowledge, shared: SharedInputs, reads: Mapping[str, Reads]
) -> Iterator[Finding]:
    """Everything that is off with one run. `reads`: of each step, on what its inputs depend (`reads_of`)."""
    steps = campaign.steps
    if all(one.batch is None for jobs in seen.expected.values() for one in jobs) and not seen.results:
        if any(seen.expected.values()):
            yield Finding(Kind.MISSING, seen.run.name, "run", "nothing of it was submitted")
        return
    for name, step in steps.items():
        yield from _jobs(name, seen, knowledge)
        yield from _outputs(name, seen, knowledge)
        yield from _copies(name, seen)
        yield from _counts(campaign, name, step, seen)
        yield from _gathered(campaign, name, step, seen)
        yield from _inputs(name, seen, shared, reads[name])
    yield from _unasked(seen)


def _made(name: str, seen: RunSeen) -> Iterator[tuple[Expected, Result]]:
    """The expected jobs of a step that have an accepted result, with the first of these."""
    for expected in seen.expected[name]:
        if results := seen.results.get(expected.job):
            yield expected, results[0]


def _jobs(name: str, seen: RunSeen, knowledge: Knowledge) -> Iterator[Finding]:
    """Each job has one accepted result, of the newest generation."""
    run, jobs = seen.run.name, seen.expected[name]
    missing = [one for one in jobs if not seen.results.get(one.job)]
    if len(missing) == len(jobs) > 1:
        why = _why(missing[0], knowledge)
        yield Finding(Kind.MISSING, run, name, f"none of its {len(jobs)} jobs has an accepted result ({why})")
    else:
        for one in missing[:TOLD]:
            yield Finding(Kind.MISSING, run, one.job, f"has no accepted result: {_why(one, knowledge)}")
        if (more := len(missing) - TOLD) > 0:
            yield Finding(Kind.MISSING, run, name, f"{more} more of its {len(jobs)} jobs have no accepted result")
    for one in jobs:
        results = seen.results.get(one.job, ())
        if len(results) > 1:
            which = ", ".join(result.attempt for result in results)
            yield Finding(Kind.DOUBLED, run, one.job, f"{len(results)} of its attempts are accepted: {which}")
        if results and (one.batch is None or one.batch.id not in {result.batch for result in results}):
            newest = f"generation {one.batch.generation}" if one.batch else "another one"
            text = f"its accepted attempt {results[0].attempt} is not of the newest batch that does it ({newest})"
            yield Finding(Kind.OLDER, run, one.job, text)


def _why(one: Expected, knowledge: Knowledge) -> str:
    return knowledge.why_missing(one.job) if one.batch else "it was not submitted"


def _unasked(seen: RunSeen) -> Iterator[Finding]:
    """Results of jobs that the run table does not give: pieces too many."""
    known = {one.job for jobs in seen.expected.values() for one in jobs}
    for job in sorted(set(seen.results) - known):
        yield Finding(Kind.FOREIGN, seen.run.name, job, "has an accepted result, and the run table gives no such job")


def _outputs(name: str, seen: RunSeen, knowledge: Knowledge) -> Iterator[Finding]:
    """What lies under the final names is what the accepted attempts wrote."""
    for expected, result in _made(name, seen):
        said = tuple((output.name, output.to) for output in result.outputs)
        if said != expected.outputs:
            want = ", ".join(to for _, to in expected.outputs) or "none"
            have = ", ".join(to for _, to in said) or "none"
            text = f"its report tells of the outputs {have}; by the campaign it has {want}"
            yield Finding(Kind.ALTERED, seen.run.name, expected.job, text)
            continue
        for output in result.outputs:
            if found := _compare(seen, result, output, knowledge):
                kind, words = found
                yield Finding(kind, seen.run.name, expected.job, f"{output.to} {words}")


def _compare(seen: RunSeen, result: Result, output: Output, knowledge: Knowledge) -> tuple[Kind, str] | None:
    look = seen.looks[output.to]
    if look.found is Found.UNKNOWN:
        return None
    if look.found is Found.NOTHING:
        waits = "" if result.published else ": it came back, and has not got its name (`fermigrid watch` gives it)"
        return Kind.MISSING, f"is not there{waits}"
    if look.found is Found.OTHER:
        return Kind.ALTERED, f"is no file to be read: {look.why}"
    if look.bytes == output.bytes and look.sha256 in ("", output.sha256):
        return None
    for other in knowledge.superseded(result.job):
        if look.sha256 and any(look.sha256 == one.sha256 and output.name == one.name for one in other.outputs):
            return Kind.OLDER, f"is the output of the attempt {other.attempt}, which does not count any more"
    if look.bytes != output.bytes:
        how = "is cut short" if (look.bytes or 0) < output.bytes else "has grown"
        return Kind.ALTERED, f"{how}: {look.bytes} bytes, the job wrote {output.bytes}"
    return Kind.ALTERED, f"was changed: its sha256 is {look.sha256[:12]}..., the job wrote {output.sha256[:12]}..."


def _copies(name: str, seen: RunSeen) -> Iterator[Finding]:
    """Two pieces of a run that kept events cannot have written the same file: one was done twice, the other not."""
    first: dict[tuple[str, str], str] = {}
    for expected, result in _made(name, seen):
        for output in result.outputs if result.kept else ():
            other = first.setdefault((output.name, output.sha256), expected.job)
            if other != expected.job:
                text = f"{output.to} has the very content of the output of {other}"
                yield Finding(Kind.DOUBLED, seen.run.name, expected.job, text)


# --- numbers of events


def _counts(campaign: Campaign, name: str, step: Step, seen: RunSeen) -> Iterator[Finding]:
    """The events that were read are those of the pieces, or those that the steps before have kept."""
    made = list(_made(name, seen))
    silent = [expected.job for expected, result in made if result.read is None]
    if silent and len(silent) < len(made):
        text = f"{len(silent)} of {len(made)} jobs do not tell how many events they read, such as {silent[0]}"
        yield Finding(Kind.EVENTS, seen.run.name, name, text)
    for expected, result in made:
        if result.kept is not None and result.read is not None and result.kept > result.read:
            text = f"kept {result.kept} events of the {result.read} that it read"
            yield Finding(Kind.EVENTS, seen.run.name, expected.job, text)
        right = _should_read(campaign, step, expected.piece, seen)
        if result.read is not None and right and result.read not in right:
            known = " or ".join(f"{number} ({whose})" for number, whose in right.items())
            text = f"read {result.read} events; there are {known}"
            yield Finding(Kind.EVENTS, seen.run.name, expected.job, text)


def _should_read(campaign: Campaign, step: Step, piece: Piece, seen: RunSeen) -> dict[int, str]:
    """How many events a job may have read, and what says so; nothing: nobody knows."""
    right: dict[int, str] = {}
    if seen.run.events is not None and not step.gather:
        right[piece.count] = "of the run table"
    for before in {gather.step for gather in step.gather.values()} if step.gather else step.after:
        given = list(_group(campaign, step, before, piece, seen))
        kept = [result.kept for _, result in given if result.kept is not None]
        if len(kept) < len(given):
            return {}
        if sum(one.piece.count for one, _ in given) <= piece.count:
            right.setdefault(sum(kept), f"kept by {before}")
        elif sum(kept) == sum(one.piece.count for one, _ in given):  # given more than its own piece, with all events
            right.setdefault(piece.count, "of the run table")
        else:
            return {}
    return right


def _group(
    campaign: Campaign, step: Step, before: str, piece: Piece, seen: RunSeen
) -> Iterator[tuple[Expected, Result]]:
    """The results of a step before that belong to a piece, in the order of events."""
    source = campaign.steps[before]
    mine = group_of(step, source, piece)
    return ((one, result) for one, result in _made(before, seen) if group_of(step, source, one.piece) == mine)


# --- lineage


@dataclass(frozen=True)
class Reads:
    """Which inputs of a step are the same for all jobs of a run, and which for all of the campaign."""

    of_run: frozenset[str]
    of_campaign: frozenset[str]


def reads_of(variables: Mapping[str, frozenset[str]]) -> Reads:
    """From the placeholders in the places of each input that differ from job to job."""
    of_run = frozenset(name for name, used in variables.items() if not used & _OF_PIECES)
    return Reads(of_run, frozenset(name for name in of_run if not variables[name]))


def _gathered(campaign: Campaign, name: str, step: Step, seen: RunSeen) -> Iterator[Finding]:
    """What a job was given is what is accepted now of the steps before it."""
    for expected, result in _made(name, seen):
        told = {each.name: each for each in result.inputs if each.files is not None}
        for folder, gather in step.gather.items():
            goods = list(_group(campaign, step, gather.step, expected.piece, seen))
            want = _list_digest(folder, gather, goods, seen.run.name)
            have = told.get(folder)
            if have is None:
                words = f"does not tell what it was given in {folder}"
            elif have.sha256 == want:
                continue
            else:
                words = f"{folder} is not what is accepted of {gather.step} now: {_newer(goods, have, result)}"
            yield Finding(Kind.INPUTS, seen.run.name, expected.job, words)


def _list_digest(folder: str, gather: Gather, goods: Sequence[tuple[Expected, Result]], run: str) -> str:
    """The sha256 of the list of gathered files, as the worker makes it (`sha256sum` of each, in order)."""
    listed = hashlib.sha256()
    for expected, result in goods:
        name = file_in_folder(gather, expected.piece, run)
        for output in result.outputs:
            if output.name == gather.output:
                listed.update(f"{output.sha256}  {folder}/{name}\n".encode())
    return listed.hexdigest()


def _newer(goods: Sequence[tuple[Expected, Result]], have: Input, result: Result) -> str:
    late = [one.job for one, other in goods if other.end > result.begin]
    if late:
        shown = ", ".join(late[:TOLD]) + (f" and {len(late) - TOLD} more" if len(late) > TOLD else "")
        return f"it began before these were done: {shown}"
    return f"it was given {have.files} files, {len(goods)} are accepted" if have.files != len(goods) else "other files"


def _inputs(name: str, seen: RunSeen, shared: SharedInputs, reads: Reads) -> Iterator[Finding]:
    """Files that several jobs read are the same for all; accepted outputs that were read are those of now."""
    own = _places(seen)
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], dict[str, list[str]]] = defaultdict(dict)
    for expected, result in _made(name, seen):
        for each in result.inputs:
            if each.files is not None:
                continue
            known = own.get(each.source)
            if known and each.sha256 != known.sha256:
                text = f"read {each.name} ({each.source}) with the sha256 {each.sha256[:12]}..., accepted is "
                yield Finding(Kind.INPUTS, seen.run.name, expected.job, f"{text}{known.sha256[:12]}...")
            elif each.name in reads.of_run:
                parameters = expected.batch.parameters if expected.batch else ()
                groups[each.name, parameters].setdefault(each.sha256, []).append(expected.job)
    for (local, parameters), jobs in groups.items():
        if local in reads.of_campaign:
            known_as = shared.known.setdefault((name, local, parameters), next((d, j[0]) for d, j in jobs.items()))
            right, whose = known_as
        else:
            right = max(jobs, key=lambda digest: len(jobs[digest]))
            whose = jobs[right][0]
        for digest, others in jobs.items():
            if digest != right:
                text = f"read {local} with the sha256 {digest[:12]}..., {whose} with {right[:12]}..."
                more = f" (and {len(others) - 1} more jobs)" if len(others) > 1 else ""
                yield Finding(Kind.INPUTS, seen.run.name, others[0], text + more)


def _places(seen: RunSeen) -> dict[str, Output]:
    """Where the run's accepted outputs are -> the output."""
    outputs = (output for results in seen.results.values() for output in results[0].outputs)
    return {seen.looks[output.to].place: output for output in outputs if output.to in seen.looks}
