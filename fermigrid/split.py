"""Runs into pieces. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fermigrid.campaign import Step
from fermigrid.runs import Run


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a run: `count` events from `first` on (from 0 in the run). `name` is "" for the whole run."""

    name: str
    first: int
    count: int


_WHOLE = Piece("", 0, 0)


def split_clumps(events: int, size: int) -> Iterator[Piece]:
    """Clumps of `size` events, `c000` on; the last has what is left. A run of no events has no clump."""
    for index, first in enumerate(range(0, events, size)):
        yield Piece(f"c{index:03d}", first, min(size, events - first))


def pieces_of(step: Step, run: Run) -> Iterator[Piece]:
    """What a step does of a run: the run itself, or its clumps."""
    if step.split is None:
        return iter((_WHOLE,))
    assert run.events is not None, "check.py refuses clumps of runs without a number of events"
    return split_clumps(run.events, step.split.events)


def count_jobs(step: Step, runs: Sequence[Run]) -> int:
    """How many jobs a step has for these runs."""
    if step.split is None:
        return len(runs)
    return sum(-(-(run.events or 0) // step.split.events) for run in runs)
