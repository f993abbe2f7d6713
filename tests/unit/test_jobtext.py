"""Texts made for all jobs of a step at once, beside the same made one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermigrid import jobtext
from fermigrid.campaign import Split, Step
from fermigrid.jobtext import JobText
from fermigrid.placeholder import compile_text
from fermigrid.plan import jobs_of, variables_of
from fermigrid.quoting import encode_field
from fermigrid.runs import Run
from fermigrid.split import pieces_of

KINDS = ("run", "clump", "chunk", "crumb")
OF_PIECES = ("piece", "first_event", "event_count", "chunk", "crumb")
LITERALS = ("{const}", "/", "_", "%", "%s", "%%", "%(run)s", "{{", "}}", "\\n", "\t", "ä", "v4")
PARTS = st.sampled_from(["{run}", "{job}", "{events}", "{season}", *(f"{{{name}}}" for name in OF_PIECES), *LITERALS])
SEASONS = st.sampled_from(["winter", "50%", "%s", "{run}", "a\\b", "tab\there", "ñ"])
RUNS = st.lists(
    st.builds(lambda n, events, season: Run(f"r{n}", events, {"season": season}), st.integers(0, 99),
              st.integers(0, 4000), SEASONS), min_size=1, max_size=6,
)  # fmt: skip


def step(kind: str) -> Step:
    splits = {"clump": Split(events=3), "chunk": Split(events=50), "crumb": Split(events=50, crumbs=3, crumb_events=9)}
    return Step.model_validate({"foreach": kind, "command": ["x"], "split": splits.get(kind)})


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), parts=st.lists(PARTS, max_size=8), runs=RUNS, data=st.data())
def test_all_at_once_are_the_same_as_one_by_one(
    kind: str, parts: list[str], runs: list[Run], data: st.DataObject
) -> None:
    what = step(kind)
    variables = variables_of(what, runs[0])
    of_others = {f"{{{name}}}" for name in OF_PIECES}
    text = "".join(part for part in parts if part not in of_others or part[1:-1] in variables)
    compiled = compile_text(text, {"const": "c{0}%d\t"}, variables, encode_field)
    only = {
        run.name: frozenset(data.draw(st.lists(st.sampled_from([p.name for p in pieces_of(what, run)] or ["x"]))))
        for run in runs
        if data.draw(st.booleans())
    }
    encoded = [
        Run(run.name, run.events, {"season": encode_field(run.columns["season"])}) for run in runs if run.columns
    ]
    expected = [compiled.format_map(values) for values in jobs_of("s", what, encoded, only)]
    texts = JobText(compiled, "s", what, encode_field)
    assert [one for part in texts.of(runs, only) for one in part] == expected
    for run in runs:
        whole = [one for part in texts.of([run]) for one in part]
        assert texts.first(run) == (whole[0] if whole else None)
        assert all(one.startswith(texts.head(run)) for one in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_of_the_same_jobs_and_none_is_large(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobtext, "PART", 7)
    what, runs = step(kind), [Run(f"r{n:02d}", 10 * n) for n in range(30)]
    jobs = list(JobText("{job}", "s", what).of(runs))
    others = list(JobText("x" if kind == "run" else "{piece}", "s", what).of(runs))
    assert [len(part) for part in jobs] == [len(part) for part in others]
    assert max(map(len, jobs)) < 14
    assert [job for part in jobs for job in part] == [values["job"] for values in jobs_of("s", what, runs)]
