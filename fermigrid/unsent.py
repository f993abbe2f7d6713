"""Why a job of a campaign is in no batch, in words: what its step comes after failed, or has not ended yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fermigrid.advance import block_name
from fermigrid.campaign import Campaign
from fermigrid.plan import Assembled, job_name
from fermigrid.records import BatchRecord
from fermigrid.split import count_jobs, pieces_of
from fermigrid.states import State
from fermigrid.watch import Following, progress_of, run_of

_SHOWN = 3  # jobs that stand in the way; more are counted


def explain_unsent(f: Following, job: str) -> tuple[str, ...]:
    """Sentences; none for a name that no job of the campaign has."""
    planned = _find(f.assembled, job)
    return tuple(_explain(f, *planned)) if planned else ()


def _find(a: Assembled, job: str) -> tuple[int, str, str] | None:
    """Number of the block, step and run of a job."""
    for name, step in a.campaign.steps.items():
        for index, run in enumerate(a.runs):
            if not job.startswith(job_name(name, run.name, "")):
                continue
            if any(job == job_name(name, run.name, piece.name) for piece in pieces_of(step, run)):
                return index // a.campaign.block, name, run.name
    return None


def _explain(f: Following, index: int, step: str, run: str) -> Iterator[str]:
    block, campaign = block_name(index), f.assembled.campaign
    batches = {batch.step: batch for batch in f.ledger.batches() if batch.block == block}
    lost = [words for name in _before(campaign, step) if name in batches for words in _lost(f, batches[name], run)]
    if stopped := f.ledger.campaign().stopped:
        yield f"not sent: the campaign was removed on {stopped}"
    elif lost:
        yield f"not sent, because {_some(lost)}"
    else:
        part = f.assembled.runs[index * campaign.block : (index + 1) * campaign.block]
        after = [name for name in campaign.steps[step].after if count_jobs(campaign.steps[name], part)]
        waits = [words for name in after for words in _goes_on(f, block, name, batches.get(name))]
        yield (
            f"not sent yet: it waits for the end of {' and '.join(waits)}"
            if waits
            else ("not sent yet: `fermigrid watch` sends it")
        )


def _before(campaign: Campaign, step: str) -> list[str]:
    """The steps that a step comes after, and those that they come after."""
    names = set(campaign.steps[step].after)
    for name in reversed(campaign.steps):
        if name in names:
            names.update(campaign.steps[name].after)
    return [name for name in campaign.steps if name in names]


def _lost(f: Following, batch: BatchRecord, run: str) -> Iterator[str]:
    """The jobs of a run that did not end well, with the reason; a batch that was removed before it had such rows."""
    split = f.assembled.campaign.steps[batch.step].split is not None
    jobs = [job for job in f.ledger.jobs_not_done(batch.id) if run_of(job.name, batch.step, split) == run]
    ended = [job for job in jobs if job.state.final]
    for job in ended:
        how = "failed" if job.state is State.FAILED else "was removed"
        yield f"{job.name} {how}" + (f" ({job.reason})" if job.reason else "")
    if batch.removed and not ended and run in progress_of(f)[batch.block, batch.step].incomplete:
        yield f"{batch.name} was removed on {batch.removed}"


def _goes_on(f: Following, block: str, step: str, batch: BatchRecord | None) -> Iterator[str]:
    """A step of a block, if it has not ended, and how far it is."""
    if batch is None:
        yield f"{step} in block {block}, which is not sent yet"
    elif not progress_of(f)[block, step].ended:
        ended = sum(count for state, count in f.ledger.counts().get(batch.id, {}).items() if state.final)
        yield f"{step} in block {block} (so far {ended} of {batch.jobs})"


def _some(words: Sequence[str]) -> str:
    more = f"; and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return "; ".join(words[:_SHOWN]) + more
