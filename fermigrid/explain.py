"""Why a job is where it is, in words: from the ledger, its report, and the batch system."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fermigrid import backends
from fermigrid.backends import PAUSED
from fermigrid.config import Place
from fermigrid.errors import BackendUnavailable
from fermigrid.find_job import Found
from fermigrid.plan import rules_of
from fermigrid.records import Again, BatchRecord, JobRecord
from fermigrid.retry_book import RetryBook
from fermigrid.retry_rule import fate_of_hold, read_hold
from fermigrid.retrying import coming_back
from fermigrid.standing import from_when
from fermigrid.states import State
from fermigrid.submit import handle_of
from fermigrid.throttle import why_kept, why_waits
from fermigrid.watch import Following

_TOLD_HELD = re.compile(rf"held\b|{PAUSED}")  # how a backend's sentence on a held job begins
_KEY = re.compile(r"\(((?:htcondor|dirac|resources)(?:\.[a-z_]+)+)\)")  # as a backend's sentences name it


def explain_job(f: Following, found: Found, earlier: Sequence[Found] = ()) -> Iterator[str]:
    """Sentences, the most telling first; keys of the site and the campaign with file and line. `earlier`: its lives in
    generations before."""
    for sentence in (*_explain(f, found), *_lives(f, earlier)):
        yield _KEY.sub(lambda key: f"({key[1]}, {_place(f, found.batch, key[1])})", sentence)


def comes_back(f: Following, found: Found) -> Again | None:
    """How and when a rule begins the job again, if one does."""
    key = (found.batch.id, found.index)
    return next((one for one in coming_back(f) if (one.job.batch, one.job.index) == key), None)


def _place(f: Following, batch: BatchRecord, key: str) -> Place:
    """Where a key stands that decides about a batch: in the person's own file, if that is still what was submitted."""
    part, *rest = key.split(".")
    if part == "resources":
        return f.assembled.source.place(("steps", batch.step, part, *rest))
    place = f.assembled.site_sources[batch.site].place((part, *rest))
    kept = Path(place.file)
    if kept.parent.parent == f.folder.sites:
        origin = Path(f.ledger.campaign().search[int(kept.parent.name)], kept.name)
        with suppress(OSError):
            if origin.read_bytes() == kept.read_bytes():
                return Place(str(origin), place.line)
    return place


def _lives(f: Following, earlier: Sequence[Found]) -> Iterator[str]:
    for each in reversed(earlier):
        why = f" ({each.record.reason})" if each.record.reason else ""
        yield f"before, in {each.batch.name}: {each.record.state}{why}; {describe_retirement(f, each.record)}"


def describe_retirement(f: Following, job: JobRecord) -> str:
    """By whose word a job is done again, and how far that is."""
    decision = next((one for one in f.ledger.decisions() if one.id == job.retired), None)
    if decision is None:
        return "it counts no more"
    successor = next((batch.name for batch in f.ledger.batches() if batch.id == job.successor), None)
    again = f"done again in {successor}" if successor else "to be done again"
    return f"{again} by {decision.kind} {decision.id} of {decision.who}, {decision.time}: {decision.why}"


def _explain(f: Following, found: Found) -> Iterator[str]:
    record, batch = found.record, found.batch
    if record.retired is not None:
        yield describe_retirement(f, record)
    if batch.parameters:
        values = ", ".join(f"{name}={value}" for name, value in sorted(batch.parameters.items()))
        yield f"with {values} in the place of what the campaign says"
    backend, attempts = backends.load(batch.backend), f.ledger.attempts(record.name)
    if batch.submitted is None:
        yield "nobody knows yet whether its batch landed: fermigrid watch settles it"
        return
    if batch.removed and not record.state.final:
        yield f"its batch was removed on {batch.removed}"
        return
    if back := comes_back(f, found):
        yield f"it ended badly ({back.why}), and a rule begins it again {from_when([back])}"
    if record.state in (State.FAILED, State.REMOVED) and record.reason:
        yield record.reason
        if record.state is State.REMOVED:
            yield from backend.explain_removal(record.reason, record.code)
    book = RetryBook(f.ledger)
    if asked := next((one for one in book.asked() if (one.batch, one.index) == (batch.id, found.index)), None):
        yield f"it left the queue, and waits for a person since {asked.since} ({asked.why}): {record.reason}"
        yield from backend.explain_removal(record.reason, record.code)
        yield "what to do: mend the cause, then fermigrid retry (or release); fermigrid remove gives it up"
    if stuck := next((one for one in book.stuck() if (one.batch, one.index) == (batch.id, found.index)), None):
        yield f"it is stuck: {stuck.why}"
    if record.state is State.UNKNOWN:
        yield f"the batch system does not know it any more: {record.reason or 'no reason given'}"
    kept: list[str] = []
    without_report = record.state is State.FAILED and not attempts
    paused = record.state is State.HELD and record.reason.startswith(PAUSED)
    if f.folder.archive is None and (record.state is State.WAITING or paused):
        kept = list(why_kept(f, batch))
        yield from kept or why_waits(f, batch)
    if f.folder.archive is None and not (asked or kept) and (not record.state.final or without_report):
        try:
            told = backend.explain(handle_of(f.folder, batch), found.index)
            if record.state is State.HELD and record.reason and not any(_TOLD_HELD.match(one) for one in told):
                yield f"its event log says that it is held, the queue not yet: {record.reason}"
            yield from told
        except BackendUnavailable as error:
            yield f"the batch system cannot be asked: {error}"
        refused_there = record.code.startswith("0/")  # by a CE or a batch system: the backend has told what comes of it
        if record.state is State.HELD and record.code and not refused_there:
            end, a = read_hold(record.code), f.assembled
            yield f"by itself: the job {fate_of_hold(end.value, end.sub, rules_of(a.campaign, a.sites[batch.site]))}"
    if record.starts > 1:
        yield f"it was started {record.starts} times, the last time on {record.host or 'an unknown host'}"
    for attempt in attempts:
        report = json.loads(attempt.report)
        words = describe_attempt(report)
        if report["message"] and report["message"] not in record.reason:
            words += f"; {report['message']}"
        counts = ", accepted" if attempt.accepted else ""
        given_up = ", given up since" if attempt.accepted and attempt.retired is not None else ""
        yield f"attempt {attempt.attempt}: {words}{counts}{given_up}"
        if (cores := [core["file"] for core in report.get("cores", ())]) and f.folder.archive is None:
            where = f"{found.log.parent / 'out'}: " if attempt.batch == found.batch.id else ""
            yield f"attempt {attempt.attempt}: core files kept: {where}{', '.join(cores)}"


def describe_attempt(report: dict[str, Any]) -> str:
    """One line on what a report says: where it ran, in what, how long, how it ended."""
    image = report["image"]
    if report["rehearsal"]:
        where = "on the host (rehearsal)"
    elif report.get("container") == "none":
        where = "in no container"
    else:
        where = f"in {image['name']} (from {image['rung']})"
    tried = [f"{step['rung']}: {step['result']}" for step in image.get("tried", []) if step["result"] != "ok"]
    text = f"{report['host']}, {where}, {report['end'] - report['begin']} s, exit {report['exit']}"
    if report["payload_exit"] not in (None, report["exit"]):
        text += f" (the payload's own: {report['payload_exit']})"
    if tried:
        text += f"; tried {', '.join(tried)}"
    return text
