"""Campaign + what the ledger says is done -> the work that is needed now. Pure; the one truth for what comes next.

First submission, the next step of a block, a submission that was cut short, a retry and a rollback are all the same
question. It is asked of runs, not of jobs: the runs of a block to which the same happened are looked at as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum

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
    PENDING = "pending"  # a job of it is on its way
    AGAIN = "again"  # a job of it is on its way, and not for the first time
    RESTING = "resting"  # none is, and one has not ended: it is held, or nobody has decided yet what becomes of it
    DONE = "done"  # each of its jobs has an accepted result
    FAILED = "failed"  # all have ended, and not all are accepted


_OPEN = frozenset((RunState.PENDING, RunState.AGAIN, RunState.RESTING))


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
        return not _OPEN.isdisjoint((self.rest, *self.runs.values()))


class Withheld(StrEnum):
    """What a person decided of a step of a run before it was sent."""

    HELD = "held"
    REMOVED = "removed"


Known = Mapping[tuple[str, str], Progress]  # by block and step; without an entry: nothing was made of it yet
Overrides = Mapping[tuple[str, str], Mapping[str, str]]  # (step, run) -> what replaces the campaign's parameters
Cares = Mapping[tuple[str, str], Care]  # (step, run) -> what it needs
_PATIENCE = 20  # runs that are ready wait for one that is on its way
Places = Mapping[tuple[str, str], Withheld]  # (step, run) of which nothing is sent
_NONE: Overrides = {}
_ALL: Places = {}
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
    withheld: Places = _ALL,
) -> Iterator[Work]:
    """The batches to submit now, in order.

    `sites[i]` is the site of block *i*; `first`: so many runs are the first block (a trial). A step is done for the
    runs that need it and have what they need of the steps before; one that never will have it is left out. They go
    together: they wait for runs of their block that are on their way, unless few of those are left, for as many as
    they are that are done again, and for none that is held; what comes late is another batch. So a run that fails
    costs no other run time, and a step of a block is a few batches. Runs with other parameters, or that need something
    else, are batches of their own.
    """
    for block, site in zip(_blocks(campaign, runs, first), sites, strict=True):
        groups = _groups(campaign, block, known, withheld)
        for name in campaign.steps:
            progress, count = known.get((block.name, name), Progress()), Counter[_Outlook]()
            for group in groups:
                if progress.state(group.runs[0].name) is RunState.NEEDED:
                    count[group.outlook[name]] += len(group.runs)
            if 0 < count[_Outlook.READY] >= _PATIENCE * count[_Outlook.WAITING] + count[_Outlook.AGAIN]:
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


def count_blocked(
    campaign: Campaign, runs: Sequence[Run], known: Known, first: int = 0, withheld: Places = _ALL
) -> Counter[str]:
    """The jobs that are never sent, because they were removed before, or their runs are not complete in what their step
    comes after; by step."""
    count = Counter[str]()
    for block in _blocks(campaign, runs, first):
        for group in _groups(campaign, block, known, withheld):
            for name, outlook in group.outlook.items():
                if outlook is _Outlook.BLOCKED:
                    pieces = known.get((block.name, name), Progress()).pieces
                    count[name] += count_jobs(campaign.steps[name], group.runs, pieces)
    return count


def count_withheld(
    campaign: Campaign, runs: Sequence[Run], known: Known, first: int, withheld: Places
) -> Counter[Withheld]:
    """The jobs that a person held or removed before they were sent."""
    count = Counter[Withheld]()
    for block, run, name in needed_places(campaign, runs, known, first) if withheld else ():
        if kind := withheld.get((name, run.name)):
            count[kind] += count_jobs(campaign.steps[name], [run], known.get((block, name), Progress()).pieces)
    return count


def needed_places(
    campaign: Campaign, runs: Sequence[Run], known: Known, first: int = 0
) -> Iterator[tuple[str, Run, str]]:
    """(block, run, step), wherever something is still to be sent."""
    for block in _blocks(campaign, runs, first):
        for name in campaign.steps:
            progress = known.get((block.name, name), Progress())
            for run in block.runs:
                if progress.state(run.name) is RunState.NEEDED:
                    yield block.name, run, name


class _Outlook(Enum):
    """What is to be expected of a run in a step."""

    READY = "ready"
    WAITING = "waiting"  # it is on its way, or what it waits for
    AGAIN = "again"  # so, but not for the first time
    RESTING = "resting"  # it may take as long as a person does
    BLOCKED = "blocked"  # what it waits for has failed
    EMPTY = "empty"  # it has no events, and so no job in it
    DONE = "done"
    FAILED = "failed"


_SETTLED = {
    RunState.PENDING: _Outlook.WAITING,
    RunState.AGAIN: _Outlook.AGAIN,
    RunState.RESTING: _Outlook.RESTING,
    RunState.DONE: _Outlook.DONE,
    RunState.FAILED: _Outlook.FAILED,
}


_WITHHELD = {Withheld.HELD: _Outlook.RESTING, Withheld.REMOVED: _Outlook.BLOCKED}


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


def _groups(campaign: Campaign, block: _Block, known: Known, withheld: Places) -> list[_Group]:
    """The runs of a block: those of which nothing special is known as one group, the others by what is known."""
    progress = {name: known.get((block.name, name), Progress()) for name in campaign.steps}
    special = {name for each in progress.values() for name in each.runs}
    special.update(run.name for run in block.runs if run.events == 0)  # it has no pieces
    if withheld:
        special.update(run.name for run in block.runs if any((name, run.name) in withheld for name in progress))
    alike: dict[tuple[object, ...], list[Run]] = {}
    usual = ("usual",)
    for run in block.runs:
        key: tuple[object, ...] = usual
        if run.name in special:
            key = (
                run.events == 0,
                *(each.runs.get(run.name, each.rest) for each in progress.values()),
                *(withheld.get((name, run.name)) for name in campaign.steps if withheld),
            )
        alike.setdefault(key, []).append(run)
    return [_Group(runs, _outlook(campaign, runs[0], progress, withheld)) for runs in alike.values()]


def _outlook(campaign: Campaign, run: Run, progress: Mapping[str, Progress], withheld: Places) -> dict[str, _Outlook]:
    found: dict[str, _Outlook] = {}
    for name, step in campaign.steps.items():
        state = progress[name].state(run.name)
        if state is not RunState.NEEDED:
            found[name] = _SETTLED[state]
        elif step.foreach != "run" and run.events == 0:
            found[name] = _Outlook.EMPTY
        elif kind := withheld.get((name, run.name)):
            found[name] = _WITHHELD[kind]
        else:
            found[name] = _of_needed(step, found, progress)
    return found


def _of_needed(step: Step, before: Mapping[str, _Outlook], progress: Mapping[str, Progress]) -> _Outlook:
    """`after: done` waits for what is to be sent, too: what was never sent has not failed for good."""
    waits = set[_Outlook]()
    for other, until in step.after.items():
        outlook = before[other]
        if outlook is _Outlook.BLOCKED or (outlook is _Outlook.FAILED and until == "accepted"):
            return _Outlook.BLOCKED
        if outlook is _Outlook.READY:
            outlook = _Outlook.AGAIN if progress[other].generations else _Outlook.WAITING
        waits.add(outlook)
    return next((one for one in (_Outlook.RESTING, _Outlook.WAITING, _Outlook.AGAIN) if one in waits), _Outlook.READY)


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
