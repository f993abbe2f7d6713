"""Jobs and runs done again: retries, rollbacks, and what becomes of the jobs and outputs that were there before."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fermigrid import backends
from fermigrid.accept import Items
from fermigrid.control import control
from fermigrid.errors import BackendUnavailable, ConfigError, NotFound, RedoRefused, SubmissionDoubt, SubmissionRefused
from fermigrid.explain import explain_job
from fermigrid.find_job import find_job
from fermigrid.ledger import Ledger
from fermigrid.redo import Redo, decide, plan_retry, plan_rollback
from fermigrid.retire import finish_decisions
from fermigrid.runfolder import RunFolder
from fermigrid.standing import standing_of
from fermigrid.states import Seen, State
from fermigrid.submit import begin, prepare, rendered
from fermigrid.unsent import explain_unsent
from fermigrid.watch import Following, look, send, watch_once
from tests import stand_in
from tests.campaigns import SITES, assemble, make_hand, read_items
from tests.stand_in import Killed, Memory, end_job
from tests.unit.test_submit import CHAIN, TABLE, campaign, names, system

__all__ = ["system"]
PARAMETERS = "parameters: {emin: '100'}\nversion: '400'\n"
VERSIONED = (
    (PARAMETERS + CHAIN)
    .replace('{out.fit: "{run}.fit"}', '{out.fit: "{run}_v{version}.fit"}')
    .replace('[/bin/true, "{run}"]', '[/bin/true, "{run}", "{emin}"]')
)
STORE = """\
site: store
title: outputs go to a folder
contact: nobody
manual: https://example.org/
backend: {backend}
{more}container: {{launch: worker}}
output: {{kind: posix, root: {root}}}
"""
GOOD_ONES = CHAIN.replace("after: [clump]", "after: {clump: done}")


def end_all(f: Following, memory: Memory, *bad: str) -> None:
    """Every job that is on its way ends, those named `bad` badly; again until nothing more comes."""
    for _ in range(20):
        watch_once(f)
        alive = [
            (batch, index)
            for batch in memory.landed
            for index in range(batch.jobs)
            if (record := f.ledger.job(batch.batch_id, index)) is None or not record.state.final
            if not next(b for b in f.ledger.batches() if b.id == batch.batch_id).removed
        ]
        if not alive:
            assert watch_once(f).finished
            return
        for batch, index in alive:
            name = (batch.plan_dir / "items.txt").read_text().splitlines()[index].split()[0]
            attempt = f"g{batch.name[-1]}.s1.aaaaaaaa"
            end_job(batch, index, 3 if name in bad else 0, attempt=attempt, content=f"{batch.name} {name}".encode())
    raise AssertionError("it never ends")


def go_again(f: Following, redo: Redo) -> None:
    decide(f, redo)
    while finish_decisions(f.ledger, f.folder, f.assembled, f.hand):
        look(f)
    send(f)


def accepted(f: Following) -> dict[str, str]:
    """Job -> the batch whose result counts. Each has one."""
    found = [(attempt.job, attempt.batch) for attempt in f.ledger.accepted()]
    assert max(Counter(job for job, _ in found).values(), default=1) == 1
    batches = {batch.id: batch.name for batch in f.ledger.batches()}
    return {job: batches[batch] for job, batch in found}


def published(f: Following) -> dict[str, str]:
    """Final name -> what is in it."""
    outputs = f.folder.outputs
    return {name: (outputs / name).read_text() for name in names(outputs)}


# --- retry


def test_a_failed_clump_is_done_again_alone_and_the_merge_follows(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        end_all(f, system, "clump.r1.c001")
        assert sorted(accepted(f)) == ["clump.r1.c000", "clump.r2.c000", "merge.r2"]
        redo = plan_retry(f, (), (), ())
        assert list(redo.words) == ["retry: clump.r1.c001", "done again: clump: 1 job"]
        assert not redo.takes_away
        go_again(f, redo)
        batch = f.ledger.batches()[-1]
        assert (batch.name, batch.jobs, batch.runs) == ("two.b0000.clump.g1", 1, ("r1",))
        assert batch.pieces == {"r1": frozenset({"c001"})}
        assert (system.landed[-1].plan_dir / "items.txt").read_text().split()[0] == "clump.r1.c001"
        standing = standing_of(f)
        assert (standing.jobs, standing.counts[State.FAILED], standing.counts[State.WAITING]) == (4, 0, 1)
        end_all(f, system)
        assert accepted(f) == {
            "clump.r1.c000": "two.b0000.clump.g0",
            "clump.r1.c001": "two.b0000.clump.g1",
            "clump.r2.c000": "two.b0000.clump.g0",
            "merge.r1": "two.b0000.merge.g1",
            "merge.r2": "two.b0000.merge.g0",
        }
        standing = standing_of(f)
        assert standing.good
        assert (standing.jobs, standing.unsent, standing.blocked) == (5, 0, 0)


def test_what_was_removed_is_done_again_with_jobs_that_nothing_happened_to(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        end_job(system.landed[0], 0)
        watch_once(f)
        control(f, "remove", ["clump"], ())
        system.news.clear()  # the batch system never made them: they have no events
        assert watch_once(f).finished
        assert standing_of(f).counts[State.REMOVED] == 2
        assert list(plan_retry(f, (), (), (), True).jobs) == []
        redo = plan_retry(f, (), (), ())
        assert [job.name for job in redo.jobs] == ["clump.r1.c001", "clump.r2.c000"]
        go_again(f, redo)
        system.news.clear()
        end_all(f, system)
        assert sorted(accepted(f)) == ["clump.r1.c000", "clump.r1.c001", "clump.r2.c000", "merge.r1", "merge.r2"]


def test_a_job_removed_by_name_is_done_again(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        control(f, "remove", (), ["clump.r1.c000"])
        end_all(f, system)
        go_again(f, plan_retry(f, (), (), ["clump.r1.c000"]))
        end_all(f, system)
        assert accepted(f)["clump.r1.c000"] == "two.b0000.clump.g1"
        assert len(accepted(f)) == 5


def test_what_is_not_to_be_retried_is_refused_in_words(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        end_job(system.landed[0], 0)
        end_job(system.landed[0], 1, 3)
        watch_once(f)
        with pytest.raises(RedoRefused, match=r"clump.r1.c000 has an accepted result") as refused:
            plan_retry(f, (), (), ["clump.r1.c000"])
        assert "rollback --run r1 --from-step clump" in refused.value.hint
        with pytest.raises(RedoRefused, match=r"clump.r2.c000 is waiting: it may still end well") as refused:
            plan_retry(f, (), (), ["clump.r2.c000"])
        assert "remove --job" in refused.value.hint
        with pytest.raises(NotFound):
            plan_retry(f, (), (), ["clump.r9.c000"])
        with pytest.raises(NotFound, match="no run 'r9'"):
            plan_retry(f, (), ["r9"], ())
        with pytest.raises(NotFound, match="no step 'clumb'"):
            plan_retry(f, ["clumb"], (), ())
        decide(f, plan_retry(f, (), (), ()))
        with pytest.raises(RedoRefused, match=r"clump.r1.c001 is done again already"):
            plan_retry(f, (), (), ["clump.r1.c001"])
        assert not plan_retry(f, (), (), ()).jobs
        control(f, "remove", (), ())
        with pytest.raises(RedoRefused, match="was removed on"):
            plan_retry(f, (), (), ())


@pytest.mark.parametrize(
    ("steps", "runs", "chosen"),
    [
        ((), (), ["clump.r1.c001", "clump.r2.c000"]),
        (("clump",), ("r2",), ["clump.r2.c000"]),
        (("merge",), (), []),
        ((), ("r1",), ["clump.r1.c001"]),
    ],
)
def test_some_steps_or_runs(
    tmp_path: Path, system: Memory, steps: tuple[str, ...], runs: tuple[str, ...], chosen: list[str]
) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        end_all(f, system, "clump.r1.c001", "clump.r2.c000")
        assert [job.name for job in plan_retry(f, steps, runs, ()).jobs] == chosen


def test_a_merge_that_was_made_without_a_piece_is_made_again_with_it(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, GOOD_ONES, TABLE) as f:
        end_all(f, system, "clump.r1.c001")
        assert sorted(accepted(f)) == ["clump.r1.c000", "clump.r2.c000", "merge.r1", "merge.r2"]
        redo = plan_retry(f, (), (), ())
        assert list(redo.words) == [
            "retry: clump.r1.c001",
            "done again: clump: 1 job, merge: 1 job",
            "1 output moved away, to retired/",
        ]
        assert redo.takes_away
        go_again(f, redo)
        end_all(f, system)
        assert accepted(f)["merge.r1"] == "two.b0000.merge.g1"
        assert accepted(f)["merge.r2"] == "two.b0000.merge.g0"
        files = published(f)
        assert files["r1.fit"] == "two.b0000.merge.g1 merge.r1"
        assert files["retired/1/r1.fit"] == "two.b0000.merge.g0 merge.r1"
        assert len(files) == 6


@pytest.mark.parametrize(("bad", "version"), [([], "401"), (["merge.r1"], "400")])
def test_a_new_version_only_where_an_output_is_superseded(
    tmp_path: Path, system: Memory, bad: list[str], version: str
) -> None:
    text = VERSIONED.replace("after: [clump]", "after: {clump: done}")
    with campaign(tmp_path, text, TABLE) as f:
        end_all(f, system, "clump.r1.c001", *bad)
        go_again(f, plan_retry(f, (), (), ()))
        end_all(f, system)
        assert accepted(f)["merge.r1"] == "two.b0000.merge.g1"
        files = published(f)
        assert files[f"r1_v{version}.fit"] == "two.b0000.merge.g1 merge.r1"
        assert ("retired/1/r1_v400.fit" in files) == (version == "401")


def test_a_job_that_nobody_knows_is_retried_by_name_only_and_never_counts_again(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        stand_in.tell(system.landed[0], 0, Seen.LOST)
        watch_once(f)
        assert not plan_retry(f, (), (), ()).jobs
        go_again(f, plan_retry(f, (), (), ["clump.r1.c000"]))
        end_job(system.landed[0], 0, content=b"late")  # it was alive after all
        end_all(f, system)
        assert accepted(f)["clump.r1.c000"] == "two.b0000.clump.g1"
        assert published(f)["r1_c000.fit"] == "two.b0000.clump.g1 clump.r1.c000"


# --- rollback


def test_a_run_is_done_again_with_another_parameter_and_its_outputs_are_kept(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, VERSIONED, TABLE) as f:
        end_all(f, system)
        before = {batch.name: batch.digest for batch in f.ledger.batches()}
        redo = plan_rollback(f, ["r1"], "merge", {"emin": "30"})
        assert list(redo.words) == [
            "rollback: r1 from merge on with emin=30",
            "done again: merge: 1 job",
            "1 output moved away, to retired/",
            "with emin=30, version=401: r1",
        ]
        assert redo.takes_away
        go_again(f, redo)
        end_all(f, system)
        batch = f.ledger.batches()[-1]
        assert (batch.name, batch.runs, batch.parameters) == (
            "two.b0000.merge.g1", ("r1",), {"emin": "30", "version": "401"},
        )  # fmt: skip
        assert batch.digest not in before.values()
        assert published(f) == {
            "r1_c000.fit": "two.b0000.clump.g0 clump.r1.c000",
            "r1_c001.fit": "two.b0000.clump.g0 clump.r1.c001",
            "r1_v401.fit": "two.b0000.merge.g1 merge.r1",
            "r2_c000.fit": "two.b0000.clump.g0 clump.r2.c000",
            "r2_v400.fit": "two.b0000.merge.g0 merge.r2",
            "retired/1/r1_v400.fit": "two.b0000.merge.g0 merge.r1",
        }
        assert any("rollback 1: r1 from merge on with emin=30" in what for _, _, what in f.ledger.journal())
        go_again(f, plan_rollback(f, ["r1"], "merge", {}))  # once more: with the parameter of before
        end_all(f, system)
        assert f.ledger.batches()[-1].parameters == {"emin": "30", "version": "402"}
        assert "retired/2/r1_v401.fit" in published(f)
        assert len(accepted(f)) == 5
        assert standing_of(f).good


def test_a_whole_run_again_and_a_later_retry_of_it_has_the_new_parameter(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, VERSIONED.replace("_v{version}", ""), TABLE) as f:
        end_all(f, system)
        go_again(f, plan_rollback(f, ["r1", "r2"], None, {"emin": "30"}))
        assert [batch.name for batch in f.ledger.batches()][2:] == ["two.b0000.clump.g1"]
        end_all(f, system, "clump.r1.c000")
        go_again(f, plan_retry(f, (), (), ()))
        end_all(f, system)
        named = {batch.name: batch for batch in f.ledger.batches()}
        assert named["two.b0000.clump.g1"].runs is None
        assert [dict(named[name].parameters) for name in list(named)[2:]] == [{"emin": "30"}] * 4
        assert accepted(f) == {
            "clump.r1.c000": "two.b0000.clump.g2",
            "clump.r1.c001": "two.b0000.clump.g1",
            "clump.r2.c000": "two.b0000.clump.g1",
            "merge.r1": "two.b0000.merge.g2",
            "merge.r2": "two.b0000.merge.g1",
        }
        row = (rendered(f.folder, named["two.b0000.merge.g2"]).plan_dir / "shards").iterdir()
        assert "arg=30" in next(row).read_text()
        assert published(f)["retired/1/r1.fit"] == "two.b0000.merge.g0 merge.r1"


def test_jobs_that_are_alive_are_removed_first_and_their_late_results_do_not_count(
    tmp_path: Path, system: Memory
) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        end_job(system.landed[0], 0)
        look(f)
        redo = plan_rollback(f, ["r1"], None, {})
        assert "1 job that did not end yet: removed first" in list(redo.words)
        decide(f, redo)
        assert finish_decisions(f.ledger, f.folder, f.assembled, f.hand) == []
        assert system.said == [("remove", "two.b0000.clump.g0", [1])]
        assert send(f) == 1, "what comes back of a retired job is not accepted: nobody has to wait for it"
        assert not watch_once(f).finished
        end_job(system.landed[0], 1, content=b"late")  # it ended before the removal reached it
        end_all(f, system)
        assert accepted(f)["clump.r1.c001"] == "two.b0000.clump.g1"
        late, counts = f.ledger.attempts("clump.r1.c001")
        assert (late.exit, late.accepted, late.retired, counts.accepted, counts.retired) == (0, False, 1, True, None)
        assert published(f)["r1_c001.fit"] == "two.b0000.clump.g1 clump.r1.c001"
        assert published(f)["retired/1/r1_c000.fit"] == "fit"
        assert len(accepted(f)) == 5


def test_old_jobs_that_cannot_be_removed_yet_are_removed_when_they_come(
    tmp_path: Path, system: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTCondor has not made them yet. Nobody waits for them, and `watch` has not ended before they are gone."""

    def refuse(*_: Any) -> None:
        raise SubmissionRefused("2 of these jobs are not in the queue yet")

    with campaign(tmp_path, CHAIN, "run,events\nr1,15\n") as f:
        watch_once(f)
        with monkeypatch.context() as patch:
            patch.setattr(stand_in, "remove", refuse)
            decide(f, plan_rollback(f, ["r1"], None, {}))
            (problem,) = finish_decisions(f.ledger, f.folder, f.assembled, f.hand)
            assert "not in the queue yet" in problem
            send(f)
            for batch in (1, 2):
                for index in range(system.landed[batch].jobs):
                    end_job(system.landed[batch], index, attempt="g1.s1.aaaaaaaa")
                turn = watch_once(f)
            assert len(accepted(f)) == 3
            assert not turn.finished
        assert not watch_once(f).finished, "nothing happened to them: it is not tried again"
        stand_in.tell(system.landed[0], 0, Seen.STARTED)
        watch_once(f)
        assert system.said == [("remove", "two.b0000.clump.g0", [0, 1])]
        assert watch_once(f).finished


