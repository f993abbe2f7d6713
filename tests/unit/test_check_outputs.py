"""Outputs with the same name, or in each other's way, beside the comparison of each with each."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fermigrid.check_outputs import find_output_problems
from fermigrid.placeholder import compile_text
from fermigrid.plan import Assembled, constants_of, jobs_of, variables_of
from tests.campaigns import assemble

PARTS = st.sampled_from(["{run}", "{piece}", "{events}", "{first_event}", "_", "/", "c0", "c000", "1", "r", "x", "%s"])
NAMES = st.lists(st.sampled_from(["r", "r1", "r11", "r1_c000", "r1c000", "x", "1", "11", "c000"]), min_size=1, max_size=5,
                 unique=True)  # fmt: skip
FORMS = st.lists(PARTS, min_size=1, max_size=5).map("".join)


def outputs_of(a: Assembled) -> list[str]:
    found = []
    for name, step in a.campaign.steps.items():
        constants, variables = constants_of(a.campaign, name, ""), variables_of(step, a.runs[0])
        for to in step.outputs.values():
            form = compile_text(to, constants, variables)
            found += [form.format_map(values) for values in jobs_of(name, step, a.runs)]
    return found


def are_wrong(outputs: list[str]) -> bool:
    """Is one a name that none may have, or the same as another, or a folder for one?"""
    bad = any(not part or part in (".", "..") for output in outputs for part in output.split("/"))
    return bad or any(a == b or b.startswith(f"{a}/") for a, b in itertools.permutations(outputs, 2))


def campaign(folder: Path, clump: list[str], merge: str, runs: dict[str, int]) -> Assembled:
    outs = ", ".join(f'o{number}: "{form}"' for number, form in enumerate(clump))
    text = (
        "campaign: small\nimage: light\nruns: {table: runs.csv}\nsteps:\n"
        f"  clump:\n    foreach: clump\n    split: {{events: 7}}\n    command: [x]\n    outputs: {{{outs}}}\n"
        f'  merge:\n    command: [x]\n    outputs: {{o: "{merge}"}}\n'
    )
    return assemble(folder, text, "run,events\n" + "".join(f"{run},{events}\n" for run, events in runs.items()))


@pytest.mark.parametrize(
    ("clump", "merge", "runs", "said"),
    [
        ("{run}{piece}", "{run}", ["r1", "r1c000"], "same output 'r1c000': clump.r1.c000 and merge.r1c000"),
        ("{run}/{piece}", "{run}", ["r1"], "merge.r1 would write the output 'r1'"),
        ("{run}/{piece}", "{run}", ["r1"], "which is a folder for"),
        ("{run}/a/b/{piece}", "{run}", ["r1"], "which is a folder for"),
        ("{run}/a/b/{piece}", "{run}/a", ["r0", "r1"], "which is a folder for"),
        ("x/{run}/{piece}", "x/{run}.fit", ["r", "r1"], ""),
        ("{run}_{piece}", "{run}_x", ["r1", "r1_c000"], ""),
        ("{piece}_{run}", "c000_{run}_x", ["r1", "r1_x"], "same output 'c000_r1_x': clump.r1_x.c000 and merge.r1"),
    ],
)
def test_outputs_in_each_others_way(tmp_path: Path, clump: str, merge: str, runs: list[str], said: str) -> None:
    found = list(find_output_problems(campaign(tmp_path, [clump], merge, dict.fromkeys(runs, 9))))
    assert len(found) == bool(said)
    assert said in "".join(map(str, found))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clump=st.lists(FORMS, min_size=1, max_size=2), merge=FORMS, runs=NAMES, data=st.data())
def test_what_is_found_is_what_comparing_all_finds(
    tmp_path: Path, clump: list[str], merge: str, runs: list[str], data: st.DataObject
) -> None:
    merge = merge.replace("{piece}", "p").replace("{first_event}", "f")
    a = campaign(tmp_path, clump, merge, {run: data.draw(st.integers(1, 30)) for run in runs})
    found = list(find_output_problems(a))
    says = "".join(str(problem) for problem in found)
    if "is the same for every run" in says:
        assert any("{run}" not in form for form in (*clump, merge))
    else:
        assert bool(found) == are_wrong(outputs_of(a)), says
