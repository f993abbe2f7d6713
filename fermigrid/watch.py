"""The way back: batch systems -> states -> ledger; reports -> accepted results -> final names -> the next batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fermigrid import backends
from fermigrid.accept import Items, accept_ended, publish_accepted
from fermigrid.advance import Progress, Work, work_needed
from fermigrid.backends import JobSeen
from fermigrid.errors import BackendUnavailable, FermigridError, SecretRefused, SubmissionDoubt
from fermigrid.ledger import Ledger
from fermigrid.messages import send_missing
from fermigrid.plan import Assembled
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.report import INFRASTRUCTURE
from fermigrid.runfolder import RunFolder
from fermigrid.states import Seen, State, next_state
from fermigrid.submit import Hand, adopt, handle_of, settle, sites_of_blocks, submit_work


@dataclass(frozen=True)
class Following:
    """A campaign that is being followed: everything that `watch_once` needs."""

    ledger: Ledger
    folder: RunFolder
    assembled: Assembled
    site: str | None
    hand: Hand


@dataclass(frozen=True)
class Turn:
    """What one look found: `problems` are sentences for a person; `finished`: nothing is left to wait for."""

    events: int
    judged: int
    submitted: int
    finished: bool
    problems: tuple[str, ...]


def look(f: Following) -> Turn:
    """Take in what happened and accept results. Submits nothing: for the verbs that only want to know."""
    problems: list[str] = []
    try:
        adopt(f.ledger, f.folder, f.hand)
    except (BackendUnavailable, SubmissionDoubt) as error:
        problems.append(_words(error))
    items = Items(f.folder)
    events = _observe(f, items, problems)
    judged, unread = accept_ended(f.ledger, f.folder, items)
    problems += unread
    problems += publish_accepted(f.ledger, f.folder, items)
    return Turn(events, judged, 0, is_finished(f), tuple(problems))


def _words(error: FermigridError) -> str:
    return f"{error} {error.hint}".strip()


def watch_once(f: Following) -> Turn:
    """One look, then send what is ready: messages that nodes could not send, batches in doubt, next steps."""
    turn = look(f)
    turn = replace(turn, problems=(*turn.problems, *send_missing(f.ledger, f.assembled, f.hand)))
    if f.ledger.campaign().stopped:
        return turn
    try:
        settle(f.ledger, f.folder, f.assembled, f.hand)
        turn = replace(turn, submitted=advance(f))
    except (BackendUnavailable, SecretRefused, SubmissionDoubt) as error:
        turn = replace(turn, problems=tuple(dict.fromkeys((*turn.problems, _words(error)))))
    return replace(turn, finished=is_finished(f))


def advance(f: Following) -> int:
    """Submit what is ready now; returns the number of batches."""
    return submit_work(f.ledger, f.folder, f.assembled, _ready(f), f.hand)


def _ready(f: Following) -> Iterator[Work]:
    if f.ledger.campaign().stopped:
        return iter(())
    sites = sites_of_blocks(f.assembled, f.site)
    return work_needed(f.assembled.campaign, f.assembled.runs, sites, progress_of(f))


def progress_of(f: Following) -> dict[tuple[str, str], Progress]:
    """What `work_needed` wants to know, from the ledger."""
    counts = f.ledger.counts()
    known = {}
    for batch in f.ledger.batches():
        by_state = counts.get(batch.id, {})
        ended = has_ended(batch, by_state)
        incomplete = frozenset[str]()
        if ended and by_state.get(State.DONE, 0) < batch.jobs:
            split = f.assembled.campaign.steps[batch.step].split is not None
            not_done = f.ledger.jobs_not_done(batch.id)
            incomplete = frozenset(run_of(job.name, batch.step, split) for job in not_done)
            if batch.removed:
                incomplete = frozenset(run.name for run in f.assembled.runs)
        known[batch.block, batch.step] = Progress(ended, incomplete)
    return known


def has_ended(batch: BatchRecord, by_state: dict[State, int]) -> bool:
    """Will nothing more come of this batch by itself?"""
    final = sum(count for state, count in by_state.items() if state.final)
    return final >= batch.jobs or (batch.removed is not None and final == sum(by_state.values()))


def run_of(job: str, step: str, split: bool) -> str:
    """The run of a job, from its name."""
    rest = job.removeprefix(f"{step}.")
    return rest.rpartition(".")[0] if split else rest


def is_finished(f: Following) -> bool:
    """Every batch has ended, and none is ready to be submitted."""
    return all(progress.ended for progress in progress_of(f).values()) and next(_ready(f), None) is None


def _observe(f: Following, items: Items, problems: list[str]) -> int:
    """Take in what the batch systems report; returns the number of events."""
    counts = f.ledger.counts()
    batches = {batch.id: batch for batch in f.ledger.batches() if batch.submitted}
    open_ = [batch for batch in batches.values() if not has_ended(batch, counts.get(batch.id, {}))]
    total = 0
    for name in sorted({batch.backend for batch in open_}):
        backend = backends.load(name)
        handles = [handle_of(f.folder, batch) for batch in open_ if batch.backend == name]
        while True:
            cursor = f.ledger.cursor()
            try:
                seen = backend.observe(handles, cursor)
            except BackendUnavailable as error:
                problems.append(str(error))
                break
            problems.extend(problem for problem in seen.problems if problem not in problems)
            jobs, failures = _apply(f.ledger, items, batches, seen.seen)
            f.ledger.apply(jobs, seen.cursor, failures)
            total += len(seen.seen)
            if seen.cursor == cursor:
                break
    return total


def _apply(
    ledger: Ledger, items: Items, batches: dict[str, BatchRecord], seen: Sequence[JobSeen]
) -> tuple[list[JobRecord], list[tuple[str, int]]]:
    """What was seen, put into states: the last word for each job; (host, exit code) of starts that a node failed."""
    now: dict[tuple[str, int], JobRecord] = {}
    failures = []
    for event in seen:
        batch = batches.get(event.batch_id)
        if batch is None or not 0 <= event.index < batch.jobs:
            continue
        key = (event.batch_id, event.index)
        job = now.get(key) or ledger.job(*key)
        if job is None:
            if event.seen is Seen.SUBMITTED:
                continue  # a job has a row only once something happened to it
            name, _ = items.get(batch, event.index)
            job = JobRecord(event.batch_id, event.index, name, State.WAITING, "")
        now[key] = _step(job, event)
        if job.state is State.RUNNING and job.host and event.exit_code in INFRASTRUCTURE:
            failures.append((job.host.partition("@")[2] or job.host, event.exit_code))  # slot1_2@node
    return list(now.values()), failures


def _step(job: JobRecord, event: JobSeen) -> JobRecord:
    state = next_state(job.state, event.seen)
    if state is job.state and not (state is State.RUNNING and event.seen is Seen.STARTED):
        return job
    code = event.code if event.seen is not Seen.ENDED else str(event.exit_code if event.exit_code is not None else "")
    if state is State.REMOVED and job.state is State.HELD:
        code = code or job.code  # a hold that no release cured
    return replace(
        job,
        state=state,
        since=event.time.isoformat(timespec="seconds"),
        starts=job.starts + (event.seen is Seen.STARTED),
        host=event.host or job.host,
        reason=event.reason,
        code=code,
    )