def test_a_batch_in_doubt_is_withdrawn_before_its_runs_are_rolled_back(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, VERSIONED, TABLE) as f:
        system.answer = "silent"
        with pytest.raises(BackendUnavailable):
            send(f)
        with pytest.raises(BackendUnavailable):
            plan_rollback(f, ["r1"], None, {})
        system.answer = "yes"
        redo = plan_rollback(f, ["r1"], None, {"version": "2"})
        assert f.ledger.batches() == []
        go_again(f, redo)
        assert [(b.runs, dict(b.parameters)) for b in f.ledger.batches()] == [
            (("r1",), {"version": "2"}), (("r2",), {}),
        ]  # fmt: skip
        end_all(f, system)
        assert len(accepted(f)) == 5


def test_a_version_that_nothing_says_is_refused(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, PARAMETERS + CHAIN, TABLE) as f:
        end_all(f, system)
        with pytest.raises(ConfigError, match=re.escape("nothing of merge says {version}, so it would change nothing")):
            plan_rollback(f, ["r1"], "merge", {"version": "401"})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"emax": "1"}, "--set emax: no such parameter"),
        ({"version": "/../x"}, "must be a relative path"),
        ({"version": "40 2"}, "--set version='40 2': a version has no blanks in it"),
        ({"idle": "1"}, "--set idle: nothing of clump, merge says {idle}, so it would change nothing"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, system: Memory, settings: dict[str, str], words: str) -> None:
    with campaign(tmp_path, VERSIONED.replace("emin: '100'", "emin: '100', idle: '0'"), TABLE) as f:
        end_all(f, system)
        with pytest.raises(ConfigError, match=re.escape(words)):
            plan_rollback(f, ["r1"], None, settings)
        assert f.ledger.decisions() == []


