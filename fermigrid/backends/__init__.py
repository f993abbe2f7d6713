"""The batch systems behind one Protocol. A backend is a module that satisfies `Backend`; `load` finds it by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, cast

from fermigrid.states import Seen


@dataclass(frozen=True)
class RenderedBatch:
    """A batch on disk, ready to be sent.

    `plan_dir` holds the plan's files (immutable), `work_dir` is where its jobs' logs and outputs come back
    (one folder for each shard, made beforehand), `event_log` is the block's. `options` are the site's
    settings for its backend (site file, section of that name): schedd name, slots, time-outs.
    """

    batch_id: str
    name: str  # "<campaign>.<block>.<step>.g<generation>": for people
    plan_dir: Path
    work_dir: Path
    event_log: Path
    jobs: int
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Handle:
    """What a backend needs to know a submitted batch again. Stored in the ledger; all text is tame.

    `where` is the schedd's name (htcondor) or empty (local), `cluster` its number there.
    """

    batch: RenderedBatch
    where: str
    cluster: int


@dataclass(frozen=True)
class JobSeen:
    """One thing that a backend saw happen to the job with this index (from 0) of a batch.

    `starts` counts executions where known. `exit_code`/`signal` belong to ENDED (the worker's exit code) and to an
    EVICTED that the worker's end caused, `reason` and `code` (hold code and subcode as `12/2`) to HELD, REMOVED and
    EVICTED.
    """

    batch_id: str
    index: int
    seen: Seen
    time: datetime  # aware, UTC
    host: str = ""
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    code: str = ""


@dataclass(frozen=True)
class Cursor:
    """How far each event log was read: file -> byte offset. The only state of `observe`."""

    offsets: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Allowed:
    """What a batch may do. `places`: of its jobs in the queue at a time, None: nobody limits that, or nobody can;
    `stay`: so many seconds after its start a job's place is not used anew; `idle`: of its jobs that wait there;
    `banned`: nodes that get none of it."""

    places: int | None = None
    stay: int = 0
    idle: int | None = None
    priority: int = 0
    banned: tuple[str, ...] = ()

    @property
    def starts(self) -> float | None:
        """Jobs that may begin in a minute; None: as many as there are places."""
        return self.places / self.stay * 60 if self.places and self.stay else None


@dataclass(frozen=True)
class Observation:
    """What happened since the cursor, in order; `problems` are sentences for a person (a silent schedd)."""

    seen: tuple[JobSeen, ...]
    cursor: Cursor
    problems: tuple[str, ...] = ()


Indices = Sequence[int] | None  # None: all jobs of the batch
GIVEN_UP = "it was held"  # the reason of jobs that are removed because no release cures them begins so
TRIED_AGAIN = "fermigrid's policy tries it again"  # the reason of jobs that the batch system released by a rule
PAUSED = "paused by fermigrid"  # the reason of jobs that `pause` holds begins so


class Backend(Protocol):
    """A batch system. Every method may raise BackendUnavailable (nothing known) or SubmissionRefused (it said no)."""

    def submit(self, batch: RenderedBatch) -> Handle:
        """Send the batch: all of it or nothing. SubmissionDoubt when it was sent and no answer came."""
        ...

    def find(self, batch: RenderedBatch) -> Handle | None:
        """Did it land? Looks everywhere that remembers; None only when every place answered.

        SubmissionDoubt when it is there more than once: the message names the places and what to do.
        """
        ...

    def take_back(self, batch: RenderedBatch) -> None:
        """Take out what landed of a batch for which `find` says None and that is not to be sent any more."""
        ...

    def observe(self, handles: Sequence[Handle], cursor: Cursor) -> Observation:
        """What happened since `cursor`; idempotent. Reads some MB a call at most: call until the cursor stays."""
        ...

    def resolve(self, handles: Sequence[Handle]) -> Observation:
        """How every job stands, whatever was seen of it before: for when its events may be lost. Costs a query of all
        jobs; a system that does not answer is a problem of the observation."""
        ...

    def explain(self, handle: Handle, index: int) -> tuple[str, ...]:
        """Why the job waits or is held, as the batch system knows it now: sentences.

        Where a key of the site or of the step decides, it stands in parentheses: `(htcondor.grid.queue)`,
        `(resources.memory)`. Its file and line are put there.
        """
        ...

    def explain_removal(self, reason: str, code: str) -> tuple[str, ...]:
        """What the reason means for which a job was taken out of the queue, and what to do; `code`: of its last hold.

        Asks nobody; sentences as of `explain`.
        """
        ...

    def remove(self, handles: Sequence[Handle], indices: Indices = None) -> None: ...

    def hold(self, handles: Sequence[Handle], indices: Indices = None) -> None: ...

    def release(self, handles: Sequence[Handle], indices: Indices = None) -> None: ...

    def pause(self, handles: Sequence[Handle]) -> None:
        """Keep waiting jobs from starting, also those that come back from a machine; running ones go on."""
        ...

    def resume(self, handles: Sequence[Handle]) -> None:
        """What `pause` keeps from starting may start; what a person holds stays held."""
        ...

    def adjust(self, wanted: Sequence[tuple[Handle, Allowed]], /) -> None:
        """Make what batches may do this, from now on, also for jobs that wait. Again is harmless, and so is it for a
        batch that has left the queue. What runs goes on."""
        ...

    def used(self, handle: Handle, indices: Sequence[int], /) -> Mapping[int, float]:
        """CPU seconds that running jobs have used so far, as far as that is known now; others are left out."""
        ...

    def silence(self, handle: Handle, /) -> str:
        """Why the batch system of this batch cannot be asked now, in words; "" when it answers."""
        ...


BACKENDS = {
    "dirac": "fermigrid.backends.dirac",
    "htcondor": "fermigrid.backends.htcondor",
    "local": "fermigrid.backends.local",
}


# Those that take all jobs of a batch together: no place is given or taken later, what waits cannot be kept from
# starting, and priority and bans are those with which a batch was sent.
WHOLE = frozenset({"dirac"})


def load(name: str) -> Backend:
    """The backend module `name` (a key of BACKENDS), imported when first needed."""
    return cast(Backend, importlib.import_module(BACKENDS[name]))
