"""Where a campaign stands: counts of jobs by batch and state, from the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from fermigrid.advance import count_blocked
from fermigrid.progress import progress_of
from fermigrid.records import BatchRecord, Decision, Halt, NodeFailures
from fermigrid.report import WORDS
from fermigrid.split import count_jobs
from fermigrid.states import State
from fermigrid.units import show_count
from fermigrid.watch import Following

ORDER = (State.DONE, State.RUNNING, State.WAITING, State.HELD, State.ENDED, State.UNKNOWN, State.FAILED, State.REMOVED)
KEEPS_FAILING = 3  # starts that failed for a reason of the node's
NODES_SHOWN = 10
HALTED = {
    "breaker": "nothing more starts until `fermigrid resume`,",
    "trial": "the rest waits for `fermigrid resume`,",
    "space": "not all is sent: it waits for room,",
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

    @property
    def being_removed(self) -> bool:
        """Was the campaign removed, and the batch system has not been told so of all its batches?"""
        return self.stopped is not None and any(not one.batch.removed and one.words != "ended" for one in self.batches)

    @property
    def counts(self) -> dict[State, int]:
        """State -> number of jobs."""
        return {state: sum(batch.counts[state] for batch in self.batches) for state in ORDER}

    @property
    def jobs(self) -> int:
        """All jobs of the batches so far, each once however often it is done."""
        return sum(batch.batch.counted for batch in self.batches)

    @property
    def ended(self) -> int:
        """The jobs to which nothing more comes by itself."""
        return sum(count for state, count in self.counts.items() if state.final)

    @property
    def words(self) -> str:
        """`12 done, 3 running`; jobs of which nobody knows yet whether they were submitted are waiting, and said so."""
        text = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count) or "no jobs"
        doubtful = sum(batch.batch.counted for batch in self.batches if batch.batch.submitted is None)
        if doubtful:
            text += f" ({doubtful} in doubt: submit or watch again)"
        if self.unpublished:
            text += f" (outputs of {show_count(self.unpublished, 'job')} not published)"
        return text

    @property
    def headline(self) -> str:
        """`40 jobs, 38 done, 2 failed`, and more lines where jobs ran without a container or nodes keep failing."""
        text = f"{show_count(self.jobs, 'job')}, {self.words}"
        if self.rehearsed:
            text += f"\nrehearsal: not containerised ({show_count(self.rehearsed, 'job')} ran on the host)"
        if self.being_removed:
            text += "\nit was removed, and the batch system did not confirm it: `fermigrid remove` again does the rest"
        elif self.stopped and self.unsent:
            text += f"\nit was removed: nothing more of it is sent (not sent yet: {show_count(self.unsent, 'job')})"
        elif self.blocked:
            text += f"\nnever sent, because what comes before failed or was removed: {show_count(self.blocked, 'job')}"
        if self.again:
            text += f"\nto be sent again: {show_count(self.again, 'job')}"
        for decision in self.retiring:
            text += f"\n{decision.kind} {decision.id} of {decision.time} goes on with `fermigrid watch`: {decision.why}"
        for halt in self.halts:
            text += f"\n{HALTED[halt.kind]} since {halt.since}: {halt.why}"
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
        bad = sum(self.counts[state] for state in (State.FAILED, State.REMOVED, State.UNKNOWN))
        return bad + self.unpublished == 0 and not self.stopped

    @property
    def stuck(self) -> bool:
        """Is nothing left but jobs of which the batch system knows no more?"""
        return self.counts[State.UNKNOWN] > 0 and self.ended + self.counts[State.UNKNOWN] == self.jobs


def standing_of(f: Following) -> Standing:
    """Where the campaign stands, by its ledger."""
    ledger, counts = f.ledger, f.ledger.counts()
    batches = []
    for batch in ledger.batches():
        by_state = {state: counts.get(batch.id, {}).get(state, 0) for state in ORDER}
        rest = batch.counted - sum(by_state.values())
        by_state[State.REMOVED if batch.removed else State.WAITING] += rest
        batches.append(BatchStanding(batch, by_state))
    campaign, runs = f.assembled.campaign, f.assembled.runs
    every = sum(count_jobs(step, runs) for step in campaign.steps.values())
    return Standing(
        tuple(batches),
        ledger.rehearsed(),
        ledger.waiting_to_publish(),
        tuple(ledger.node_failures()),
        ledger.campaign().stopped,
        every - sum(one.batch.counted for one in batches),
        tuple(ledger.halts()),
        watching.looked if (watching := ledger.watching()) else None,
        count_blocked(campaign, runs, progress_of(f.ledger, f.assembled), f.assembled.trial),
        len(ledger.again()),
        tuple(decision for decision in ledger.decisions() if decision.finished is None),
    )