@pytest.mark.parametrize(
    ("version", "after"), [("400", "401"), ("v009b", "v010b"), ("", None), ("best", None), ("2.99", "2.100")]
)
def test_the_next_version(tmp_path: Path, system: Memory, version: str, after: str | None) -> None:
    with campaign(tmp_path, VERSIONED.replace("'400'", f"'{version}'"), TABLE) as f:
        end_all(f, system)
        if after is None:
            with pytest.raises(RedoRefused, match="is not known"):
                plan_rollback(f, ["r1"], None, {})
            after = version
        redo = plan_rollback(f, ["r1"], None, {} if after != version else {"version": version})
        assert {values["version"] for values in redo.overrides.values()} == {after}


def test_a_version_in_the_name_of_an_input_that_keeps_its_own_is_to_be_said(tmp_path: Path, system: Memory) -> None:
    text = VERSIONED.replace("  merge:\n", '  merge:\n    inputs: ["/data/{run}_v{version}.fit"]\n')
    with campaign(tmp_path, text, TABLE) as f:
        end_all(f, system)
        with pytest.raises(RedoRefused, match=r"the input .* of merge has the version in its name, and clump is not"):
            plan_rollback(f, ["r1"], "merge", {})
        assert plan_rollback(f, ["r1"], "merge", {"version": "400"}).jobs
        assert plan_rollback(f, ["r1"], "clump", {}).jobs


