"""How far the runs of a campaign are in its steps, by the ledger: what `advance.py` wants to know."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

from fermigrid.advance import Progress, RunState, runs_of_block
from fermigrid.campaign import Step
from fermigrid.ledger import Ledger
from fermigrid.plan import Assembled
from fermigrid.records import BatchRecord
from fermigrid.runs import Run
from fermigrid.split import count_jobs, run_of
from fermigrid.states import State

Counts = Mapping[str, Mapping[State, int]]  # by batch
Undecided = Mapping[str, Set[str]]  # the names of jobs that ended badly and may be done again, by batch
_WORST = (RunState.DONE, RunState.FAILED, RunState.RESTING, RunState.AGAIN, RunState.PENDING)
_MOVING = (State.WAITING, State.RUNNING, State.ENDED)
_TAIL = 20  # one job in so many is on its way: then it is looked which run it is of
_DECIDED: Undecided = {}


def progress_of(ledger: Ledger, a: Assembled, undecided: Undecided = _DECIDED) -> dict[tuple[str, str], Progress]:
    """Block and step -> how far it is, wherever there was a batch. Runs are told apart only where they differ, and of a
    batch that is on its way only near its end. A job that is `undecided` has not failed yet."""
    counts, again = ledger.counts(), defaultdict[tuple[str, str], list[str]](list)
    groups = defaultdict[tuple[str, str], list[BatchRecord]](list)
    batches = {batch.id: batch for batch in ledger.batches()}
    for batch in batches.values():
        groups[batch.block, batch.step].append(batch)
    for last, job in ledger.again():
        again[batches[last].block, batches[last].step].append(job)
    reader = _Reader(ledger, a, counts, undecided)
    return {place: reader.progress(group, again.get(place, ())) for place, group in groups.items()}


def has_ended(batch: BatchRecord, by_state: Mapping[State, int]) -> bool:
    """Will nothing more come by itself of the jobs of this batch that count?"""
    final = sum(count for state, count in by_state.items() if state.final)
    return final >= batch.counted or (batch.removed is not None and final == sum(by_state.values()))


def names_of(a: Assembled, batch: BatchRecord) -> tuple[str, ...]:
    """The runs that a batch does."""
    if batch.runs is not None:
        return batch.runs
    return tuple(run.name for run in runs_of_block(a.campaign, a.runs, batch.block, a.trial))


def _both(one: RunState, other: RunState) -> RunState:
    """Of a run that is in two batches."""
    return other if one is RunState.NEEDED else max(one, other, key=_WORST.index)


class _Reader:
    def __init__(self, ledger: Ledger, a: Assembled, counts: Counts, undecided: Undecided) -> None:
        self._ledger, self._steps, self._counts = ledger, a.campaign.steps, counts
        self._runs = {run.name: run for run in a.runs}
        self._assembled, self._undecided = a, undecided

    def progress(self, batches: Sequence[BatchRecord], again: Sequence[str]) -> Progress:
        """Of one step of a block; `again`: the names of its jobs that are still to be sent again."""
        rest, runs = RunState.NEEDED, dict[str, RunState]()
        for batch in batches:
            state, others = self._state(batch)
            if batch.runs is None:
                rest, runs = _both(rest, state), {name: _both(before, state) for name, before in runs.items()}
            else:
                runs.update({name: _both(runs.get(name, rest), state) for name in batch.runs})
            runs.update({name: _both(runs.get(name, rest), other) for name, other in others.items()})
        name = batches[0].step
        pieces = dict(self._again(name, again))
        runs.update(dict.fromkeys(pieces, RunState.NEEDED))
        partly = {run: some for run, some in pieces.items() if len(some) < self._count(name, run)}
        return Progress(max(batch.generation for batch in batches) + 1, rest, runs, partly)

    def _state(self, batch: BatchRecord) -> tuple[RunState, Mapping[str, RunState]]:
        """Of the runs of a batch; and of those of them of which a job that counts was not accepted."""
        by_state, moving = self._counts.get(batch.id, {}), RunState.AGAIN if batch.generation else RunState.PENDING
        good, known = by_state.get(State.DONE, 0), sum(by_state.values())
        ended = has_ended(batch, by_state)
        if not ended:
            on_their_way = sum(by_state.get(state, 0) for state in _MOVING)
            if known < batch.counted or on_their_way * _TAIL > batch.counted:
                return moving, {}
        elif good >= batch.counted:
            return RunState.DONE, {}
        elif good == batch.retired == 0 and batch.id not in self._undecided:
            return RunState.FAILED, {}
        step, undecided, runs = self._steps[batch.step], self._undecided.get(batch.id, ()), dict[str, RunState]()
        for name, state in self._ledger.not_done(batch.id):
            run = run_of(name, batch.step, step)
            one = moving if state in _MOVING else RunState.FAILED
            if (not state.final and one is not moving) or name in undecided:
                one = RunState.RESTING
            runs[run] = _both(runs.get(run, RunState.DONE), one)
        if known < batch.counted:
            runs.update(
                (run, _both(runs.get(run, RunState.DONE), RunState.FAILED)) for run in self._untouched(batch, step)
            )
        return RunState.DONE, runs

    def _untouched(self, batch: BatchRecord, step: Step) -> Iterator[str]:
        """The runs of a removed batch that have jobs to which nothing ever happened: they have no row."""
        known = Counter(run_of(job.name, batch.step, step) for job in self._ledger.jobs_of(batch.id))
        for name in names_of(self._assembled, batch):
            if known[name] < count_jobs(step, [self._runs[name]], batch.pieces):
                yield name

    def _again(self, step: str, jobs: Sequence[str]) -> Iterator[tuple[str, frozenset[str]]]:
        found = defaultdict[str, set[str]](set)
        for job in jobs:
            run = run_of(job, step, self._steps[step])
            found[run].add(job.removeprefix(f"{step}.{run}").removeprefix("."))
        return ((run, frozenset(pieces)) for run, pieces in found.items())

    def _count(self, step: str, run: str) -> int:
        one: Run = self._runs[run]
        return count_jobs(self._steps[step], [one])
