"""Why a job of a campaign is in no batch, in words: what its step comes after failed, or has not ended yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fermigrid.advance import RunState, Withheld, block_name, block_of, runs_of_block
from fermigrid.gate import TRIAL
from fermigrid.plan import Assembled, job_name
from fermigrid.progress import names_of, progress_of
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.retire import blocks_at_work
from fermigrid.retrying import coming_back, undecided
from fermigrid.split import count_jobs, pieces_of, run_of
from fermigrid.standing import HALTED, from_when
from fermigrid.states import State
from fermigrid.watch import Following, why_not_sent
from fermigrid.withheld_book import WithheldBook

_SHOWN = 3  # jobs that stand in the way; more are counted


def explain_unsent(f: Following, job: str) -> tuple[str, ...]:
    """Sentences; none for a name that no job of the campaign has."""
    planned = _find(f.assembled, job)
    return tuple(_explain(f, *planned)) if planned else ()


def _find(a: Assembled, job: str) -> tuple[str, str, str] | None:
    """Block, step and run of a job."""
    for name, step in a.campaign.steps.items():
        for index, run in enumerate(a.runs):
            if not job.startswith(job_name(name, run.name, "")):
                continue
            if any(job == job_name(name, run.name, piece.name) for piece in pieces_of(step, run)):
                return block_of(a.campaign, index, a.trial), name, run.name
    return None


def _explain(f: Following, block: str, step: str, run: str) -> Iterator[str]:
    a = f.assembled
    batches = [batch for batch in f.ledger.batches() if batch.block == block]
    lost = list(_lost(f, batches, step, run))
    if stopped := f.ledger.campaign().stopped:
        yield f"not sent: the campaign was removed on {stopped}"
    elif kind := WithheldBook(f.ledger).places().get((step, run)):
        back = "fermigrid retry" if kind is Withheld.REMOVED else "fermigrid release"
        words = WithheldBook(f.ledger).since(step, run)
        yield f"not sent: it was {kind} {words}, before it was sent; `{back}` lets it be sent"
    elif lost:
        yield f"not sent, because {_some(lost)}"
    elif block in blocks_at_work(f.ledger):
        yield f"not sent yet: what is done again of block {block} is taken out of the way first"
    else:
        part = runs_of_block(a.campaign, a.runs, block, a.trial)
        after = [name for name in a.campaign.steps[step].after if count_jobs(a.campaign.steps[name], part)]
        waits = [words for name in after for words in _goes_on(f, block, name, batches, run)]
        mine = [
            halt for halt in f.ledger.halts() if halt.kind != TRIAL or block != block_name(0)
        ]  # the trial itself goes on
        halts = [f"{HALTED[halt.kind]} since {halt.since}: {halt.why}" for halt in mine]
        if waits:
            yield f"not sent yet: it waits for the end of {' and '.join(waits)}"
        yield from (f"not sent yet: {words}" for words in halts)
        if not waits and not halts:
            yield f"not sent yet: {why_not_sent(f, block, step) or '`fermigrid watch` sends it'}"


def _lost(f: Following, batches: Sequence[BatchRecord], step: str, run: str) -> Iterator[str]:
    """Why a run does not come to a step: jobs before it that did not end well, with the reason."""
    for name, until in f.assembled.campaign.steps[step].after.items():
        yield from _lost(f, batches, name, run)
        if WithheldBook(f.ledger).places().get((name, run)) is Withheld.REMOVED:
            yield f"{name} of {run} was removed before it was sent"
        if until == "accepted":
            for batch in batches:
                if batch.step == name:
                    yield from _lost_of(f, batch, run)


def _lost_of(f: Following, batch: BatchRecord, run: str) -> Iterator[str]:
    """The jobs of a run that did not end well; a batch that was removed before it had such rows."""
    ended = [job for job in _not_done(f, batch, run) if job.state.final]
    for job in ended:
        how = "failed" if job.state is State.FAILED else "was removed"
        yield f"{job.name} {how}" + (f" ({job.reason})" if job.reason else "")
    if batch.removed and not ended and run in names_of(f.assembled, batch):
        progress = progress_of(f.ledger, f.assembled, undecided(f))[batch.block, batch.step]
        if progress.state(run) is RunState.FAILED:
            yield f"{batch.name} was removed on {batch.removed}"


def _not_done(f: Following, batch: BatchRecord, run: str) -> list[JobRecord]:
    """The jobs of a run that did not end well, and that no rule may begin again."""
    rest = [job for job in f.ledger.jobs_not_done(batch.id) if _is_of(f, job, [batch], run)]
    open_ = undecided(f).get(batch.id, ()) if rest else ()
    return [job for job in rest if job.name not in open_]


def _goes_on(f: Following, block: str, step: str, batches: Sequence[BatchRecord], run: str) -> Iterator[str]:
    """What a run waits for in a step before its own: its jobs that rest, or the others of its block."""
    progress, counts = progress_of(f.ledger, f.assembled, undecided(f)).get((block, step)), f.ledger.counts()
    mine = [batch for batch in batches if batch.step == step]
    rest = [job for batch in mine for job in _not_done(f, batch, run) if job.state in (State.HELD, State.UNKNOWN)]
    if WithheldBook(f.ledger).places().get((step, run)) is Withheld.HELD:
        yield f"{step} of {run}, which was held before it was sent: `fermigrid release` lets it be sent"
    elif back := [one for one in coming_back(f) if _is_of(f, one.job, mine, run)]:
        yield _some([f"{one.job.name}, which a rule begins again {from_when([one])} ({one.why})" for one in back])
    elif rest:
        yield _some([f"{job.name}, which is {job.state}" + f" ({job.reason})" * bool(job.reason) for job in rest])
    elif progress is None:
        yield f"{step} in block {block}, which is not sent yet"
    elif progress.pending:
        ended = sum(count for batch in mine for state, count in counts.get(batch.id, {}).items() if state.final)
        yield f"{step} in block {block} (so far {ended} of {sum(batch.counted for batch in mine)})"
    elif RunState.NEEDED in progress.runs.values():
        yield f"{step} in block {block}, of which something is still to be sent"


def _is_of(f: Following, job: JobRecord, batches: Sequence[BatchRecord], run: str) -> bool:
    """Is it a job of a run in one of these batches?"""
    step = next((batch.step for batch in batches if batch.id == job.batch), None)
    return step is not None and run_of(job.name, step, f.assembled.campaign.steps[step]) == run


def _some(words: Sequence[str]) -> str:
    more = f"; and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return "; ".join(words[:_SHOWN]) + more
