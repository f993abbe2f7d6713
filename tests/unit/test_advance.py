"""What is to be submitted now: by blocks, by what steps wait for, by what is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.advance import Progress, RunState, all_work, block_name, blocks_of, count_blocked, work_needed
from fermigrid.campaign import Campaign
from fermigrid.plan import shares
from fermigrid.runs import Run

CLUMP = {"command": ["x"], "foreach": "clump", "split": {"events": 10}}
RUNS = (Run("r0", 25), Run("r1", 0), Run("r2", 5), Run("r3", 10), Run("r4", 1))
OVER = Progress(1, RunState.DONE)
GOING = Progress(1, RunState.PENDING)


def without(*failed: str) -> Progress:
    """All runs of a block are done but these."""
    return Progress(1, RunState.DONE, dict.fromkeys(failed, RunState.FAILED))


def only(run: str, state: RunState) -> Progress:
    """One run of a block was done."""
    return Progress(1, RunState.NEEDED, {run: state})


def campaign(steps: dict[str, object], block: int = 2) -> Campaign:
    data = {"campaign": "c", "image": "light", "runs": {"count": 5}, "block": block, "steps": steps}
    return Campaign.model_validate(data)


CHAIN = campaign(
    {"clump": CLUMP, "merge": {"command": ["x"], "after": ["clump"]}, "ship": {"command": ["x"], "after": ["merge"]}}
)


def needed(
    c: Campaign, known: dict[tuple[str, str], Progress], runs: tuple[Run, ...] = RUNS
) -> list[tuple[str, str, tuple[str, ...]]]:
    sites = ["here"] * blocks_of(c, runs)
    return [(w.block, w.step, tuple(run.name for run in w.runs)) for w in work_needed(c, runs, sites, known)]


def test_names_of_blocks() -> None:
    assert [block_name(i) for i in (0, 12, 12345)] == ["b0000", "b0012", "b12345"]
    assert [blocks_of(CHAIN, RUNS[:n]) for n in range(1, 6)] == [1, 1, 2, 2, 3]


def test_first_every_block_begins() -> None:
    assert needed(CHAIN, {}) == [
        ("b0000", "clump", ("r0", "r1")),
        ("b0001", "clump", ("r2", "r3")),
        ("b0002", "clump", ("r4",)),
    ]


def test_a_step_waits_for_the_end_of_all_that_it_comes_after() -> None:
    assert needed(CHAIN, {("b0000", "clump"): GOING}, RUNS[:2]) == []
    assert needed(CHAIN, {("b0000", "clump"): OVER}, RUNS[:2]) == [("b0000", "merge", ("r0", "r1"))]
    two = campaign({"a": {"command": ["x"]}, "b": {"command": ["x"]}, "c": {"command": ["x"], "after": ["a", "b"]}})
    assert needed(two, {("b0000", "a"): OVER, ("b0000", "b"): GOING}, RUNS[:1]) == []
    assert needed(two, {("b0000", "a"): OVER}, RUNS[:1]) == [("b0000", "b", ("r0",))]
    assert needed(two, {("b0000", "a"): OVER, ("b0000", "b"): OVER}, RUNS[:1]) == [("b0000", "c", ("r0",))]


def test_a_run_that_rests_or_is_done_again_costs_no_other_run_time() -> None:
    c, runs = CHAIN.model_copy(update={"block": 100}), tuple(Run(f"r{i}", 5) for i in range(40))

    def merged(state: RunState, many: int) -> list[int]:
        known = {
            ("b0000", "clump"): Progress(1, RunState.DONE, dict.fromkeys([run.name for run in runs[:many]], state))
        }
        return [len(names) for _, step, names in needed(c, known, runs) if step == "merge"]

    assert [merged(RunState.RESTING, many) for many in (1, 39, 40)] == [[39], [1], []]
    assert [merged(RunState.AGAIN, many) for many in (1, 20, 21)] == [[39], [20], []]
    assert [merged(RunState.PENDING, many) for many in (1, 2)] == [[39], []], "a few that are late are not waited for"


def test_what_comes_late_is_a_batch_of_its_own_and_nothing_is_done_twice() -> None:
    late = Progress(1, RunState.DONE, {"r0": RunState.RESTING})
    known = {("b0000", "clump"): late}
    assert needed(CHAIN, known, (RUNS[0], RUNS[2])) == [("b0000", "merge", ("r2",))]
    known["b0000", "merge"] = only("r2", RunState.PENDING)
    assert needed(CHAIN, known, (RUNS[0], RUNS[2])) == []
    known["b0000", "clump"] = OVER
    assert needed(CHAIN, known, (RUNS[0], RUNS[2])) == [("b0000", "merge", ("r0",))]
    known["b0000", "merge"] = Progress(2, RunState.DONE, {"r0": RunState.PENDING})
    assert needed(CHAIN, known, (RUNS[0], RUNS[2])) == []


def test_what_is_sent_again_makes_nobody_wait_either() -> None:
    known = {("b0000", "clump"): Progress(1, RunState.DONE, {"r0": RunState.NEEDED})}
    assert needed(CHAIN, known, (RUNS[0], RUNS[2])) == [("b0000", "clump", ("r0",)), ("b0000", "merge", ("r2",))]


def test_blocks_do_not_wait_for_each_other() -> None:
    known = {("b0000", "clump"): GOING, ("b0001", "clump"): OVER, ("b0002", "clump"): GOING}
    assert needed(CHAIN, known) == [("b0001", "merge", ("r2", "r3"))]


def test_what_is_known_is_not_needed_again() -> None:
    every = {(block, step): OVER for block in ("b0000", "b0001", "b0002") for step in CHAIN.steps}
    assert needed(CHAIN, every) == []


def test_a_run_that_failed_goes_no_further_and_the_others_do() -> None:
    known = {("b0000", "clump"): without("r0")}
    assert needed(CHAIN, known, RUNS[:2]) == [("b0000", "merge", ("r1",))]


def test_a_run_that_failed_early_does_not_come_back_in_a_later_step() -> None:
    known = {("b0000", "clump"): without("r0"), ("b0000", "merge"): only("r1", RunState.DONE)}
    assert needed(CHAIN, known, RUNS[:2]) == [("b0000", "ship", ("r1",))]


def test_failures_of_several_steps_add_up() -> None:
    known = {
        ("b0000", "clump"): without("r0"),
        ("b0000", "merge"): only("r1", RunState.FAILED),
    }
    assert needed(CHAIN, known, RUNS[:2]) == []


def test_jobs_that_never_come_are_counted_in_every_block_and_later_step() -> None:
    """Of r0 (3 clumps) the merging and the shipping; of r3, in the next block, the shipping."""
    known = {
        ("b0000", "clump"): without("r0"),
        ("b0001", "clump"): OVER,
        ("b0001", "merge"): without("r3"),
    }
    assert count_blocked(CHAIN, RUNS, known).total() == 3
    assert count_blocked(CHAIN, RUNS, {}) == count_blocked(CHAIN, RUNS, {("b0000", "clump"): GOING}) == {}
    back = campaign({"a": {"command": ["x"]}, "b": {**CLUMP, "after": ["a"]}})
    assert count_blocked(back, RUNS, {("b0000", "a"): without("r0")}).total() == 3


def test_after_done_goes_on_with_what_is_good_and_not_without_what_was_never_sent() -> None:
    digi, merge = {"command": ["x"]}, {"command": ["x"], "after": {"clump": "done"}}
    c = campaign({"digi": digi, "clump": {**CLUMP, "after": ["digi"]}, "merge": merge})
    runs = (Run("r0", 25), Run("r2", 5))
    known = {("b0000", "digi"): without("r2"), ("b0000", "clump"): only("r0", RunState.FAILED)}
    assert needed(c, known, runs) == [("b0000", "merge", ("r0",))]
    assert count_blocked(c, runs, known).total() == 2
    again = Progress(1, RunState.NEEDED, {"r0": RunState.NEEDED}, {"r0": frozenset({"c001"})})
    (work,) = work_needed(c, runs, ["here"], {**known, ("b0000", "clump"): again})
    assert (work.step, work.generation, work.pieces) == ("clump", 1, {"r0": frozenset({"c001"})})


def test_runs_with_other_parameters_are_another_batch() -> None:
    known = {("b0000", "clump"): Progress(2, RunState.NEEDED)}
    overrides = {("clump", "r3"): {"p": "1"}, ("clump", "r1"): {"p": "2"}, ("merge", "r0"): {"p": "3"}}
    runs = (Run("r0", 25), Run("r1", 0), Run("r3", 10), Run("r5", 10))
    c = CHAIN.model_copy(update={"block": 4})
    works = list(work_needed(c, runs, ["here"], known, 0, overrides))
    assert [(w.generation, [run.name for run in w.runs], dict(w.parameters)) for w in works] == [
        (2, ["r0", "r5"], {}),
        (3, ["r3"], {"p": "1"}),
    ], "r1 has no events, and so no batch of its own"


def test_a_failure_stops_only_what_comes_after_it() -> None:
    c = campaign({"a": {"command": ["x"]}, "b": {"command": ["x"]}, "c": {"command": ["x"], "after": ["b"]}})
    known = {("b0000", "a"): without("r0"), ("b0000", "b"): OVER}
    assert needed(c, known, RUNS[:1]) == [("b0000", "c", ("r0",))]


def test_when_every_run_failed_nothing_is_needed_any_more() -> None:
    known = {("b0000", "clump"): without("r0", "r1")}
    assert needed(CHAIN, known, RUNS[:2]) == []


def test_a_step_without_jobs_holds_up_nobody() -> None:
    empty = (Run("r0", 0), Run("r1", 0))
    assert needed(CHAIN, {}, empty) == [("b0000", "merge", ("r0", "r1"))]
    assert [(w.step, len(w.runs)) for w in all_work(CHAIN, empty, ["here"])] == [("merge", 2), ("ship", 2)]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(1, 4), st.data())
def test_going_on_step_by_step_does_every_run_of_every_step_once(
    events: list[int], block: int, data: st.DataObject
) -> None:
    runs = tuple(Run(f"r{i}", count) for i, count in enumerate(events))
    c = CHAIN.model_copy(update={"block": block})
    known: dict[tuple[str, str], Progress] = {}
    done: list[tuple[str, str]] = []
    while works := list(work_needed(c, runs, ["here"] * blocks_of(c, runs), known)):
        for work in works[: data.draw(st.integers(1, len(works)))]:
            assert (work.block, work.step) not in known
            known[work.block, work.step] = OVER
            done += [(work.step, run.name) for run in work.runs]
    expected = [(step, run.name) for step in ("clump", "merge", "ship") for run in runs]
    whole_blocks = {(w.step, run.name) for w in all_work(c, runs, ["here"] * blocks_of(c, runs)) for run in w.runs}
    assert len(done) == len(set(done))
    assert set(done) == whole_blocks
    assert {pair for pair in expected if pair[0] != "clump"} <= set(done)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 100), min_size=1), st.integers(0, 300))
def test_blocks_are_shared_out_in_proportion(weights: dict[str, int], blocks: int) -> None:
    order = shares(weights, blocks)
    assert len(order) == blocks
    for site, weight in weights.items():
        assert order.count(site) == pytest.approx(weight * blocks / sum(weights.values()), abs=len(weights))


def test_shares_are_fair_from_the_start_and_the_same_every_time() -> None:
    order = shares({"slac": 70, "in2p3": 30}, 10)
    assert order == shares({"in2p3": 30, "slac": 70}, 10)
    assert (order.count("slac"), order.count("in2p3")) == (7, 3)
    assert shares({"slac": 70, "in2p3": 30}, 1000)[:10] == order
    assert shares({"only": 3}, 2) == ["only", "only"]
