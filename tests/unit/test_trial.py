"""A trial: which runs, what is suggested, what the rest will take."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fermigrid.advance import blocks_of, parts_of
from fermigrid.rates import Scope, scopes_of
from fermigrid.runs import Run
from fermigrid.trial import Usage, adjusted_by, as_adjusted, choose_runs, measure, suggestions, total_in_words
from tests.campaigns import TWO_STEPS, assemble

GIB = 2**30
TABLE = "run,events\n" + "".join(f"r{n},{events}\n" for n, events in enumerate((50, 20, 90, 10, 40, 30)))


def test_the_first_the_last_the_largest_the_smallest() -> None:
    runs = [Run(f"r{n}", events) for n, events in enumerate((50, 20, 90, 10, 40, 30, 60, 70))]
    assert choose_runs(runs, 4) == ("r0", "r2", "r3", "r7")
    assert choose_runs(runs, 2) == ("r0", "r7")
    assert choose_runs([Run(f"r{n}") for n in range(101)], 5) == ("r0", "r25", "r50", "r75", "r100")


@given(st.lists(st.one_of(st.integers(0, 100)), min_size=1, max_size=60), st.integers(1, 60), st.booleans())
def test_as_many_as_were_asked_for_in_the_order_of_the_table(sizes: list[int], number: int, counted: bool) -> None:
    runs = [Run(f"r{n:03}", size if counted else None) for n, size in enumerate(sizes)]
    chosen = choose_runs(runs, number)
    assert len(set(chosen)) == len(chosen) == min(number, len(runs))
    assert list(chosen) == sorted(chosen)


def test_its_runs_are_the_first_block_and_no_run_is_lost(tmp_path: Path) -> None:
    plain = assemble(tmp_path, TWO_STEPS, TABLE)
    ours = as_adjusted(plain, ("r3", "r0", "r5"), {("clump", "memory"): GIB, ("local", "quota"): 5})
    assert [run.name for run in ours.runs] == ["r3", "r0", "r5", "r1", "r2", "r4"]
    parts = list(parts_of(ours.campaign, ours.runs, ours.trial))
    assert [len(part) for part in parts] == [3, 2, 1]
    assert len(parts) == blocks_of(ours.campaign, ours.runs, ours.trial)
    assert sum(parts, ()) == ours.runs
    assert ours.campaign.steps["clump"].resources.memory == GIB
    assert ours.campaign.steps["merge"].resources == plain.campaign.steps["merge"].resources
    same = as_adjusted(plain, (), {})
    assert (same.runs, same.trial, same.campaign) == (plain.runs, 0, plain.campaign)


def test_what_it_makes_of_the_rest(tmp_path: Path) -> None:
    campaign = assemble(tmp_path, TWO_STEPS + "limits: {running: 10}\n", TABLE).campaign
    usages = [
        Usage("clump", wall=100, cpu=90, memory=GIB, disk=3 * GIB, output=1000, weight=10),
        Usage("clump", wall=300, cpu=270, memory=None, disk=None, output=2000, weight=30),
    ]
    (one,) = measure(campaign, {"clump": 3, "merge": 1}, usages, {"clump": 400.0, "merge": 400.0})
    assert (one.jobs, one.good, one.wall, one.wall_most, one.cpu_share) == (3, 2, 200, 300, 0.9)
    assert one.suggested == {"walltime": 600, "memory": 11 * 128 * 2**20, "disk": 5 * GIB}
    assert (one.rest_wall, one.rest_output) == (4000, 30000)
    (line,) = suggestions(campaign, [one])
    assert line == "clump: disk 5 GiB (4 GiB now), memory 1408 MiB (2 GiB now), walltime 10 min (4 h now)"
    rest, shares = [one], {"slac": 0.75, "lyon": 0.25}
    assert list(total_in_words(campaign, rest, 8, scopes_of(campaign.limits, {}), shares)) == [
        "the other 8 runs: 1.1 core hours, 29.3 KiB of output",
        "with 10 jobs at a time: 6 min 40 s",
        "no job of merge is good: it is not in these figures",
    ]
    assert adjusted_by([one])["clump", "disk"] == 5 * GIB
    for limit, words in (
        (Scope("", starts=1), "with 1 start a minute: 20 min"),  # 20 jobs
        (Scope("", step="clump", running=4), "with 4 jobs of clump at a time: 16 min 40 s"),
        (Scope("", step="merge", running=1), "with 10 jobs at a time: 6 min 40 s"),
        (Scope("", site="slac", running=3), "with 3 jobs at a time at slac: 16 min 40 s"),
        (Scope("", site="lyon", starts=1, running=1), "with 1 job at a time at lyon: 16 min 40 s"),
        (Scope("", site="elsewhere", running=1), "with 10 jobs at a time: 6 min 40 s"),
    ):
        scopes = [*scopes_of(campaign.limits, {}), limit]
        assert list(total_in_words(campaign, rest, 8, scopes, shares))[1] == words
    taken = as_adjusted(assemble(tmp_path, TWO_STEPS, TABLE), (), adjusted_by([one])).campaign
    assert list(suggestions(taken, [one])) == ["clump: what it asks for now"]


def test_a_trial_of_everything_leaves_nothing(tmp_path: Path) -> None:
    campaign = assemble(tmp_path, TWO_STEPS, TABLE).campaign
    assert list(total_in_words(campaign, [], 0, [], {})) == ["nothing is left: the trial was the whole campaign"]