# --- everything at once

DAY = """\
campaign: day
image: light
runs: {table: runs.csv}
block: 3
version: '1'
steps:
  digi:
    command: [/bin/true]
    outputs: {out.fit: "{run}_digi.fit"}
  clump:
    foreach: clump
    split: {events: 10}
    after: [digi]
    command: [/bin/true, "{run}", "{piece}"]
    outputs: {out.fit: "{run}_{piece}.fit"}
  merge:
    after: {clump: done}
    gather: {pieces: {step: clump, output: out.fit}}
    command: [/bin/true, "{run}"]
    outputs: {out.fit: "{run}_v{version}.fit"}
  ship:
    after: [merge]
    command: [/bin/true, "{run}"]
"""
DAYS_RUNS = "run,events\n" + "".join(f"r{number},{events}\n" for number, events in enumerate((25, 0, 5, 10, 31)))


@pytest.mark.parametrize("seed", range(6))
def test_after_a_bad_day_each_job_counts_once(tmp_path: Path, system: Memory, seed: int) -> None:
    """Jobs end well, badly, are lost, removed; people retry and roll back; answers are lost; in the end all is done."""
    chance = random.Random(seed)
    with campaign(tmp_path, DAY, DAYS_RUNS) as f:
        for _ in range(60):
            _something(f, system, chance)
        system.answer = "yes"
        for _ in range(12):
            end_all(f, system)
            if not (lost := plan_retry(f, (), (), ()).jobs):
                break
            go_again(f, plan_retry(f, (), (), ()))
        assert not lost
        assert sorted(accepted(f)) == sorted(
            ["digi.r0", "digi.r1", "digi.r2", "digi.r3", "digi.r4", "clump.r0.c000", "clump.r0.c001", "clump.r0.c002",
             "clump.r2.c000", "clump.r3.c000", "clump.r4.c000", "clump.r4.c001", "clump.r4.c002", "clump.r4.c003",
             *(f"merge.r{n}" for n in range(5)), *(f"ship.r{n}" for n in range(5))]
        )  # fmt: skip
        standing = standing_of(f)
        assert standing.good, standing.headline
        assert (standing.jobs, standing.unsent, standing.blocked, standing.again) == (24, 0, 0, 0)
        order = [batch.name for batch in f.ledger.batches()]
        counts = accepted(f)
        for job, batch in counts.items():
            step, run = job.split(".")[:2]
            before = {"clump": ["digi"], "merge": ["clump"], "ship": ["merge"]}.get(step, [])
            made = [other for other in counts if other.split(".")[:2] in [[name, run] for name in before]]
            assert all(order.index(counts[other]) < order.index(batch) for other in made), (
                f"{job} is older than its input"
            )
        top = [name for name in published(f) if "/" not in name]
        assert len(top) == 5 + 9 + 5
        versions = {values.get("version", "1") for (step, _), values in f.ledger.overrides().items() if step == "merge"}
        assert all(name.endswith(tuple(f"_v{v}.fit" for v in {*versions, "1"})) for name in top if "_v" in name)


