"""Limits, drains, bans and retries at a site of DIRAC, which is given a batch whole and changes nothing of it then."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fermigrid import backends
from fermigrid.assemble import assemble_file
from fermigrid.backends import JobSeen
from fermigrid.errors import SubmissionRefused, Unrepresentable
from fermigrid.explain import explain_job
from fermigrid.find_job import find_job
from fermigrid.jdl import documents
from fermigrid.live import ban_nodes, set_values
from fermigrid.runfolder import RunFolder
from fermigrid.states import Seen, State
from fermigrid.submit import begin, prepare, rendered
from fermigrid.unsent import explain_unsent
from fermigrid.watch import Following, watch_once
from tests import stand_in
from tests.campaigns import NOW, SITES, SMALL, complaints, make_hand, write
from tests.stand_in import TIME, Memory, end_job

MANY = SMALL.replace("count: 2", "count: 12") + "block: 2\n"
GRID = """\
site: grid
title: made up
contact: nobody
manual: https://example.org/
backend: dirac
dirac: {url: "https://diracx.example.org", vo: glast.org, group: glast_user, banned_sites: [LCG.CNAF.it]}
container: {launch: worker}
output: {kind: transfer}
"""


@contextmanager
def on_the_grid(folder: Path, text: str) -> Iterator[Following]:
    """A campaign at a site of DIRAC, of which a stand-in takes the place."""
    own = folder / "sites"
    own.mkdir()
    (own / "grid.yaml").write_text(GRID)
    a = assemble_file(write(folder, text), "grid", {}, (own, SITES))
    prepare(run := RunFolder(folder / "run"))
    hand = make_hand()
    with closing(begin(a, run, "grid", [str(own), str(SITES)], hand)) as ledger:
        yield Following(ledger, run, a, "grid", hand)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    monkeypatch.setitem(backends.BACKENDS, "dirac", "tests.stand_in")
    yield stand_in.forget()
    stand_in.forget()


def later(f: Following, seconds: float) -> Following:
    return replace(f, hand=replace(f.hand, now=lambda: NOW + timedelta(seconds=seconds)))


def end_batch(system: Memory, number: int) -> None:
    for index in (0, 1):
        end_job(system.landed[number], index)


def test_no_more_jobs_are_sent_than_may_run(tmp_path: Path, system: Memory) -> None:
    with on_the_grid(tmp_path, MANY + "limits: {running: 5}\n") as f:
        watch_once(f)
        assert len(system.landed) == 2
        assert "places" not in f.ledger.batches()[0].options
        (why,) = explain_unsent(f, "go.0004")
        together = "and grid is given the 2 jobs of this batch together"
        assert why == f"not sent yet: limits.running has room for 1 job, {together}"
        end_job(system.landed[0], 0)
        watch_once(f)
        assert len(system.landed) == 3
        end_batch(system, 1)
        watch_once(f)
        assert (len(system.landed), system.allowed, system.said) == (4, {}, [])


def test_no_more_jobs_are_sent_in_a_minute_than_may_start(tmp_path: Path, system: Memory) -> None:
    with on_the_grid(tmp_path, MANY + "limits: {starts: 4}\n") as f:
        for seconds, sent in ((0, 1), (29, 1), (31, 2), (59, 2), (61, 3), (1000, 4), (1029, 4), (1031, 5)):
            watch_once(later(f, seconds))
            assert len(system.landed) == sent, seconds
        (why,) = explain_unsent(later(f, 1041), "go.0011")
        assert "limits.starts is 4: more may be sent in 20 s, and grid is given the 2 jobs" in why


def test_a_drain_sends_nothing_more_and_says_what_it_cannot_do(tmp_path: Path, system: Memory) -> None:
    with on_the_grid(tmp_path, MANY + "limits: {running: 4}\n") as f:
        watch_once(f)
        system.news.append(JobSeen(system.landed[0].batch_id, 0, Seen.STARTED, TIME))
        watch_once(f)
        said = set_values(f, ["sites.grid=drain"])
        assert said[0] == "grid is drained: no new work goes there"
        names = "small.b0000.go.g0, small.b0001.go.g0"
        assert said[1] == f"3 jobs of {names} may still start: DIRAC has them. `fermigrid remove` takes them out"
        end_batch(system, 0)
        turn = watch_once(f)
        assert (len(system.landed), turn.problems, system.said) == (2, (), [])
        set_values(f, ["sites.grid=undrain"])
        watch_once(f)
        assert (len(system.landed), system.said) == (3, [])


def test_priority_and_bans_are_of_what_is_sent_later(tmp_path: Path, system: Memory) -> None:
    with on_the_grid(tmp_path, MANY + "limits: {running: 2}\n") as f:
        watch_once(f)
        only = "priority and bans are for what is sent from now on: DIRAC has the jobs of small.b0000.go.g0"
        assert set_values(f, ["priority=5"])[1:] == [only]
        assert ban_nodes(f, ["LCG.PISA.it"], None, "") == ["no more jobs to LCG.PISA.it of grid", only]
        with pytest.raises(SubmissionRefused, match="'slot1@node' is no site of DIRAC"):
            ban_nodes(f, ["slot1@node"], "grid", "")
        end_batch(system, 0)
        watch_once(f)
        assert system.allowed == {}
        before, after = (next(documents(rendered(f.folder, batch))).text for batch in f.ledger.batches())
        assert '  BannedSites = {"LCG.CNAF.it"};\n' in before
        assert '  BannedSites = {"LCG.CNAF.it", "LCG.PISA.it"};\n' in after
        assert (re.search(r"Priority = (\d+);", before), re.search(r"Priority = (\d+);", after)[1]) == (None, "5")  # type: ignore[index]


def test_a_ban_where_the_site_has_none_and_a_template_without_a_place(tmp_path: Path, system: Memory) -> None:
    with on_the_grid(tmp_path, SMALL) as f:
        watch_once(f)
        batch = rendered(f.folder, f.ledger.batches()[0])
        form = batch.plan_dir / "job.jdl"
        form.chmod(0o600)
        text = form.read_text().replace('  BannedSites = {"LCG.CNAF.it"};\n', "")
        form.write_text(text)
        banned = replace(batch, options={**batch.options, "banned": ["LCG.PISA.it"]})
        assert next(documents(banned)).text.count('  BannedSites = {"LCG.PISA.it"};\n  Parameters = {') == 1
        form.write_text(text.replace("  Parameters = ", "  Parameters= "))
        with pytest.raises(Unrepresentable, match="the template has no line Parameters"):
            next(documents(banned))


@pytest.mark.parametrize("limit", ["running: 1", "steps: {go: {running: 1}}", "sites: {grid: {running: 1}}"])
def test_a_limit_below_a_batch_is_refused(tmp_path: Path, limit: str) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites/grid.yaml").write_text(GRID)
    text = MANY + f"sites: {{grid: 1}}\nlimits: {{{limit}}}\n"
    said = complaints(tmp_path, text, site="grid", own=[tmp_path / "sites"])
    (one,) = [each for each in said if "DIRAC" in each]
    assert one.startswith("campaign.yaml:8: block: limits.") and "running is 1; step go has 2 jobs in a block" in one


def test_a_limit_below_a_later_batch_is_refused(tmp_path: Path) -> None:
    """The runs of a block are of any size."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites/grid.yaml").write_text(GRID)
    (tmp_path / "runs.csv").write_text("run,events\nr1,20\nr2,20\nr3,200\nr4,200\n")
    text = MANY.replace("{count: 12}", "{table: runs.csv}")
    text = text.replace("    command:", "    foreach: clump\n    split: {events: 10}\n    command:", 1)
    text = text.replace("{run}", "{run}_{piece}")
    said = complaints(tmp_path, text + "limits: {running: 10}\n", site="grid", own=[tmp_path / "sites"])
    assert any("limits.running is 10; step go has 40 jobs in a block" in each for each in said), said


