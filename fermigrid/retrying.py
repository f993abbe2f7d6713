"""What becomes of jobs that did not end well: `watch` carries out the rules that the batch system cannot.

The batch system has done its part when a job has left the queue: its starts and releases are counted in the ledger, so
that no job is begun again more often than `retries.max` says, however that came. What is decided here is one
transaction of the ledger, before anything is sent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from statistics import median
from typing import TYPE_CHECKING

from fermigrid import backends
from fermigrid.advance import Care, Work
from fermigrid.backends import GIVEN_UP
from fermigrid.errors import BackendUnavailable, SubmissionRefused
from fermigrid.eventlog import find_measured
from fermigrid.plan import job_name, rules_of
from fermigrid.progress import Undecided, has_ended
from fermigrid.records import Again, BatchRecord, JobRecord, StuckJob
from fermigrid.report import payload_exit_of
from fermigrid.retry_book import RetryBook
from fermigrid.retry_rule import Chances, Do, End, Kind, Rule, Verdict, end_of_exit, find_rule, judge_end, read_hold
from fermigrid.split import chosen_pieces, run_of
from fermigrid.states import State
from fermigrid.submit import handle_of, rendered
from fermigrid.units import show_count, show_seconds

if TYPE_CHECKING:
    from fermigrid.watch import Following

RULE = "rule"  # the kind of such decisions
GATHER_S = 600  # jobs of a step of a block are done again together: for so long they wait for others
ENOUGH = 20  # good jobs of a step, before it is said that another takes long
LOOK_S = 60  # between two looks for stuck jobs
_SKEW_S = 3600.0
_REFUSED = " refused it: "


@dataclass(frozen=True)
class _Case:
    """A job whose end is to be judged."""

    job: JobRecord
    batch: BatchRecord
    end: End
    rules: Sequence[Rule]
    run: str

    @property
    def rule(self) -> Rule | None:
        return find_rule(self.rules, self.end)


def tend(f: Following) -> list[str]:
    """Do with the jobs that did not end well what the rules say; returns what is in the way of that, in words."""
    if f.ledger.campaign().stopped or f.assembled.campaign.messages:  # the pipeline begins its own jobs again
        return []
    problems = [*_tend_ended(f), *_tend_stuck(f)]
    _ban(f)
    return problems


def undecided(f: Following) -> Undecided:
    """The jobs that ended badly and may be done again: nothing is made without them before that is known."""
    if f.ledger.campaign().stopped or f.assembled.campaign.messages:
        return {}
    return RetryBook(f.ledger).undecided()


def coming_back(f: Following) -> list[Again]:
    """The jobs that ended badly, and that a rule begins again when their time has come: they have not failed."""
    if f.ledger.campaign().stopped or f.assembled.campaign.messages:
        return []
    book, found = RetryBook(f.ledger), list[Again]()
    jobs = book.unjudged(held=False)
    tries = book.tries([job.name for job in jobs])
    sites = {batch.id: batch.site for batch in f.ledger.batches()} if jobs else {}

    @cache  # thousands of jobs have few ends
    def rule_of(site: str, end: End) -> Rule | None:
        return find_rule(rules_of(f.assembled.campaign, f.assembled.sites[site]), end)

    for job in jobs:
        end = _end_of(f, job)
        rule = end and rule_of(sites[job.batch], end)
        if end and rule and rule.do.again and tries.get(job.name, 0) < f.assembled.campaign.retries.max:
            since = datetime.fromisoformat(job.since) if job.since else f.hand.now()
            found.append(Again(job, since + timedelta(seconds=rule.wait_s if rule.do is Do.WAIT else 0), end.words))
    return found


def as_it_is_now(f: Following, work: Work) -> Work:
    """The same with as many retries by the batch system as its jobs have left: the least of theirs."""
    if not work.generation:
        return work
    step = f.assembled.campaign.steps[work.step]
    names = [job_name(work.step, run.name, p.name) for run in work.runs for p in chosen_pieces(step, run, work.pieces)]
    used = max(RetryBook(f.ledger).tries(names).values(), default=0)
    return replace(work, retries=max(0, f.assembled.campaign.retries.max - used)) if used else work


# --- jobs that ended


def _tend_ended(f: Following) -> list[str]:
    book = RetryBook(f.ledger)
    unjudged = book.unjudged()
    if not unjudged:
        return []
    batches = {batch.id: batch for batch in f.ledger.batches()}
    cases, beyond = list[_Case](), list[JobRecord]()
    for job in unjudged:
        batch = batches[job.batch]
        if job.state is State.HELD and (batch.backend == "htcondor" or job.code.startswith("1/")):
            continue  # HTCondor has the rules itself; what a person holds, a person releases
        end = _end_of(f, job)
        if end is None:
            beyond.append(job)  # a person removed it, or nobody knows how it ended
        else:
            cases.append(_case(f, job, batch, end))
    book.judged(beyond)
    verdicts = _judge(f, book, cases)
    asked = [(case, v) for case, v in verdicts if v.do is Do.ASK]
    book.ask([(c.job, v.why) for c, v in asked if c.job.state is not State.HELD], f.hand.now(), f.hand.who)
    book.judged([c.job for c, v in verdicts if v.do in (Do.ASK, Do.GIVE_UP) and c.job.state is not State.HELD])
    again = [(case, verdict) for case, verdict in verdicts if verdict.do.again]
    _do_again(f, [(c, v) for c, v in _together(f, again) if _leaves(c, v)])
    return _in_place(f, book, [(c, v) for c, v in verdicts if c.job.state is State.HELD and not _leaves(c, v)])


def _case(f: Following, job: JobRecord, batch: BatchRecord, end: End) -> _Case:
    a = f.assembled
    rules = rules_of(a.campaign, a.sites[batch.site])
    return _Case(job, batch, end, rules, run_of(job.name, batch.step, a.campaign.steps[batch.step]))


def _end_of(f: Following, job: JobRecord) -> End | None:
    """How it ended, by what the ledger has; None: no rule is for that."""
    if job.state is State.HELD:
        return read_hold(job.code) if job.code else None
    if job.state is State.REMOVED:
        given_up = job.reason.startswith(GIVEN_UP) or _REFUSED in job.reason
        return read_hold(job.code or "0/0") if given_up else None
    if not job.code.lstrip("-").isdigit():
        return None
    true_code = payload_exit_of(f.ledger.attempts(job.name), job.batch) if job.code == "79" else None
    return end_of_exit(int(job.code), true_code)


def _judge(f: Following, book: RetryBook, cases: Sequence[_Case]) -> list[tuple[_Case, Verdict]]:
    tries = book.tries([case.job.name for case in cases])
    hungry = [case for case in cases if case.rule and case.rule.do is Do.MORE_MEMORY]
    measured, found = _measured(f, hungry), []
    for case in cases:
        a, batch = f.assembled, case.batch
        ask = a.campaign.steps[batch.step].resources.memory
        had = batch.options.get("memory")
        chances = Chances(
            used=tries.get(case.job.name, 0),
            most=a.campaign.retries.max,
            memory=had if isinstance(had, int) else ask,
            ask=ask,
            measured=measured.get((batch.id, case.job.index)),
            room=a.sites[batch.site].limits.memory,
            sites=tuple(_other_sites(f, case)) if case.rule and case.rule.do is Do.OTHER_SITE else (),
        )
        found.append((case, judge_end(case.end, case.rules, chances)))
    return found


def _measured(f: Following, cases: Iterable[_Case]) -> dict[tuple[str, int], int]:
    """The memory that jobs used, by batch and index, where HTCondor measured it."""
    by_batch = defaultdict[str, list[_Case]](list)
    for case in cases:
        if case.batch.backend == "htcondor" and case.batch.cluster is not None:
            by_batch[case.batch.id].append(case)
    found = {}
    for group in by_batch.values():
        batch, cluster = group[0].batch, group[0].batch.cluster or 0
        wanted = {(cluster, case.job.index) for case in group}
        for (_, index), memory in find_measured(rendered(f.folder, batch).event_log, wanted).items():
            found[batch.id, index] = memory
    return found


def _other_sites(f: Following, case: _Case) -> Iterator[str]:
    """The campaign's sites where the job was not, those first that get the most of it."""
    if f.site is not None:
        return
    jobs = {job.batch for job in f.ledger.jobs_named(case.job.name)}
    been = {batch.site for batch in f.ledger.batches() if batch.id in jobs}
    weights = f.assembled.campaign.sites
    yield from sorted((site for site in weights if site not in been), key=lambda site: (-weights[site], site))


