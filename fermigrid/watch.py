"""The way back: batch systems -> states -> ledger; reports -> accepted results -> final names -> the next batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fermigrid import backends
from fermigrid.accept import Items, accept_ended, publish_accepted
from fermigrid.advance import Work, work_needed
from fermigrid.backends import GIVEN_UP, JobSeen
from fermigrid.breaker import Result
from fermigrid.errors import BackendUnavailable, FermigridError, SecretRefused, SubmissionDoubt
from fermigrid.gate import Space, check_breaker, keep_paused, of_the_trial
from fermigrid.ledger import Ledger
from fermigrid.messages import send_missing
from fermigrid.plan import Assembled
from fermigrid.progress import has_ended, progress_of
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.report import INFRASTRUCTURE
from fermigrid.retire import blocks_at_work, finish_decisions
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
    retiring = finish_decisions(f.ledger, f.folder, f.assembled, f.hand, turn.events > 0)
    turn = replace(turn, problems=(*turn.problems, *retiring))
    try:
        turn = replace(turn, submitted=send(f))
    except (BackendUnavailable, SecretRefused, SubmissionDoubt) as error:
        turn = replace(turn, problems=tuple(dict.fromkeys((*turn.problems, _words(error)))))
    return replace(turn, finished=is_finished(f))


def send(f: Following) -> int:
    """End every doubt and submit what is ready, unless the circuit breaker says no; returns the number of batches."""
    if not check_breaker(f.ledger, f.folder, f.assembled, f.hand):
        keep_paused(f.ledger, f.folder)
        return 0
    return settle(f.ledger, f.folder, f.assembled, f.hand) + advance(f)


def advance(f: Following) -> int:
    """Submit what is ready now, and has room for its outputs; returns the number of batches."""
    works = Space(f.ledger, f.folder, f.assembled, f.hand).let_through(_ready(f))
    return submit_work(f.ledger, f.folder, f.assembled, works, f.hand)


def _ready(f: Following) -> Iterator[Work]:
    return of_the_trial(f.ledger, _needed(f))


def _needed(f: Following) -> Iterator[Work]:
    if f.ledger.campaign().stopped:
        return iter(())
    a, busy = f.assembled, blocks_at_work(f.ledger)
    works = work_needed(
        a.campaign, a.runs, sites_of_blocks(a, f.site), progress_of(f.ledger, a), a.trial, f.ledger.overrides()
    )
    return (work for work in works if work.block not in busy)


def is_finished(f: Following) -> bool:
    """Every batch has ended, none is ready to be submitted, and nothing is left of what is done again."""
    if any(progress.pending for progress in progress_of(f.ledger, f.assembled).values()):
        return False
    left = blocks_at_work(f.ledger) or f.ledger.retired_alive()
    return not left and next(_ready(f), None) is None


def _observe(f: Following, items: Items, problems: list[str]) -> int:
    """Take in what the batch systems report; returns the number of events."""
    counts, retired = f.ledger.counts(), {job.batch for job in f.ledger.retired_alive()}
    batches = {batch.id: batch for batch in f.ledger.batches() if batch.submitted}
    open_ = [b for b in batches.values() if b.id in retired or not has_ended(b, counts.get(b.id, {}))]
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
            jobs, failures, given_up = _apply(f.ledger, items, batches, seen.seen)
            f.ledger.apply(jobs, seen.cursor, failures, given_up)
            total += len(seen.seen)
            if seen.cursor == cursor:
                break
    return total


def _apply(
    ledger: Ledger, items: Items, batches: dict[str, BatchRecord], seen: Sequence[JobSeen]
) -> tuple[list[JobRecord], list[tuple[str, int]], list[Result]]:
    """What was seen, put into states: the last word for each job; (host, exit code) of starts that a node failed; jobs
    that the batch system gave up, of which no report comes."""
    now: dict[tuple[str, int], JobRecord] = {}
    failures, given_up = [], []
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
        if now[key].state is State.REMOVED and job.state is State.HELD and event.reason.startswith(GIVEN_UP):
            given_up.append(Result(failed=True))
    return list(now.values()), failures, given_up


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