def _something(f: Following, memory: Memory, chance: random.Random) -> None:
    what = chance.choice(["end", "end", "end", "watch", "watch", "lose", "retry", "rollback", "remove", "answer"])
    alive = [(batch, index) for batch in memory.landed for index in range(batch.jobs)
             if not ((job := f.ledger.job(batch.batch_id, index)) and job.state.final)]  # fmt: skip
    if what == "end":
        for batch, index in chance.sample(alive, min(len(alive), chance.randint(1, 6))):
            end_job(
                batch, index, chance.choice((0, 0, 0, 3)), attempt=f"g{batch.name[-1]}.s1.{chance.randrange(10**8):08d}"
            )
    elif what == "lose" and alive:
        batch, index = chance.choice(alive)
        stand_in.tell(batch, index, Seen.LOST)
        stand_in.tell(batch, index, Seen.ENDED, 1)
    elif what == "answer":
        memory.answer = chance.choice(["yes", "lost", "late", "silent"])
    try:
        if what == "retry":
            decide(f, plan_retry(f, (), (), (), chance.random() < 0.3))
        elif what == "rollback":
            step = chance.choice([None, "digi", "clump", "merge", "ship"])
            decide(f, plan_rollback(f, chance.sample(["r0", "r1", "r2", "r3", "r4"], 2), step, {}))
        elif what == "remove":
            control(f, "remove", [chance.choice(["digi", "clump", "merge"])], (), [chance.choice(["r0", "r2", "r4"])])
        watch_once(f)
    except (BackendUnavailable, SubmissionDoubt):
        memory.answer = "yes"


# --- what is told