def _together(f: Following, again: Sequence[tuple[_Case, Verdict]]) -> Iterator[tuple[_Case, Verdict]]:
    """Those whose time has come: they have waited, and for the others of their step of a block, which ended or which
    nobody wants to wait for any longer."""
    now, counts = f.hand.now(), f.ledger.counts()
    alive = {(b.block, b.step) for b in f.ledger.batches() if _goes_on(b, counts.get(b.id, {}))}
    groups = defaultdict[tuple[str, str], list[tuple[_Case, Verdict]]](list)
    for case, verdict in again:
        if _age(case.job.since, now) >= verdict.wait_s:
            groups[case.batch.block, case.batch.step].append((case, verdict))
    for place, group in groups.items():
        if place not in alive or max(_age(case.job.since, now) for case, _ in group) >= GATHER_S:
            yield from group


def _goes_on(batch: BatchRecord, by_state: Mapping[State, int]) -> bool:
    """Does a job of it come to an end by itself? A held one may wait for a person, and for how long nobody knows."""
    return (
        not has_ended(batch, by_state)
        and sum(count for state, count in by_state.items() if state.final or state is State.HELD) < batch.counted
    )


def _age(since: str, now: datetime) -> float:
    """Seconds since then; 0 where another clock is a little ahead. Long ago, so that nothing waits for it: without a
    time, or when the clock was set back."""
    age = (now - datetime.fromisoformat(since)).total_seconds() if since else -_SKEW_S - 1.0
    return max(age, 0.0) if age >= -_SKEW_S else float("inf")


