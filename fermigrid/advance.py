"""Campaign + what the ledger says is done -> the work that is needed now. Pure; the one truth for what comes next.

First submission, the next step of a block and a submission that was cut short are all the same question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fermigrid.campaign import Campaign
from fermigrid.runs import Run
from fermigrid.split import count_jobs


@dataclass(frozen=True)
class Work:
    """A batch that is to be planned: these runs of a block, for one step, at one site."""

    block: str
    step: str
    site: str
    generation: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Progress:
    """What the ledger knows of one batch: has every job ended, and which runs have a job that is not done."""

    ended: bool
    incomplete: frozenset[str] = frozenset()


def block_name(index: int) -> str:
    """`b0000`."""
    return f"b{index:04d}"


def work_needed(
    campaign: Campaign,
    runs: Sequence[Run],
    sites: Sequence[str],
    known: Mapping[tuple[str, str], Progress],
) -> Iterator[Work]:
    """The batches to submit now, in order.

    `sites[i]` is the site of block *i*; `known` has an entry (block, step) for each batch that the ledger has. A step
    waits until all batches of the steps before it have ended, and then does the runs that are complete in them.
    """
    for block, site in zip(_blocks(campaign, runs), sites, strict=True):
        lost = _lost_before(campaign, block.name, known)
        for name, step in campaign.steps.items():
            if (block.name, name) in known:
                continue
            steps = [other for other in step.after if count_jobs(campaign.steps[other], block.runs)]
            before = [known.get((block.name, other)) for other in steps]
            if not all(progress and progress.ended for progress in before):
                continue
            ready = tuple(run for run in block.runs if run.name not in lost[name])
            if count_jobs(step, ready):
                yield Work(block.name, name, site, 0, ready)


def count_blocked(campaign: Campaign, runs: Sequence[Run], known: Mapping[tuple[str, str], Progress]) -> int:
    """The jobs that are never sent, because their runs are not complete in what their step comes after."""
    count = 0
    for block in _blocks(campaign, runs):
        for name, lost in _lost_before(campaign, block.name, known).items():
            if lost:
                count += count_jobs(campaign.steps[name], [run for run in block.runs if run.name in lost])
    return count


@dataclass(frozen=True)
class _Block:
    name: str
    runs: tuple[Run, ...]


def _blocks(campaign: Campaign, runs: Sequence[Run]) -> Iterator[_Block]:
    for index in range(blocks_of(campaign, runs)):
        yield _Block(block_name(index), tuple(runs[index * campaign.block : (index + 1) * campaign.block]))


def _lost_before(
    campaign: Campaign, block: str, known: Mapping[tuple[str, str], Progress]
) -> dict[str, frozenset[str]]:
    """Step -> runs that are not complete in what it comes after, or in what that came after."""
    before, lost = dict[str, frozenset[str]](), dict[str, frozenset[str]]()
    for name, step in campaign.steps.items():
        before[name] = frozenset[str]().union(*(lost[other] for other in step.after))
        progress = known.get((block, name))
        lost[name] = before[name] | (progress.incomplete if progress else frozenset())
    return before


def all_work(campaign: Campaign, runs: Sequence[Run], sites: Sequence[str]) -> Iterator[Work]:
    """Every batch of a campaign, as if every job were good: what `render` shows."""
    for index, site in enumerate(sites):
        part = tuple(runs[index * campaign.block : (index + 1) * campaign.block])
        for name, step in campaign.steps.items():
            if count_jobs(step, part):
                yield Work(block_name(index), name, site, 0, part)


def blocks_of(campaign: Campaign, runs: Sequence[Run]) -> int:
    """How many blocks a campaign has."""
    return -(-len(runs) // campaign.block)
