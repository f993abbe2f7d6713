"""Runs into clumps: each event once, nothing left over."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fermigrid.campaign import Step
from fermigrid.runs import Run
from fermigrid.split import Piece, count_jobs, pieces_of, split_clumps

WHOLE = Step.model_validate({"command": ["x"]})


def clumps(size: int) -> Step:
    return Step.model_validate({"command": ["x"], "foreach": "clump", "split": {"events": size}})


def test_edges() -> None:
    assert list(split_clumps(0, 10)) == []
    assert list(split_clumps(1, 10)) == [Piece("c000", 0, 1)]
    assert list(split_clumps(10, 10)) == [Piece("c000", 0, 10)]
    assert list(split_clumps(11, 10)) == [Piece("c000", 0, 10), Piece("c001", 10, 1)]
    assert [piece.name for piece in split_clumps(1001, 1)][-1] == "c1000"


@given(st.integers(0, 3000), st.integers(1, 3100))
def test_each_event_is_in_exactly_one_clump(events: int, size: int) -> None:
    pieces = list(split_clumps(events, size))
    covered = [event for piece in pieces for event in range(piece.first, piece.first + piece.count)]
    assert covered == list(range(events))
    assert all(0 < piece.count <= size for piece in pieces)
    assert len({piece.name for piece in pieces}) == len(pieces)


@given(st.lists(st.integers(0, 500), max_size=8), st.integers(1, 600))
def test_jobs_are_counted_without_making_them(events: list[int], size: int) -> None:
    runs = [Run(f"r{i}", count) for i, count in enumerate(events)]
    step = clumps(size)
    assert count_jobs(step, runs) == sum(len(list(pieces_of(step, run))) for run in runs)
    assert count_jobs(WHOLE, runs) == len(runs) == sum(len(list(pieces_of(WHOLE, run))) for run in runs)


def test_a_run_of_no_events_is_one_job_of_a_step_for_runs_and_none_for_clumps() -> None:
    assert count_jobs(WHOLE, [Run("r", 0)]) == 1
    assert count_jobs(clumps(5), [Run("r", 0)]) == 0
