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
    for index, site in enumerate(sites):
        block, part = block_name(index), tuple(runs[index * campaign.block : (index + 1) * campaign.block])
        lost: dict[str, frozenset[str]] = {}  # step -> runs that are not complete in it or in what it waited for
        for name, step in campaign.steps.items():
            incomplete = frozenset[str]().union(*(lost[other] for other in step.after))
            progress = known.get((block, name))
            lost[name] = incomplete | (progress.incomplete if progress else frozenset())
            if progress:
                continue
            before = [known.get((block, other)) for other in step.after if count_jobs(campaign.steps[other], part)]
            if not all(progress and progress.ended for progress in before):
                continue
            ready = tuple(run for run in part if run.name not in incomplete)
            if count_jobs(step, ready):
                yield Work(block, name, site, 0, ready)


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