def _leaves(case: _Case, verdict: Verdict) -> bool:
    """Is it done again in a new generation?"""
    return verdict.do.again and (case.job.state is not State.HELD or verdict.do in (Do.OTHER_SITE, Do.MORE_MEMORY))


def _do_again(f: Following, chosen: Iterable[tuple[_Case, Verdict]]) -> None:
    """A decision for all of which the same is decided: their next batch is sent as for a retry of a person's."""
    groups = defaultdict[tuple[Do, int | None, str | None], list[tuple[_Case, Verdict]]](list)
    for case, verdict in chosen:
        groups[verdict.do, verdict.memory, verdict.site].append((case, verdict))
    for (do, memory, site), group in groups.items():
        known = RetryBook(f.ledger).care()
        care = {}
        for case, _ in group:
            if memory is None and site is None:
                continue
            before = known.get((case.batch.step, case.run), Care())
            care[case.batch.step, case.run] = Care(max(before.memory or 0, memory or 0) or None, site or before.site)
        first, verdict = group[0]
        why = f"{do} for {show_count(len(group), 'job')} such as {first.job.name}: {verdict.why}"
        f.ledger.decide(RULE, why, [case.job for case, _ in group], {}, f.hand.now(), f.hand.who, care)
        f.hand.tell(why)


