"""Runs into clumps, chunks and crumbs: each event once, nothing left over, names that stay."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from fermigrid.campaign import Split, Step
from fermigrid.runs import Run
from fermigrid.split import (
    Piece,
    chosen_pieces,
    count_jobs,
    group_of,
    pieces_of,
    run_of,
    split_chunks,
    split_clumps,
    split_crumbs,
    unrelated,
)

WHOLE = Step.model_validate({"command": ["x"]})


def step(foreach: str, **split: float) -> Step:
    return Step.model_validate({"command": ["x"], "foreach": foreach, **({"split": split} if split else {})})


def clumps(size: int) -> Step:
    return step("clump", events=size)


CHUNK, CRUMB = step("chunk"), step("crumb")
splits = st.builds(
    Split,
    events=st.integers(1, 3000),
    crumbs=st.integers(1, 60),
    crumb_events=st.integers(1, 100),
    ratio=st.sampled_from([1.0, 1.2, 1.5, 2.0, 10.0]),
)


def names(what: Step, events: int) -> list[str]:
    return [piece.name for piece in pieces_of(what, Run("r", events))]


def sizes(what: Step, events: int) -> list[int]:
    return [piece.count for piece in pieces_of(what, Run("r", events))]


def covers(pieces: list[Piece], first: int, events: int) -> bool:
    """Is each event in exactly one piece, in order, and has each piece an event?"""
    ends = [first]
    for piece in pieces:
        assert piece.first == ends[-1]
        assert piece.count > 0
        ends.append(piece.first + piece.count)
    return ends[-1] == first + events


def test_edges_of_clumps() -> None:
    assert list(split_clumps(0, 10)) == []
    assert list(split_clumps(1, 10)) == [Piece("c000", 0, 1)]
    assert list(split_clumps(10, 10)) == [Piece("c000", 0, 10)]
    assert list(split_clumps(11, 10)) == [Piece("c000", 0, 10), Piece("c001", 10, 1)]
    assert [piece.name for piece in split_clumps(1001, 1)][-1] == "c1000"


@pytest.mark.parametrize(
    ("events", "chunks", "crumbs"),
    [
        (0, [], []),
        (1, [1], [1]),
        (1_499, [1_499], [1_499]),
        (1_500, [1_500], [1_500]),
        (2_999, [2_999], [2_999]),
        (3_000, [3_000], [1_200, 1_800]),
        (124_999, [124_999], 45),
        (125_000, [125_000], 45),
        (125_001, [62_501, 62_500], 41 + 41),
    ],
)
def test_chunks_and_crumbs_of_l1_processing(events: int, chunks: list[int], crumbs: list[int] | int) -> None:
    assert sizes(CHUNK, events) == chunks
    found = sizes(CRUMB, events)
    assert found == crumbs if isinstance(crumbs, list) else len(found) == crumbs
    assert sum(found) == events


def test_the_largest_crumb_is_half_as_large_again_as_the_smallest() -> None:
    found = sizes(CRUMB, 67_500)  # 45 crumbs of 1,500 on average: whole numbers all the way
    assert (len(found), found[0], found[-1]) == (45, 1200, 1800)
    for events in (125_000, 124_999, 62_501, 4_501):
        found = sizes(CRUMB, events)
        assert found[-1] / found[0] == pytest.approx(1.5, abs=0.002)
        first = events / len(found) / 1.25  # of sizes that grow linearly from 1 to 1.5
        linear = [first * (1 + 0.5 * index / (len(found) - 1)) for index in range(len(found))]
        assert max(abs(size - ideal) for size, ideal in zip(found, linear, strict=True)) < 1


def test_names_are_sorted_as_the_events_are() -> None:
    assert names(CRUMB, 6_000) == ["k000u000", "k000u001", "k000u002", "k000u003"]
    assert names(CHUNK, 250_001) == ["k000", "k001", "k002"]
    for what, events in ((step("chunk", events=1), 1000), (step("crumb", events=100, crumb_events=1), 10_000)):
        assert names(what, events) == sorted(names(what, events))
    many = [piece.name for piece in split_clumps(1002, 1)]
    assert (many[0], many[-1]) == ("c0000", "c1001")
    assert many == sorted(many)


def test_the_parts_of_a_name() -> None:
    crumb = next(iter(split_crumbs(Piece("k012", 50, 10), Split())))
    assert (crumb.name, crumb.chunk, crumb.crumb, crumb.first) == ("k012u000", "k012", "u000", 50)
    assert (Piece("k012", 0, 1).chunk, Piece("k012", 0, 1).crumb) == ("k012", "")


@given(st.integers(0, 3000), st.integers(1, 3100))
def test_each_event_is_in_exactly_one_clump(events: int, size: int) -> None:
    pieces = list(split_clumps(events, size))
    assert covers(pieces, 0, events)
    assert all(piece.count <= size for piece in pieces)
    assert len({piece.name for piece in pieces}) == len(pieces)


@given(st.integers(0, 3000), st.integers(1, 3100))
def test_chunks_are_as_few_and_as_equal_as_they_can_be(events: int, most: int) -> None:
    pieces = list(split_chunks(events, most))
    assert covers(pieces, 0, events)
    counts = [piece.count for piece in pieces]
    assert all(count <= most for count in counts)
    assert not pieces or max(counts) - min(counts) <= 1
    assert len(pieces) == 0 or (len(pieces) - 1) * most < events


@given(st.integers(1, 5000), st.integers(0, 10**6), splits)
@example(1, 0, Split(crumb_events=1))
@example(10, 0, Split(crumbs=10, crumb_events=1))
@example(60, 7, Split(crumbs=60, crumb_events=1, ratio=10.0))
def test_crumbs_cover_their_chunk_and_grow(events: int, first: int, split: Split) -> None:
    pieces = list(split_crumbs(Piece("k007", first, events), split))
    assert covers(pieces, first, events)
    counts = [piece.count for piece in pieces]
    assert counts == sorted(counts)
    assert len(counts) <= split.crumbs
    assert len(counts) == 1 or events / len(counts) >= split.crumb_events
    assert counts[-1] <= split.ratio * (counts[0] + 1) + 1
    assert [piece.name for piece in pieces] == [f"k007u{index:03d}" for index in range(len(pieces))]


@given(st.lists(st.integers(0, 3000), max_size=8), splits, st.sampled_from(["clump", "chunk", "crumb"]))
def test_jobs_are_counted_without_making_them(events: list[int], split: Split, foreach: str) -> None:
    runs = [Run(f"r{i}", count) for i, count in enumerate(events)]
    values = split.model_dump() if foreach == "crumb" else {"events": split.events}
    what = step(foreach, **values)
    assert count_jobs(what, runs) == sum(len(list(pieces_of(what, run))) for run in runs)
    assert count_jobs(WHOLE, runs) == len(runs) == sum(len(list(pieces_of(WHOLE, run))) for run in runs)


@given(st.integers(0, 400), st.integers(1, 50), st.data())
def test_some_pieces_of_a_run_are_those_that_were_asked_for(events: int, size: int, data: st.DataObject) -> None:
    what, runs = clumps(size), [Run("r0", events), Run("r1", 30)]
    all_of_it = names(what, events)
    asked = frozenset(data.draw(st.sets(st.sampled_from(all_of_it)))) if all_of_it else frozenset[str]()
    found = [piece.name for piece in chosen_pieces(what, runs[0], {"r0": asked})]
    assert found == [name for name in all_of_it if name in asked]
    assert count_jobs(what, runs, {"r0": asked}) == len(asked) + len(names(what, 30))


def test_a_run_of_no_events_is_one_job_of_a_step_for_runs_and_none_for_pieces() -> None:
    assert count_jobs(WHOLE, [Run("r", 0)]) == 1
    assert [count_jobs(what, [Run("r", 0)]) for what in (clumps(5), CHUNK, CRUMB)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("foreach", "split", "says"),
    [
        ("clump", {}, "needs to know the size of a clump"),
        ("clump", {"crumbs": 3}, "needs to know the size of a clump"),
        ("run", {"events": 3}, "split goes with"),
        ("clump", {"events": 3, "ratio": 2}, "split.ratio goes with foreach: crumb"),
        ("chunk", {"crumb_events": 3}, "split.crumb_events goes with foreach: crumb"),
        ("crumb", {"ratio": 0.5}, "greater than or equal to 1"),
        ("crumb", {"crumbs": 1001}, "less than or equal to 1000"),
    ],
)
def test_splits_that_mean_nothing_are_refused(foreach: str, split: dict[str, float], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        step(foreach, **split)


# --- which pieces belong together


def together(job: Step, source: Step, events: int) -> dict[str, list[str]]:
    """Piece of the one step -> the pieces of the other that are in its group."""
    run = Run("r", events)
    groups: dict[str, list[str]] = {}
    for other in pieces_of(source, run):
        groups.setdefault(group_of(job, source, other), []).append(other.name)
    return {piece.name: groups.get(group_of(job, source, piece), []) for piece in pieces_of(job, run)}


def test_a_run_has_all_pieces_a_chunk_its_crumbs_and_a_crumb_its_chunk() -> None:
    chunk, crumb = step("chunk", events=4), step("crumb", events=4, crumbs=2, crumb_events=1)
    every = ["k000u000", "k000u001", "k001u000", "k001u001"]
    assert together(WHOLE, crumb, 8) == {"": every}
    assert together(crumb, WHOLE, 8) == {name: [""] for name in every}
    assert together(chunk, crumb, 8) == {"k000": every[:2], "k001": every[2:]}
    assert together(crumb, chunk, 8) == dict(zip(every, [["k000"], ["k000"], ["k001"], ["k001"]], strict=True))
    assert together(crumb, crumb, 8) == {name: [name] for name in every}
    assert together(clumps(3), WHOLE, 8) == {"c000": [""], "c001": [""], "c002": [""]}


@given(st.integers(0, 150), splits)
def test_the_crumbs_of_a_chunk_are_its_events(events: int, split: Split) -> None:
    chunk, crumb = step("chunk", events=split.events), step("crumb", **split.model_dump())
    parts = {piece.name: piece for piece in pieces_of(crumb, Run("r", events))}
    for piece in pieces_of(chunk, Run("r", events)):
        own = [parts.pop(name) for name in together(chunk, crumb, events)[piece.name]]
        assert covers(own, piece.first, piece.count)
    assert parts == {}


def test_pieces_that_have_nothing_to_do_with_each_other() -> None:
    assert (
        unrelated(WHOLE, CRUMB) == unrelated(CRUMB, WHOLE) == unrelated(CHUNK, CRUMB) == unrelated(CRUMB, CRUMB) == ""
    )
    assert unrelated(clumps(5), clumps(5)) == ""
    assert "a chunk is no part of a clump" in unrelated(CHUNK, clumps(5))
    assert "are of 5 events, those of that step of 6" in unrelated(clumps(5), clumps(6))
    assert "its chunks are of 125000 events" in unrelated(CHUNK, step("crumb", events=9))
    assert "another split" in unrelated(step("crumb", crumbs=3), CRUMB)
    assert unrelated(CHUNK, step("crumb", crumbs=3)) == ""


def test_the_run_of_a_job_is_in_its_name() -> None:
    assert run_of("merge.r1.v2", "merge", WHOLE) == "r1.v2"
    assert run_of("clump.r1.v2.c003", "clump", clumps(5)) == "r1.v2"
    assert run_of("crumb.r1.k003u012", "crumb", CRUMB) == "r1"
