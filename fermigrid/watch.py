"""The way back: batch systems -> states -> ledger; reports -> accepted results -> final names -> the next batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fermigrid import backends
from fermigrid.accept import Items, accept_ended, has_report, publish_accepted
from fermigrid.advance import Withheld, Work, work_needed
from fermigrid.backends import GIVEN_UP, TRIED_AGAIN, JobSeen
from fermigrid.breaker import Result
from fermigrid.errors import BackendUnavailable, FermigridError, SecretRefused, SubmissionDoubt, SubmissionRefused
from fermigrid.gate import Space, check_breaker, keep_paused, of_the_trial
from fermigrid.ledger import Ledger
from fermigrid.messages import send_missing
from fermigrid.plan import Assembled
from fermigrid.progress import has_ended, progress_of
from fermigrid.records import BatchRecord, JobRecord, NodeEnds
from fermigrid.report import INFRASTRUCTURE
from fermigrid.retire import blocks_at_work, finish_decisions
from fermigrid.retry_book import RetryBook
from fermigrid.retrying import as_it_is_now, tend, undecided
from fermigrid.runfolder import RunFolder
from fermigrid.settings_book import SettingsBook
from fermigrid.states import Seen, State, next_state
from fermigrid.submit import Hand, adopt, begun_blocks, handle_of, settle, sites_of_blocks, submit_work
from fermigrid.throttle import Throttle, as_now, keep_limits
from fermigrid.units import show_count
from fermigrid.withheld_book import WithheldBook


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
    """What one look found: `problems` are sentences for a person; `finished`: nothing is left to wait for (only
    `watch_once` tells)."""

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
    events = take_in_events(f, items, problems)
    judged, unread = accept_ended(f.ledger, f.folder, items)
    problems += unread
    problems += publish_accepted(f.ledger, f.folder, items)
    return Turn(events, judged, 0, False, tuple(problems))


def _words(error: FermigridError) -> str:
    return f"{error} {error.hint}".strip()


def watch_once(f: Following) -> Turn:
    """One look, then send what is ready: messages that nodes could not send, batches in doubt, next steps."""
    turn = look(f)
    turn = replace(turn, problems=(*turn.problems, *send_missing(f.ledger, f.assembled, f.hand)))
    if f.ledger.campaign().stopped:
        return replace(turn, problems=(*turn.problems, *_remove_the_rest(f)), finished=is_finished(f))
    turn = replace(turn, problems=(*turn.problems, *tend(f)))
    retiring = finish_decisions(f.ledger, f.folder, f.assembled, f.hand, turn.events > 0)
    turn = replace(turn, problems=(*turn.problems, *retiring))
    turn = replace(turn, problems=(*turn.problems, *keep_limits(f)))
    try:
        turn = replace(turn, submitted=send(f))
    except (BackendUnavailable, SecretRefused, SubmissionDoubt) as error:
        turn = replace(turn, problems=tuple(dict.fromkeys((*turn.problems, _words(error)))))
    return replace(turn, finished=is_finished(f))


def _remove_the_rest(f: Following) -> list[str]:
    """Ask again for removals that the batch system did not confirm; returns problems. One that is silent is not asked
    for each batch."""
    counts = f.ledger.counts()
    for batch in f.ledger.batches():
        if not batch.submitted or batch.removed or has_ended(batch, counts.get(batch.id, {})):
            continue
        try:
            backends.load(batch.backend).remove([handle_of(f.folder, batch)])
        except (BackendUnavailable, SubmissionRefused) as error:
            return [_words(error)]
        f.ledger.remove(batch.id, f.hand.now(), f.hand.who)
    return []


def send(f: Following) -> int:
    """End every doubt and submit what is ready, unless the circuit breaker says no; returns the number of batches."""
    f = as_now(f)
    if not check_breaker(f.ledger, f.folder, f.assembled, f.hand):
        keep_paused(f.ledger, f.folder)
        return 0
    return settle(f.ledger, f.folder, f.assembled, f.hand) + advance(f)


def advance(f: Following) -> int:
    """Submit what is ready now, has a place within the limits, and room for its outputs; returns how many batches."""
    f = as_now(f)
    works = Space(f.ledger, f.folder, f.assembled, f.hand).let_through(Throttle(f).let_through(_ready(f)))
    sent = submit_work(f.ledger, f.folder, f.assembled, works, f.hand)
    if sent:
        for problem in keep_limits(f):  # they were sent with one place
            f.hand.tell(problem)
    return sent


def _ready(f: Following) -> Iterator[Work]:
    return of_the_trial(f.ledger, _needed(f))


def _needed(f: Following) -> Iterator[Work]:
    if f.ledger.campaign().stopped:
        return iter(())
    a, busy, care = as_now(f).assembled, blocks_at_work(f.ledger), RetryBook(f.ledger).care()
    sites = sites_of_blocks(a, f.site, begun_blocks(f.ledger), SettingsBook(f.ledger).reweighed())
    known, overrides = progress_of(f.ledger, a, undecided(f)), f.ledger.overrides()
    withheld = WithheldBook(f.ledger).places()
    works = work_needed(a.campaign, a.runs, sites, known, a.trial, overrides, care, withheld)
    return (as_it_is_now(f, work) for work in works if work.block not in busy)


def why_not_sent(f: Following, block: str, step: str) -> str:
    """Why a batch that is ready is not sent, in words: a drain, a limit. Empty: it is sent at the next look."""
    throttle = Throttle(as_now(f))
    for work in _ready(f):
        why = throttle.why_not(work)
        if (work.block, work.step) == (block, step):
            return why
    return ""


def is_finished(f: Following) -> bool:
    """Every batch has ended, none is ready to be submitted, and nothing is left of what is done again."""
    if f.ledger.campaign().stopped is None and Withheld.HELD in WithheldBook(f.ledger).places().values():
        return False
    if any(progress.pending for progress in progress_of(f.ledger, f.assembled, undecided(f)).values()):
        return False
    left = blocks_at_work(f.ledger) or f.ledger.retired_alive()
    return not left and next(_ready(f), None) is None


def take_in_events(f: Following, items: Items, problems: list[str]) -> int:
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
            if seen.seen or seen.cursor != cursor:  # else nothing is to be written
                told = _apply(f.ledger, items, batches, seen.seen)
                ends = NodeEnds(told.good, told.bad)
                jobs, begun = told.jobs.values(), told.begun
                f.ledger.apply(jobs, seen.cursor, told.failures, told.given_up, told.again, ends, begun)
            total += len(seen.seen)
            if seen.cursor == cursor:
                break
    return total


def look_again(f: Following) -> list[str]:
    """Take in how every job stands by queue and history: events may have got lost on their way into the log, as on a
    full disk, without a trace. Costs a query of all jobs; returns problems."""
    counts, items = f.ledger.counts(), Items(f.folder)
    batches = {batch.id: batch for batch in f.ledger.batches() if batch.submitted}
    problems: list[str] = []
    for batch in batches.values():
        if has_ended(batch, counts.get(batch.id, {})):
            continue
        found = backends.load(batch.backend).resolve([handle_of(f.folder, batch)])
        problems += found.problems
        told = _apply(f.ledger, items, batches, found.seen)
        known = {key: f.ledger.job(*key) for key in told.jobs}
        news = [job for key, job in told.jobs.items() if (then := known[key]) is None or then.state is not job.state]
        if news:
            f.ledger.apply(news, f.ledger.cursor())
            problems.append(f"{batch.name}: of {show_count(len(news), 'job')} the event log did not tell all")
    return problems


@dataclass
class _Told:
    """What was seen, put into states: the last word for each job; (host, exit code) of starts that a node failed; jobs
    that the batch system gave up, of which no report comes; the names of those that it began again; how jobs ended on
    nodes; starts by batch and second."""

    jobs: dict[tuple[str, int], JobRecord] = field(default_factory=dict)
    failures: list[tuple[str, int]] = field(default_factory=list)
    given_up: list[Result] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    good: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: list[tuple[str, str, str]] = field(default_factory=list)
    begun: Counter[tuple[str, int]] = field(default_factory=Counter)


def _apply(ledger: Ledger, items: Items, batches: dict[str, BatchRecord], seen: Sequence[JobSeen]) -> _Told:
    told, known = _Told(), _known(ledger, batches, seen)
    for event in seen:
        batch = batches.get(event.batch_id)
        if batch is None or not 0 <= event.index < batch.jobs:
            continue
        if event.seen is Seen.LOST and has_report(items, batch, event.index):
            event = replace(event, seen=Seen.ENDED)  # nobody knows it any more, because it has ended
        key = (event.batch_id, event.index)
        job = told.jobs.get(key) or known.get(key)
        if job is None:
            if event.seen is Seen.SUBMITTED:
                continue  # a job has a row only once something happened to it
            name, _ = items.get(batch, event.index)
            job = JobRecord(event.batch_id, event.index, name, State.WAITING, "")
        told.jobs[key] = _step(job, event)
        if event.seen is Seen.STARTED:
            told.begun[event.batch_id, int(event.time.timestamp())] += 1
        if job.state is State.RUNNING and event.exit_code is not None:
            _take_end(told, job, event, batch.site)
        tried = job.state is State.HELD and event.seen is Seen.RELEASED and event.reason == TRIED_AGAIN
        if tried and not job.code.startswith("0/"):  # with 0 a batch system did not take it: it never began
            told.again.append(job.name)
        if told.jobs[key].state is State.REMOVED and job.state is State.HELD and event.reason.startswith(GIVEN_UP):
            told.given_up.append(Result(failed=True))
    return told


def _known(
    ledger: Ledger, batches: Mapping[str, BatchRecord], seen: Sequence[JobSeen]
) -> dict[tuple[str, int], JobRecord]:
    """What the ledger knows of the jobs that were seen."""
    indices: dict[str, set[int]] = {name: set() for name in batches}
    for event in seen:
        if event.batch_id in indices:
            indices[event.batch_id].add(event.index)
    found = (job for name, some in indices.items() if some for job in ledger.jobs_at(name, some))
    return {(job.batch, job.index): job for job in found}


def _take_end(told: _Told, job: JobRecord, event: JobSeen, site: str) -> None:
    """The worker of a running job has ended: for good, or to begin again."""
    node, time = job.host.partition("@")[2] or job.host, event.time.isoformat(timespec="seconds")  # slot1_2@node
    if event.exit_code in INFRASTRUCTURE and node:
        told.failures.append((node, event.exit_code))
        told.bad.append((time, site, node))
    elif event.exit_code == 0 and node:
        told.good[time[:13], site, node] += 1
    if event.seen is Seen.EVICTED:
        told.again.append(job.name)


def _step(job: JobRecord, event: JobSeen) -> JobRecord:
    state = next_state(job.state, event.seen)
    if state is job.state and not (state is State.RUNNING and event.seen is Seen.STARTED):
        return job
    code = event.code if event.seen is not Seen.ENDED else _exit_code(event)
    if state is State.REMOVED and job.state is State.HELD:
        code = code or job.code  # a hold that no release cured
    return JobRecord(  # not by `replace`: this is done for every event of millions of jobs
        batch=job.batch,
        index=job.index,
        name=job.name,
        state=state,
        since=event.time.isoformat(timespec="seconds"),
        starts=job.starts + (event.seen is Seen.STARTED),
        host=event.host or job.host,
        reason=event.reason,
        code=code,
        retired=job.retired,
        successor=job.successor,
    )


def _exit_code(event: JobSeen) -> str:
    """Of a job that ended; by signal n it is 128 + n, as shells say."""
    if event.exit_code is not None:
        return str(event.exit_code)
    return "" if event.signal is None else str(128 + event.signal)