def _in_place(f: Following, book: RetryBook, cases: Iterable[tuple[_Case, Verdict]]) -> list[str]:
    """Held jobs of a batch system that has no rules of its own: released, removed, or left to a person."""
    now, problems = f.hand.now(), list[str]()
    for case, verdict in cases:
        if verdict.do is Do.ASK:
            book.judged([case.job])
            continue
        if _age(case.job.since, now) < verdict.wait_s:
            continue
        backend, handle = backends.load(case.batch.backend), handle_of(f.folder, case.batch)
        try:
            if verdict.do is Do.GIVE_UP:
                backend.remove([handle], [case.job.index])
                book.judged([case.job])
            else:
                backend.release([handle], [case.job.index])
                book.judged([case.job], [case.job.name])
        except (BackendUnavailable, SubmissionRefused) as error:
            problems.append(f"{case.job.name}: {verdict.why}: {error}")
    return problems


# --- jobs that do nothing


def _tend_stuck(f: Following) -> list[str]:
    """Find the running jobs that do nothing, and begin those anew of which a rule says so."""
    book, now = RetryBook(f.ledger), f.hand.now()
    looked = book.looked_for_stuck()
    if looked and _age(looked, now) < LOOK_S:
        return []
    problems: list[str] = []
    found = list(_find_stuck(f, book, now, problems))
    book.keep_stuck((stuck for _, stuck in found), now, f.hand.who)
    verdicts = _judge(f, book, [case for case, _ in found])
    _do_again(f, [(case, verdict) for case, verdict in verdicts if verdict.do.again])
    return problems


def _find_stuck(f: Following, book: RetryBook, now: datetime, problems: list[str]) -> Iterator[tuple[_Case, StuckJob]]:
    limits = f.assembled.campaign.retries.stuck
    old = book.running_before((now - timedelta(seconds=limits.after)).isoformat(timespec="seconds"))
    if not old:
        return
    batches = {batch.id: batch for batch in f.ledger.batches()}
    by_batch = defaultdict[str, list[JobRecord]](list)
    for job in old:
        by_batch[job.batch].append(job)
    usual: dict[str, float | None] = {}
    for name, jobs in by_batch.items():
        batch = batches[name]
        if batch.step not in usual:
            walls = book.wall_times(batch.step)
            usual[batch.step] = median(walls) if len(walls) >= ENOUGH else None
        half = usual[batch.step]
        late = {job.index: job for job in jobs if half is not None and _age(job.since, now) > limits.times * half}
        if not late or half is None:
            continue
        for index, cpu in _used(f, batch, list(late), problems).items():
            job = late[index]
            wall = _age(job.since, now)
            if cpu < limits.cpu * wall:
                used = f"it runs for {show_seconds(wall)} with {cpu:.0f} s of CPU"
                why = f"{used}; half of the others took {show_seconds(half)}"
                yield _case(f, job, batch, End(Kind.STUCK)), StuckJob(job.batch, index, job.name, why, job.host)


def _used(f: Following, batch: BatchRecord, indices: Sequence[int], problems: list[str]) -> Mapping[int, float]:
    try:
        return backends.load(batch.backend).used(handle_of(f.folder, batch), indices)
    except (BackendUnavailable, SubmissionRefused) as error:
        problems.append(f"{batch.name}: whether its jobs use CPU is not known: {error}")
        return {}


# --- nodes that fail


def _ban(f: Following) -> None:
    """Send no more to nodes that keep failing, as long as few of those that are good, or none known, are left out."""
    rule, book, now = f.assembled.campaign.retries.ban, RetryBook(f.ledger), f.hand.now()
    for trouble in book.troubles(now - timedelta(seconds=rule.within)):
        site = f.assembled.sites.get(trouble.site)
        if site is None or site.backend != "htcondor" or trouble.bad < rule.failures or trouble.good >= trouble.bad:
            continue
        banned, good = f.ledger.banned(trouble.site), book.good_nodes(trouble.site)
        if trouble.node in banned or not good or len(banned) >= max(1, int(rule.share * good)):
            continue
        why = f"{trouble.bad} failures of its own within {show_seconds(rule.within)}, {trouble.good} good jobs"
        book.has_banned(trouble, now)
        f.ledger.ban(trouble.site, trouble.node, why, now, f.hand.who)
        f.hand.tell(f"no more jobs to {trouble.node} at {trouble.site}: {why}")
