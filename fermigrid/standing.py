"""Where a campaign stands: counts of jobs by batch and state, from the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fermigrid.advance import Withheld, count_blocked, count_withheld
from fermigrid.attempt import gist
from fermigrid.metrics import Counts
from fermigrid.pace import Pace, pace_of, show_rate, since_when
from fermigrid.progress import progress_of
from fermigrid.records import Again, Asked, BatchRecord, Decision, Halt, NodeFailures, StuckJob
from fermigrid.report import WORDS
from fermigrid.retry_book import RetryBook
from fermigrid.retrying import coming_back, undecided
from fermigrid.split import count_jobs
from fermigrid.states import ORDER, State
from fermigrid.units import show_count
from fermigrid.watch import Following
from fermigrid.withheld_book import WithheldBook

KEEPS_FAILING = 3  # starts that failed for a reason of the node's
NODES_SHOWN = 10
_REASONS = 2000  # that are told apart
HALTED = {
    "breaker": "nothing more starts until `fermigrid resume`,",
    "trial": "the rest waits for `fermigrid resume`,",
    "space": "not all is sent: it waits for room,",
}
_HALTED = {  # in the fewest words
    "breaker": "stopped by the circuit breaker",
    "trial": "the rest waits for the trial",
    "space": "waits for room",
}


@dataclass(frozen=True)
class BatchStanding:
    """One batch: `counts` has every state, jobs that nothing happened to are waiting (or removed with their batch).

    Jobs that are done again are not in it."""

    batch: BatchRecord
    counts: dict[State, int]

    @property
    def words(self) -> str:
        """`in doubt`, `submitted` or `ended`."""
        if self.batch.submitted is None:
            return "in doubt"
        ended = sum(n for state, n in self.counts.items() if state.final)
        return "ended" if ended == self.batch.counted else "submitted"


@dataclass(frozen=True)
class Standing:
    """A whole campaign."""

    batches: tuple[BatchStanding, ...]
    rehearsed: int
    unpublished: int
    nodes: tuple[NodeFailures, ...] = ()
    stopped: str | None = None  # when a person removed the campaign as a whole
    unsent: int = 0  # jobs of the campaign that are in no batch so far
    halts: tuple[Halt, ...] = ()
    looked: str | None = None  # when `watch` looked last
    blocked: int = 0  # those of them that never come, because what they wait for failed or was removed
    again: int = 0  # jobs that are to be sent again
    retiring: tuple[Decision, ...] = ()  # of which old jobs and outputs are still in the way
    unsent_by_step: Mapping[str, int] = field(default_factory=dict)  # never sent so far, blocked ones too
    pace: Pace = field(default_factory=Pace)
    asked: tuple[Asked, ...] = ()  # jobs that left the queue and wait for a person
    idle: tuple[StuckJob, ...] = ()  # jobs that run and do nothing
    bans: tuple[tuple[str, str, str, str], ...] = ()  # (site, node, why, since) of nodes that get no more jobs
    held_unsent: int = 0  # jobs that a person held before they were sent
    removed_unsent: int = 0  # jobs that a person removed before they were sent; they are among the blocked ones
    undecided: bool = False  # has a job ended badly of which the rules have not said yet what becomes of it?
    returning: tuple[Again, ...] = ()  # jobs that ended badly and are begun again by a rule: they are waiting

    @property
    def being_removed(self) -> bool:
        """Was the campaign removed, and the batch system has not been told so of all its batches?"""
        return self.stopped is not None and any(not one.batch.removed and one.words != "ended" for one in self.batches)

    @property
    def counts(self) -> dict[State, int]:
        """State -> number of jobs."""
        return {state: sum(batch.counts[state] for batch in self.batches) for state in ORDER}

    @property
    def by_step(self) -> list[Counts]:
        """Jobs by step, in the campaign's order, and site."""
        found: dict[tuple[str, str], dict[str, int]] = {}
        for one in self.batches:
            states = found.setdefault((one.batch.step, one.batch.site), dict.fromkeys(map(str, ORDER), 0))
            for state, count in one.counts.items():
                states[state] += count
        order = list(self.unsent_by_step)
        return [Counts(*key, found[key]) for key in sorted(found, key=lambda key: (order.index(key[0]), key[1]))]

    @property
    def jobs(self) -> int:
        """All jobs of the batches so far, each once however often it is done."""
        return sum(batch.batch.counted for batch in self.batches)

    @property
    def every(self) -> int:
        """All jobs of the campaign, sent or not."""
        return self.jobs + self.unsent

    @property
    def ended(self) -> int:
        """The jobs to which nothing more comes by itself."""
        return sum(count for state, count in self.counts.items() if state.final)

    @property
    def words(self) -> str:
        """Where it stands in one line: `12 done, 3 running, 69 not sent yet; stopped by the circuit breaker`."""
        halts = [] if self.stopped else [_HALTED[halt.kind] for halt in self.halts]
        again = [f"{len(self.returning)} again {from_when(self.returning)}"] if self.returning else []
        removed = ["removed"] if self.stopped and self.unsent else []
        return "; ".join([self._states, *again, *halts, *removed])

    @property
    def _states(self) -> str:
        """`12 done, 3 running`; jobs of which nobody knows yet whether they were submitted are waiting, and said so."""
        known: dict[str, int] = {str(state): count for state, count in self.counts.items()}
        never = self.unsent if self.stopped else self.blocked
        known |= {"not sent yet": self.unsent - never, "never sent": never}
        text = ", ".join(f"{count} {what}" for what, count in known.items() if count) or "no jobs"
        doubtful = sum(batch.batch.counted for batch in self.batches if batch.batch.submitted is None)
        if doubtful:
            text += f" ({doubtful} in doubt: submit or watch again)"
        if self.unpublished:
            text += f" (outputs of {show_count(self.unpublished, 'job')} not published)"
        return text

    @property
    def headline(self) -> str:
        """`40 jobs, 38 done, 2 failed`, and a line for each thing that a person should know."""
        text = f"{show_count(self.every, 'job')}, {self._states}"
        for halt in self.halts:
            text += f"\n{HALTED[halt.kind]} since {halt.since}: {halt.why}"
        if self.rehearsed:
            text += f"\nrehearsal: not containerised ({show_count(self.rehearsed, 'job')} ran on the host)"
        if self.being_removed:
            text += "\nit was removed, and the batch system did not confirm it: `fermigrid remove` again does the rest"
        elif self.stopped and self.unsent:
            text += "\nit was removed: nothing more of it is sent"
        elif lost := self.blocked - self.removed_unsent:
            text += f"\nnever sent, because what comes before failed or was removed: {show_count(lost, 'job')}"
        if self.removed_unsent and not self.stopped:
            jobs = show_count(self.removed_unsent, "job")
            text += f"\nremoved before they were sent: {jobs} (`fermigrid retry` sends them after all)"
        if self.held_unsent and not self.stopped:
            text += f"\nheld before they were sent: {show_count(self.held_unsent, 'job')} (until `fermigrid release`)"
        if self.returning:
            soonest = min(self.returning, key=lambda one: (one.at, one.job.name))
            why = f"such as {soonest.job.name}: {soonest.job.reason or soonest.why}"
            text += f"\nagain by a rule, {from_when(self.returning)}: {show_count(len(self.returning), 'job')}, {why}"
        if self.again:
            text += f"\nto be sent again: {show_count(self.again, 'job')}"
        for decision in self.retiring:
            text += f"\n{decision.kind} {decision.id} of {decision.time} goes on with `fermigrid watch`: {decision.why}"
        if self.asked:
            first = self.asked[0]
            jobs = show_count(len(self.asked), "held job")
            text += f"\nfor a person to decide: {jobs}, such as {first.name}: {first.why}: retry, or remove"
        if self.idle:
            jobs = show_count(len(self.idle), "job")
            text += f"\nstuck: {jobs}, such as {self.idle[0].name} on {self.idle[0].host}: {self.idle[0].why}"
        for site, node, why, since in self.bans[:NODES_SHOWN]:
            text += f"\nbanned since {since}: {node} of {site}: {why}"
        if bad := [node for node in self.nodes if node.times >= KEEPS_FAILING][:NODES_SHOWN]:
            told = ", ".join(f"{node.host} ({node.code} {WORDS[node.code]}: {node.times} times)" for node in bad)
            text += f"\nnodes that keep failing: {told}"
        return text

    @property
    def is_open(self) -> bool:
        """Is there a job that may still come to something, or be sent?"""
        return not self.stopped and (self.ended < self.jobs or self.unsent > self.blocked)

    @property
    def at_rest(self) -> bool:
        """Did the circuit breaker stop it, and has the last of its running jobs ended?"""
        on_the_way = sum(self.counts[state] for state in (State.RUNNING, State.ENDED, State.UNKNOWN))
        return any(halt.kind == "breaker" for halt in self.halts) and not on_the_way

    @property
    def good(self) -> bool:
        """Has no job failed, been removed or got lost, is none withheld, and has every output its final name?"""
        bad = sum(self.counts[state] for state in (State.FAILED, State.REMOVED, State.UNKNOWN)) + len(self.asked)
        bad += self.held_unsent + self.removed_unsent
        return bad + self.unpublished == 0 and not self.stopped

    @property
    def stuck(self) -> bool:
        """Is nothing left but jobs of which the batch system knows no more, or that wait for a person outside it?"""
        if self.undecided or self.again:
            return False
        left = self.counts[State.UNKNOWN] + len(self.asked)
        return left > 0 and self.ended + left == self.jobs