def test_why_a_job_is_done_again_and_what_it_was_before(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, VERSIONED, TABLE) as f:
        end_all(f, system, "clump.r1.c001")
        decide(f, plan_retry(f, (), (), ()))
        (found,) = find_job(f.ledger, f.folder, "clump.r1.c001")
        assert next(explain_job(f, found)) == (
            "to be done again by retry 1 of me@here, 2027-03-04T05:06:07+00:00: clump.r1.c001"
        )
        assert explain_unsent(f, "clump.r1.c001") == (
            "not sent yet: what is done again of block b0000 is taken out of the way first",
        )
        assert "retry 1 of 2027-03-04T05:06:07+00:00 goes on" in standing_of(f).headline
        end_all(f, system)
        *earlier, found = find_job(f.ledger, f.folder, "clump.r1.c001")
        assert list(explain_job(f, found, earlier))[-1] == (
            "before, in two.b0000.clump.g0: failed (the payload ended with exit code 3); done again in "
            "two.b0000.clump.g1 by retry 1 of me@here, 2027-03-04T05:06:07+00:00: clump.r1.c001"
        )
        go_again(f, plan_rollback(f, ["r1"], "merge", {"emin": "30"}))
        *earlier, found = find_job(f.ledger, f.folder, "merge.r1")
        words = list(explain_job(f, found, earlier))
        assert words[0] == "with emin=30, version=401 in the place of what the campaign says"
        assert any(text.endswith("accepted, given up since") for text in words)


