"""Campaign + what the ledger says is done -> the work that is needed now. Pure; the one truth for what comes next.

First submission, the next step of a block, a submission that was cut short, a retry and a rollback are all the same
question. It is asked of runs, not of jobs: the runs of a block to which the same happened are looked at as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from fermigrid.campaign import Campaign, Step
from fermigrid.runs import Run
from fermigrid.split import count_jobs


@dataclass(frozen=True)
class Care:
    """What a step of a run needs because its jobs did not end well: `memory` in bytes, another `site` than its block's.
    None: nothing else than the others."""

    memory: int | None = None
    site: str | None = None


@dataclass(frozen=True)
class Work:
    """A batch that is to be planned: these runs of a block, for one step, at one site.

    `pieces`: run -> the pieces that are to be done; a run that is not in it is done whole. `parameters`: what replaces
    the campaign's parameters, and `version`, in this batch. `memory`: bytes, if more than the step asks for; `retries`:
    how often a job of it may be begun again by the batch system, None: as often as the campaign says.
    """

    block: str
    step: str
    site: str
    generation: int
    runs: tuple[Run, ...]
    pieces: Mapping[str, frozenset[str]] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None
    retries: int | None = None


class RunState(Enum):
    """How far a run is in a step, by the ledger."""

    NEEDED = "needed"  # it is in no batch yet, or is to be done again
    PENDING = "pending"  # a job of it has not ended
    DONE = "done"  # each of its jobs has an accepted result
    FAILED = "failed"  # all have ended, and not all are accepted


@dataclass(frozen=True)
class Progress:
    """What the ledger knows of one step of a block, which has had so many generations.

    `runs`: the runs whose state is not `rest`. `pieces`: of a run that is needed, the pieces that are; without an entry
    all of it is.
    """

    generations: int = 0
    rest: RunState = RunState.NEEDED
    runs: Mapping[str, RunState] = field(default_factory=dict)
    pieces: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def state(self, run: str) -> RunState:
        """Of one run."""
        return self.runs.get(run, self.rest)

    @property
    def pending(self) -> bool:
        """Has a job not ended?"""
        return self.rest is RunState.PENDING or RunState.PENDING in self.runs.values()


Known = Mapping[tuple[str, str], Progress]  # by block and step; without an entry: nothing was made of it yet
Overrides = Mapping[tuple[str, str], Mapping[str, str]]  # (step, run) -> what replaces the campaign's parameters
Cares = Mapping[tuple[str, str], Care]  # (step, run) -> what it needs
_NONE: Overrides = {}
_USUAL: Cares = {}


def block_name(index: int) -> str:
    """`b0000`."""
    return f"b{index:04d}"


def work_needed(
    campaign: Campaign,
    runs: Sequence[Run],
    sites: Sequence[str],
    known: Known,
    first: int = 0,
    overrides: Overrides = _NONE,
    cares: Cares = _USUAL,
) -> Iterator[Work]:
    """The batches to submit now, in order.

    `sites[i]` is the site of block *i*; `first`: so many runs are the first block (a trial). A step is done for the
    runs that need it, when none of them waits any more for a step before it: each has what it needs of that, or never
    will have it and is left out. Runs with other parameters, or that need something else, are another batch.
    """
    for block, site in zip(_blocks(campaign, runs, first), sites, strict=True):
        groups = _groups(campaign, block, known)
        for name in campaign.steps:
            outlooks = {group.outlook[name] for group in groups}
            if _Outlook.READY in outlooks and _Outlook.WAITING not in outlooks:
                progress = known.get((block.name, name), Progress())
                here = {run.name: group.outlook[name] for group in groups for run in group.runs}
                yield from _works(Work(block.name, name, site, 0, block.runs), here, progress, overrides, cares)


def _works(
    whole: Work, outlooks: Mapping[str, _Outlook], progress: Progress, overrides: Overrides, cares: Cares
) -> Iterator[Work]:
    """Of a step of a block, what is ready: a batch for each set of parameters and needs that has jobs."""
    alike: dict[tuple[tuple[tuple[str, str], ...], Care], list[Run]] = {}
    usual = Care()
    for run in whole.runs:
        if outlooks[run.name] in (_Outlook.READY, _Outlook.EMPTY):
            own = overrides.get((whole.step, run.name)) if overrides else None
            care = cares.get((whole.step, run.name), usual) if cares else usual
            alike.setdefault((tuple(sorted(own.items())) if own else (), care), []).append(run)
    generation = progress.generations
    for (parameters, care), part in alike.items():
        if any(outlooks[run.name] is _Outlook.READY for run in part):
            pieces = {run.name: progress.pieces[run.name] for run in part if run.name in progress.pieces}
            work = replace(whole, generation=generation, runs=tuple(part), pieces=pieces, parameters=dict(parameters))
            yield replace(work, site=care.site or whole.site, memory=care.memory)
            generation += 1


def count_blocked(campaign: Campaign, runs: Sequence[Run], known: Known, first: int = 0) -> Counter[str]:
    """The jobs that are never sent, because their runs are not complete in what their step comes after; by step."""
    count = Counter[str]()
    for block in _blocks(campaign, runs, first):
        for group in _groups(campaign, block, known):
            for name, outlook in group.outlook.items():
                if outlook is _Outlook.BLOCKED:
                    pieces = known.get((block.name, name), Progress()).pieces
                    count[name] += count_jobs(campaign.steps[name], group.runs, pieces)
    return count


class _Outlook(Enum):
    """What is to be expected of a run in a step."""

    READY = "ready"
    WAITING = "waiting"
    BLOCKED = "blocked"  # what it waits for has failed
    PENDING = "pending"
    EMPTY = "empty"  # it has no events, and so no job in it
    DONE = "done"
    FAILED = "failed"


_SETTLED = {
    RunState.PENDING: _Outlook.PENDING,
    RunState.DONE: _Outlook.DONE,
    RunState.FAILED: _Outlook.FAILED,
}


@dataclass(frozen=True)
class _Group:
    """Runs that are equally far in all steps."""

    runs: Sequence[Run]
    outlook: Mapping[str, _Outlook]


@dataclass(frozen=True)
class _Block:
    name: str
    runs: tuple[Run, ...]


def _blocks(campaign: Campaign, runs: Sequence[Run], first: int) -> Iterator[_Block]:
    for index, part in enumerate(parts_of(campaign, runs, first)):
        yield _Block(block_name(index), part)


def _groups(campaign: Campaign, block: _Block, known: Known) -> list[_Group]:
    """The runs of a block: those of which nothing special is known as one group, the others by what is known."""
    progress = {name: known.get((block.name, name), Progress()) for name in campaign.steps}
    special = {name for each in progress.values() for name in each.runs}
    special.update(run.name for run in block.runs if run.events == 0)  # it has no pieces
    alike: dict[tuple[object, ...], list[Run]] = {}
    usual = ("usual",)
    for run in block.runs:
        key: tuple[object, ...] = usual
        if run.name in special:
            key = (run.events == 0, *(each.runs.get(run.name, each.rest) for each in progress.values()))
        alike.setdefault(key, []).append(run)
    return [_Group(runs, _outlook(campaign, runs[0], progress)) for runs in alike.values()]


def _outlook(campaign: Campaign, run: Run, progress: Mapping[str, Progress]) -> dict[str, _Outlook]:
    found: dict[str, _Outlook] = {}
    for name, step in campaign.steps.items():
        state = progress[name].state(run.name)
        if state is not RunState.NEEDED:
            found[name] = _SETTLED[state]
        elif step.foreach != "run" and run.events == 0:
            found[name] = _Outlook.EMPTY
        else:
            found[name] = _of_needed(step, found)
    return found


def _of_needed(step: Step, before: Mapping[str, _Outlook]) -> _Outlook:
    """`after: done` waits for what is to be sent, too: what was never sent has not failed for good."""
    waits = False
    for other, until in step.after.items():
        outlook = before[other]
        if outlook is _Outlook.BLOCKED or (outlook is _Outlook.FAILED and until == "accepted"):
            return _Outlook.BLOCKED
        waits = waits or outlook in (_Outlook.READY, _Outlook.WAITING, _Outlook.PENDING)
    return _Outlook.WAITING if waits else _Outlook.READY


def all_work(campaign: Campaign, runs: Sequence[Run], sites: Sequence[str]) -> Iterator[Work]:
    """Every batch of a campaign, as if every job were good: what `render` shows."""
    for index, (site, part) in enumerate(zip(sites, parts_of(campaign, runs), strict=True)):
        for name, step in campaign.steps.items():
            if count_jobs(step, part):
                yield Work(block_name(index), name, site, 0, part)


def parts_of(campaign: Campaign, runs: Sequence[Run], first: int = 0) -> Iterator[tuple[Run, ...]]:
    """The runs of each block; `first`: so many runs are the first block (a trial), 0: it is like the others."""
    if first:
        yield tuple(runs[:first])
    for start in range(first, len(runs), campaign.block):
        yield tuple(runs[start : start + campaign.block])


def runs_of_block(campaign: Campaign, runs: Sequence[Run], block: str, first: int = 0) -> Sequence[Run]:
    """The runs of one block."""
    index = int(block[1:])
    if first and not index:
        return runs[:first]
    start = first + (index - (first > 0)) * campaign.block
    return runs[start : start + campaign.block]


def block_of(campaign: Campaign, run: int, first: int = 0) -> str:
    """The block of the run with this index."""
    return block_name(0 if run < first else (first > 0) + (run - first) // campaign.block)


def blocks_of(campaign: Campaign, runs: Sequence[Run], first: int = 0) -> int:
    """How many blocks a campaign has."""
    return -(-(len(runs) - first) // campaign.block) + (first > 0)