def from_when(returning: Sequence[Again]) -> str:
    """`from 2027-03-04 14:05 UTC on`: when the first of them is begun again."""
    return f"from {min(one.at for one in returning).astimezone(UTC):%Y-%m-%d %H:%M} UTC on"


Lines = tuple[list[str], list[list[object]]]  # header and rows


def steps_table(standing: Standing) -> Lines:
    """A line for each step and site, with the jobs that ended in an hour lately; and for what is not sent."""
    used = [state for state in ORDER if standing.counts[state]]
    rates = standing.pace.rates if standing.pace.goes_on else {}
    rows: list[list[object]] = []
    for one in standing.by_step:
        if jobs := sum(one.states.values()):
            rate = [show_rate(rates.get((one.step, one.site), 0.0))] if rates else []
            rows.append([one.step, one.site, jobs, *(one.states[state] for state in used), *rate])
    empty = [""] * (len(used) + bool(rates))
    rows += [[step, "(not sent)", n, *empty] for step, n in standing.unsent_by_step.items() if n]
    return ["step", "site", "jobs", *used, *["ended/h"] * bool(rates)], rows


def batches_table(standing: Standing) -> Lines:
    """A line for each batch; of one all of whose jobs are done again there is nothing to say."""
    used = [state for state in ORDER if standing.counts[state]]
    rows: list[list[object]] = [
        [b.batch.name, b.batch.site, b.words, b.batch.counted, *(b.counts[state] for state in used)]
        for b in standing.batches
        if b.batch.counted
    ]
    return ["batch", "site", "state", "jobs", *used], rows