def test_a_limit_that_is_set_below_a_batch_is_told(tmp_path: Path, system: Memory) -> None:
    with on_the_grid(tmp_path, MANY + "limits: {running: 4}\n") as f:
        said = set_values(f, ["limits.running=1"])
        assert "limits.running is 1; step go has 2 jobs in a block, and DIRAC (site 'grid') is given them" in said[1]


# --- what becomes of jobs that did not end well


def fail(system: Memory, f: Following, code: int, reason: str) -> None:
    """The first job of the last batch ends so, and its log does not come."""
    system.news.append(JobSeen(system.landed[-1].batch_id, 0, Seen.STARTED, TIME, host="LCG.PISA.it"))
    system.news.append(JobSeen(system.landed[-1].batch_id, 0, Seen.ENDED, TIME, exit_code=code, reason=reason))
    watch_once(f)


def test_what_dirac_gives_up_is_done_again_as_often_as_the_rules_say(tmp_path: Path, system: Memory) -> None:
    words = "Failed, Job stalled: pilot not running"
    with on_the_grid(tmp_path, SMALL.replace("count: 2", "count: 1") + "retries: {max: 2}\n") as f:
        watch_once(f)
        for again in (1, 2):
            fail(system, f, 99, words)
            assert [batch.generation for batch in f.ledger.batches()] == list(range(again + 1))
        fail(system, f, 99, words)
        assert len(f.ledger.batches()) == 3
        (job,) = f.ledger.jobs_in(State.FAILED)
        assert job.reason == f"its log did not come back ({words})"
        assert any(words in line for line in explain_job(f, find_job(f.ledger, f.folder, "go.0000")[-1]))
        assert watch_once(f).finished


def test_what_dirac_does_not_take_is_not_sent_again(tmp_path: Path, system: Memory) -> None:
    with on_the_grid(tmp_path, SMALL.replace("count: 2", "count: 1")) as f:
        watch_once(f)
        fail(system, f, 80, "Failed, No candidate sites available")
        assert len(f.ledger.batches()) == 1 and watch_once(f).finished


def test_memory_grows_from_batch_to_batch(tmp_path: Path, system: Memory) -> None:
    """HTCondor lets a job ask for more in its queue; for DIRAC each is another document."""
    with on_the_grid(tmp_path, SMALL.replace("count: 2", "count: 1") + "retries: {max: 3}\n") as f:
        watch_once(f)
        for _ in range(2):
            system.news.append(JobSeen(system.landed[-1].batch_id, 0, Seen.STARTED, TIME))
            end_job(system.landed[-1], 0, 137)
            watch_once(f)
        asked = [next(documents(rendered(f.folder, batch))).text for batch in f.ledger.batches()]
        memory = [int(found[1]) for text in asked if (found := re.search(r"MinRAM = (\d+);", text))]
        assert memory == [2048, 3072, 4608]
