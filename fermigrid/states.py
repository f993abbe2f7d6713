"""Job states and what moves a job from one to the next. Pure.

A backend reports what it saw; this table says what the ledger makes of it. That a job is *done* is never the batch
system's word: the worker's report decides (`report.py`).
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job is, as the ledger knows it."""

    WAITING = "waiting"  # submitted; perhaps not yet materialized
    RUNNING = "running"
    HELD = "held"
    ENDED = "ended"  # left the queue by itself; its report is not read yet
    DONE = "done"  # one attempt accepted
    FAILED = "failed"  # ended with a report that is not good, or with none
    REMOVED = "removed"
    UNKNOWN = "unknown"  # the batch system does not know it and its event log does not say: never taken for failed

    @property
    def final(self) -> bool:
        """Nothing more comes by itself."""
        return self in (State.DONE, State.FAILED, State.REMOVED)


ORDER = (  # in which they are shown: what went well, what is on its way, what needs a person, what is lost
    State.DONE, State.RUNNING, State.WAITING, State.HELD, State.ENDED, State.UNKNOWN, State.FAILED, State.REMOVED
)  # fmt: skip


class Seen(StrEnum):
    """What a backend can see happen to a job."""

    SUBMITTED = "submitted"
    STARTED = "started"
    EVICTED = "evicted"  # also: a container that could not start, a lost node
    HELD = "held"
    RELEASED = "released"
    ENDED = "ended"
    REMOVED = "removed"
    LOST = "lost"


_NEXT = {
    Seen.SUBMITTED: State.WAITING,
    Seen.STARTED: State.RUNNING,
    Seen.EVICTED: State.WAITING,
    Seen.HELD: State.HELD,
    Seen.RELEASED: State.WAITING,
    Seen.ENDED: State.ENDED,
    Seen.REMOVED: State.REMOVED,
    Seen.LOST: State.UNKNOWN,
}


def next_state(now: State, seen: Seen) -> State:
    """The state after `seen`; a final state is left by nothing (late and repeated events are harmless).

    One exception: a job that was removed, and whose end arrives, ended first.
    """
    if now.final:
        return State.ENDED if (now, seen) == (State.REMOVED, Seen.ENDED) else now
    if now is State.ENDED:
        return now
    return _NEXT[seen]
