"""What the ledger keeps: campaigns, batches, jobs, attempts, messages. Pure."""

from __future__ import annotations

from dataclasses import dataclass

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
    """A batch as the ledger knows it; `submitted` is None while nobody knows whether it landed."""

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


@dataclass(frozen=True)
class JobRecord:
    """A job to which something happened."""

    batch: str
    index: int
    name: str
    state: State
    since: str
    starts: int = 0
    host: str = ""
    reason: str = ""
    code: str = ""


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