def standing_of(f: Following) -> Standing:
    """Where the campaign stands, by its ledger."""
    ledger, counts, returning = f.ledger, f.ledger.counts(), tuple(coming_back(f))
    batches = []
    for batch in ledger.batches():
        by_state = {state: counts.get(batch.id, {}).get(state, 0) for state in ORDER}
        rest = batch.counted - sum(by_state.values())
        by_state[State.REMOVED if batch.removed else State.WAITING] += rest
        batches.append(BatchStanding(batch, by_state))
    by_id = {one.batch.id: one.counts for one in batches}
    for one in returning:
        by_id[one.job.batch][one.job.state] -= 1
        by_id[one.job.batch][State.WAITING] += 1
    campaign, runs = f.assembled.campaign, f.assembled.runs
    unsent = {name: count_jobs(step, runs) for name, step in campaign.steps.items()}
    open_ = undecided(f)
    known, withheld = progress_of(f.ledger, f.assembled, open_), WithheldBook(ledger).places()
    blocked = count_blocked(campaign, runs, known, f.assembled.trial, withheld)
    by_person = count_withheld(campaign, runs, known, f.assembled.trial, withheld)
    halts = tuple(ledger.halts())
    for each in batches:
        unsent[each.batch.step] -= each.batch.counted
    book, watching = RetryBook(ledger), ledger.watching()
    looked = datetime.fromisoformat(watching.looked).isoformat(timespec="seconds") if watching else None
    return Standing(
        tuple(batches),
        ledger.rehearsed(),
        ledger.waiting_to_publish(),
        tuple(ledger.node_failures()),
        ledger.campaign().stopped,
        sum(unsent.values()),
        halts,
        looked,
        blocked.total(),
        len(ledger.again()),
        tuple(decision for decision in ledger.decisions() if decision.finished is None),
        unsent,
        _pace(f, batches, {step: count - blocked[step] for step, count in unsent.items()}, halts),
        tuple(book.asked()),
        tuple(book.stuck()),
        tuple(ledger.bans()),
        by_person[Withheld.HELD],
        by_person[Withheld.REMOVED],
        bool(open_),
        returning,
    )


def _pace(f: Following, batches: Sequence[BatchStanding], unsent: Mapping[str, int], halts: Sequence[Halt]) -> Pace:
    """`unsent`: step -> jobs that are still to be sent."""
    left, aside, moving = dict(unsent), 0, 0
    for one in batches:
        withheld = one.counts[State.HELD] + one.counts[State.UNKNOWN]
        left[one.batch.step] += sum(count for state, count in one.counts.items() if not state.final) - withheld
        aside += withheld
        moving += one.counts[State.RUNNING] + one.counts[State.ENDED]
    record, now = f.ledger.campaign(), f.hand.now()
    begun = datetime.fromisoformat(record.created)
    stopped = "not all is sent" if halts else "" if moving else "nothing runs"
    ended = f.ledger.pace(since_when(begun, now))
    return pace_of(ended, {} if record.stopped else left, begun, now, aside=aside, stopped=stopped)


def top_failures(f: Following, standing: Standing, most: int = 5) -> list[tuple[str, int, str]]:
    """The most frequent reasons for which jobs failed: (reason, jobs, one of them). Those that differ in numbers alone
    are one."""
    if not standing.counts[State.FAILED]:
        return []
    found: dict[str, tuple[int, str, str]] = {}
    back = Counter(one.job.reason for one in standing.returning if one.job.state is State.FAILED)
    for reason, every, example in f.ledger.failure_reasons():
        if (jobs := every - back[reason]) <= 0:
            continue
        known, shown, first = found.get(alike := gist(reason), (0, reason, example))
        if example < first:
            shown, first = reason, example
        if known or len(found) < _REASONS:
            found[alike] = known + jobs, shown, first
    ordered = sorted(found.values(), key=lambda one: (-one[0], one[2]))
    return [(reason, jobs, example) for jobs, reason, example in ordered[:most]]