def test_a_person_acts_on_a_run(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        assert control(f, "hold", ["clump"], (), ["r2"]) == 1
        assert control(f, "release", ["clump"], (), ["r2"]) == 0, (
            "nothing was heard of its hold yet: it goes on all the same"
        )
        assert control(f, "remove", (), (), ["r1", "r2"]) == 3 + 2, "the merges, too"
        name = "two.b0000.clump.g0"
        assert system.said == [("hold", name, [2]), ("release", name, [2]), ("remove", name, [0, 1, 2])]
        watch_once(f)
        assert f.ledger.campaign().stopped is None
        go_again(f, plan_retry(f, (), ["r1"], ()))
        end_all(f, system)
        assert sorted(accepted(f)) == ["clump.r1.c000", "clump.r1.c001", "merge.r1"]


def test_a_person_acts_on_what_is_not_sent_yet(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        assert control(f, "hold", ["merge"], ()) == 2
        assert control(f, "hold", ["merge"], (), ["r2"]) == 0, "it is held"
        assert control(f, "remove", ["merge"], (), ["r2"]) == 1
        for index in range(3):
            end_job(system.landed[0], index)
        assert not watch_once(f).finished, "a person may release it"
        assert len(system.landed) == 1
        standing = standing_of(f)
        assert not standing.good
        assert "\nremoved before they were sent: 1 job (`fermigrid retry`" in standing.headline
        assert "\nheld before they were sent: 1 job (until `fermigrid release`)" in standing.headline
        assert "never sent, because" not in standing.headline
        words = {job: " ".join(explain_unsent(f, job)) for job in ("merge.r1", "merge.r2")}
        assert words["merge.r1"].startswith(
            "not sent: it was held on 2027-03-04T05:06:07+00:00 by me@here, before it was sent;"
        )
        assert "removed" in words["merge.r2"] and "`fermigrid retry`" in words["merge.r2"]
        assert control(f, "release", (), (), ["r1", "r2"]) == 1, "what was removed is not released"
        watch_once(f)
        assert [(b.step, b.runs) for b in f.ledger.batches()[1:]] == [("merge", ("r1",))]
        end_job(system.landed[1], 0)
        assert watch_once(f).finished
        redo = plan_retry(f, ["merge"], (), ())
        assert list(redo.words)[1] == "sent after all: 1 job removed before they were sent"
        go_again(f, redo)
        end_all(f, system)
        assert standing_of(f).good
        assert sorted(accepted(f)) == [
            "clump.r1.c000", "clump.r1.c001", "clump.r2.c000", "merge.r1", "merge.r2",
        ]  # fmt: skip


def test_a_run_that_is_rolled_back_is_not_withheld_any_more(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        control(f, "remove", ["merge"], (), ["r1"])
        end_all(f, system)
        assert standing_of(f).removed_unsent == 1
        go_again(f, plan_rollback(f, ["r1"], None, {}))
        end_all(f, system)
        assert standing_of(f).good


# --- storage sites


@contextmanager
def at_storage(folder: Path, root: Path, backend: str, text: str) -> Iterator[Following]:
    """A campaign whose outputs go to a folder of a site."""
    (folder / "own").mkdir(exist_ok=True)
    more = "htcondor: {requirements: 'true'}\n" if backend == "htcondor" else ""
    site = STORE.format(backend=backend, more=more, root=root)
    (folder / "own/store.yaml").write_text(site)
    assembled = assemble(folder, text, TABLE, site="store", own=[folder / "own"])
    run = RunFolder(folder / "run")
    prepare(run)
    with closing(begin(assembled, run, "store", [str(folder / "own"), str(SITES)], make_hand())) as ledger:
        yield Following(ledger, run, assembled, "store", make_hand())


def store_all(f: Following, memory: Memory, root: Path) -> None:
    """Every job ends well, its outputs in the site's folder, where nothing is overwritten."""
    for _ in range(10):
        watch_once(f)
        alive = [(batch, index, name) for batch in memory.landed for index, (name, _) in enumerate(read_items(batch.plan_dir))
                 if not f.ledger.job(batch.batch_id, index)]  # fmt: skip
        if not alive:
            return
        for batch, index, name in alive:
            record = next(each for each in f.ledger.batches() if each.id == batch.batch_id)
            ((local, to),) = Items(f.folder).declared(record, index).outputs
            content = f"{batch.name} {name}".encode()
            if not (root / to).exists():
                root.mkdir(parents=True, exist_ok=True)
                (root / to).write_bytes(content)
            sha256 = hashlib.sha256((root / to).read_bytes()).hexdigest()
            output = {"name": local, "to": to, "file": str(root / to), "bytes": (root / to).stat().st_size,
                      "sha256": sha256, "result": "ours"}  # fmt: skip
            end_job(batch, index, 0, attempt=f"g{batch.name[-1]}.s1.aaaaaaaa", content=None, outputs=[output])
    raise AssertionError("it never ends")


@pytest.mark.parametrize("backend", ["local", "htcondor"])
def test_outputs_in_a_folder_that_is_seen_here_are_moved_in_it(
    tmp_path: Path, system: Memory, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "htcondor", "tests.stand_in")
    root = tmp_path / "store"
    with at_storage(tmp_path, root, backend, CHAIN) as f:
        store_all(f, system, root)
        redo = plan_rollback(f, ["r1"], "merge", {})
        assert "1 output moved away, to retired/" in list(redo.words)
        go_again(f, redo)
        store_all(f, system, root)
        word = f.ledger.campaign().instance[:8]
        assert (root / "r1.fit").read_text() == "two.b0000.merge.g1 merge.r1"
        assert (root / f"retired/two-{word}/1/r1.fit").read_text() == "two.b0000.merge.g0 merge.r1"
        assert len(list(root.glob("*.fit"))) == 5


def test_at_a_storage_site_nothing_is_sent_while_an_old_job_could_write(tmp_path: Path, system: Memory) -> None:
    root = tmp_path / "store"
    with at_storage(tmp_path, root, "local", CHAIN) as f:
        watch_once(f)
        stand_in.tell(system.landed[0], 0, Seen.STARTED)
        decide(f, plan_rollback(f, ["r1"], None, {}))
        assert finish_decisions(f.ledger, f.folder, f.assembled, f.hand) == [
            "rollback 1: 2 jobs of it are being removed, and may write until then; what is done again comes after that"
        ]
        assert send(f) == 0
        root.mkdir()
        (root / "r1_c000.fit").write_text("nobody heard of it")
        assert watch_once(f).problems == ()
        assert [batch.name for batch in f.ledger.batches()][1:] == ["two.b0000.clump.g1"]
        word = f.ledger.campaign().instance[:8]
        assert (root / f"retired/two-{word}/1/r1_c000.fit").read_text() == "nobody heard of it"
        store_all(f, system, root)
        assert (root / "r1_c000.fit").read_text() == "two.b0000.clump.g1 clump.r1.c000"


def test_what_is_not_what_was_accepted_is_not_moved(tmp_path: Path, system: Memory) -> None:
    root = tmp_path / "store"
    with at_storage(tmp_path, root, "local", CHAIN) as f:
        store_all(f, system, root)
        decide(f, plan_rollback(f, ["r1"], "merge", {}))
        (root / "r1.fit").write_text("somebody's")
        (problem,) = finish_decisions(f.ledger, f.folder, f.assembled, f.hand)
        assert "store/r1.fit is not what was accepted" in problem
        assert send(f) == 0
        (root / "r1.fit").unlink()
        assert finish_decisions(f.ledger, f.folder, f.assembled, f.hand) == []
        store_all(f, system, root)
        assert accepted(f)["merge.r1"] == "two.b0000.merge.g1"


def test_outputs_that_cannot_be_moved_stay_and_the_new_ones_need_another_name(
    tmp_path: Path, system: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "htcondor", "tests.stand_in")
    root = tmp_path / "store"
    with at_storage(tmp_path, root, "htcondor", VERSIONED) as f:
        store_all(f, system, root)
        root.rename(tmp_path / "elsewhere")  # only the nodes see it
        with pytest.raises(RedoRefused, match=r"store/r1_c00\d.fit stays there") as refused:
            plan_rollback(f, ["r1"], None, {})
        assert "{version}" in refused.value.hint
        with pytest.raises(RedoRefused, match=r"store/r1_v400.fit stays there"):
            plan_rollback(f, ["r1"], "merge", {"version": "400"})
        assert f.ledger.decisions() == []
        redo = plan_rollback(f, ["r1"], "merge", {})
        assert f"  {root}/r1_v400.fit" in list(redo.words)
        assert redo.takes_away
        go_again(f, redo)
        (tmp_path / "elsewhere").rename(root)
        store_all(f, system, root)
        assert {path.name for path in root.iterdir() if path.name.startswith("r1_v")} == {"r1_v400.fit", "r1_v401.fit"}


# --- kills


class Killer:
    """Kills fermigrid at an instant: before or after a change of the ledger, before a change of a file's name."""

    def __init__(self, patch: pytest.MonkeyPatch, instant: int) -> None:
        self.left = instant
        change, link, unlink, remove, submit = (
            Ledger._transaction, os.link, os.unlink, stand_in.remove, stand_in.submit,
        )  # fmt: skip

        @contextmanager
        def transaction(ledger: Ledger) -> Iterator[Any]:
            self.tick()
            with change(ledger) as db:
                yield db
            self.tick()

        def ticking(call: Callable[..., Any]) -> Callable[..., Any]:
            def then(*arguments: Any, **options: Any) -> Any:
                self.tick()
                done = call(*arguments, **options)
                self.tick()
                return done

            return then

        patch.setattr(Ledger, "_transaction", transaction)
        patch.setattr(os, "link", ticking(link))
        patch.setattr(os, "unlink", ticking(unlink))
        patch.setattr(stand_in, "remove", ticking(remove))
        patch.setattr(stand_in, "submit", ticking(submit))

    def tick(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed


@pytest.mark.parametrize("what", ["retry", "rollback", "rollback of what is alive"])
def test_killed_at_any_instant_it_goes_on_and_nothing_is_lost_or_doubled(
    tmp_path: Path, system: Memory, what: str
) -> None:
    instant, killed = 0, True
    while killed:
        stand_in.forget()
        killed = _killed_at(tmp_path / str(instant), stand_in.memory, what, instant)
        instant += 1
    assert instant > 10


def _killed_at(folder: Path, memory: Memory, what: str, instant: int) -> bool:
    """False: it was over before."""

    def plan(f: Following) -> Redo:
        return plan_retry(f, (), (), ()) if what == "retry" else plan_rollback(f, ["r1"], None, {})

    killed = False
    with campaign(folder, GOOD_ONES, TABLE) as f:
        if what == "rollback of what is alive":
            watch_once(f)
            end_job(memory.landed[0], 0)
            look(f)
        else:
            end_all(f, memory, "clump.r1.c001")
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, instant)
            try:
                go_again(f, plan(f))
            except Killed:
                killed = True
    with campaign(folder, GOOD_ONES, TABLE) as f:
        watch_once(f)
        if not f.ledger.decisions():
            go_again(f, plan(f))
        end_all(f, memory)
        assert len(f.ledger.decisions()) == 1
        ids = [batch.batch_id for batch in memory.landed]
        assert len(ids) == len(set(ids)) == len(f.ledger.batches()), instant
        assert sorted(accepted(f)) == ["clump.r1.c000", "clump.r1.c001", "clump.r2.c000", "merge.r1", "merge.r2"]
        again = "two.b0000.clump.g1"
        assert accepted(f)["clump.r1.c001"] == again
        files = published(f)
        assert files["r1_c001.fit"] == f"{again} clump.r1.c001"
        kept = [text for name, text in files.items() if name.startswith("retired/1/")]
        first = "fit" if what == "rollback of what is alive" else "two.b0000.clump.g0 clump.r1.c000"
        merged = "two.b0000.merge.g0 merge.r1"
        there = {"retry": [merged], "rollback": [merged, first]}.get(what, [first])
        assert sorted(kept) == sorted(there)
        assert len(files) == 5 + len(kept)
    return killed


@pytest.mark.parametrize("what", ["retry", "rollback"])
@pytest.mark.parametrize("answer", ["lost", "late", "killed", "dead", "silent"])
def test_a_submission_that_is_cut_short_is_settled_as_for_the_first_generation(
    tmp_path: Path, system: Memory, what: str, answer: str
) -> None:
    """The answer is lost, fermigrid is killed before or after the batch left: it is in the queue once."""
    with campaign(tmp_path, GOOD_ONES, TABLE) as f:
        end_all(f, system, "clump.r1.c001")
        redo = plan_retry(f, (), (), ()) if what == "retry" else plan_rollback(f, ["r1"], None, {})
        decide(f, redo)
        finish_decisions(f.ledger, f.folder, f.assembled, f.hand)
        system.answer = answer
        with pytest.raises((SubmissionDoubt, BackendUnavailable, Killed)):
            send(f)
        system.answer = "yes"
    with campaign(tmp_path, GOOD_ONES, TABLE) as f:
        end_all(f, system)
        ids = [batch.batch_id for batch in system.landed]
        assert len(ids) == len(set(ids)) == len(f.ledger.batches())
        assert sorted(accepted(f)) == ["clump.r1.c000", "clump.r1.c001", "clump.r2.c000", "merge.r1", "merge.r2"]
        assert accepted(f)["merge.r1"] == "two.b0000.merge.g1"


def test_a_refused_submission_is_still_to_be_done_again(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        end_all(f, system, "clump.r1.c001")
        decide(f, plan_retry(f, (), (), ()))
        system.answer = "no"
        with pytest.raises(Exception, match="no permission"):
            watch_once(f)
        assert standing_of(f).again == 1
        assert "to be sent again: 1 job" in standing_of(f).headline
        system.answer = "yes"
        end_all(f, system)
        assert len(accepted(f)) == 5
