"""What the ledger keeps: campaigns, batches, jobs, attempts, messages. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from fermigrid.states import State


@dataclass(frozen=True)
class CampaignRecord:
    """The campaign as it was submitted; enough to assemble it again."""

    name: str
    instance: str
    digest: str
    site: str | None
    parameters: dict[str, str]
    folder: str
    search: tuple[str, ...]
    created: str
    version: str
    stopped: str | None = None
    team: str | None = None  # the group that the run folder is shared with; None: it is private


@dataclass(frozen=True)
class BatchRecord:
    """A batch as the ledger knows it; `submitted` is None while nobody knows whether it landed.

    `runs`: those that it does, None: all of its block; of a run in `pieces` only those. `parameters`: what replaced the
    campaign's in it. `retired`: how many of its jobs do not count any more, because they are done again.
    """

    id: str
    block: str
    step: str
    generation: int
    site: str
    backend: str
    name: str
    digest: str
    jobs: int
    options: dict[str, object]
    submitted: str | None = None
    place: str | None = None
    cluster: int | None = None
    removed: str | None = None
    runs: tuple[str, ...] | None = None
    pieces: Mapping[str, frozenset[str]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    retired: int = 0

    @property
    def counted(self) -> int:
        """The jobs that count."""
        return self.jobs - self.retired


@dataclass(frozen=True)
class Decision:
    """What is done again, who wanted it, when, why. `kind`: retry or rollback; `finished`: None until its jobs have
    left the queue and their outputs are out of the way."""

    id: int
    time: str
    who: str
    kind: str
    why: str
    finished: str | None


@dataclass(frozen=True)
class JobRecord:
    """A job to which something happened. `retired`: the decision by which it does not count any more; `successor`: the
    batch that does it again, None: that is still to be sent."""

    batch: str
    index: int
    name: str
    state: State
    since: str
    starts: int = 0
    host: str = ""
    reason: str = ""
    code: str = ""
    retired: int | None = None
    successor: str | None = None


@dataclass(frozen=True)
class Asked:
    """A job that left the queue and waits for a person. `why`: how it ended, by the rules; `reason`: of its hold."""

    batch: str
    index: int
    name: str
    since: str
    why: str
    reason: str


@dataclass(frozen=True)
class Again:
    """A job that ended badly, and that a rule begins again from a moment on. `why`: how it ended, by the rules."""

    job: JobRecord
    at: datetime
    why: str


@dataclass(frozen=True)
class StuckJob:
    """A job that runs and does nothing; `why` in words."""

    batch: str
    index: int
    name: str
    why: str
    host: str = ""


@dataclass(frozen=True)
class NodeEnds:
    """How executions ended on nodes: (hour, site, node) -> good ones, 2027-03-04T05; (time, site, node) of those that
    ended by a fault of the node."""

    good: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    bad: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True)
class NodeFailures:
    """How many starts on a machine ended with one exit code that charges the machine."""

    host: str
    code: int
    times: int


@dataclass(frozen=True)
class MessageRecord:
    """A start or end message that has not been sent yet. `due`: not before, seconds since 1970; None: new."""

    id: str
    batch: str
    job: str
    kind: str
    doubt: bool
    text: str
    due: int | None
    reason: str


@dataclass(frozen=True)
class AttemptRecord:
    """A report that came back."""

    job: str
    attempt: str
    batch: str
    index: int
    exit: int
    accepted: bool
    published: bool
    report: str
    retired: int | None = None  # by which decision it does not count any more


@dataclass(frozen=True)
class Watching:
    """What `watch` saw last: times as text; `silent` is since when a batch system has not answered, and `why`; `cared`:
    when people were told what they must know, if there was anything."""

    looked: str
    changed: str
    asked: str | None = None
    silent: str | None = None
    why: str = ""
    cared: str | None = None


@dataclass(frozen=True)
class WatchJob:
    """The job of a schedd that watches the campaign: `place` is the schedd; times as text."""

    place: str
    cluster: int
    since: str
    ended: str | None = None


@dataclass(frozen=True)
class Halt:
    """Why nothing more of a campaign is sent. `kind`: breaker, trial or space."""

    kind: str
    since: str
    why: str


@dataclass(frozen=True)
class Told:
    """What a person was told, or could not be told, by a route; `tried` in seconds since 1970."""

    kind: str
    about: str
    route: str
    tried: int
    told: bool
