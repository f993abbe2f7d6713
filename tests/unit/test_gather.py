"""What jobs are given of the steps before them: in the plan, in the run folder, in words when it cannot be."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fermigrid import backends
from fermigrid.advance import Work
from fermigrid.backends import RenderedBatch
from fermigrid.difference import compare_jobs
from fermigrid.errors import LedgerError, RunFolderError, SubmissionRefused
from fermigrid.gather import Good, lines_of_row
from fermigrid.given import given_by, lay_out, take_away
from fermigrid.plan import Assembled, Plan, plan_batch
from fermigrid.planfolder import write_plan
from fermigrid.plantext import jobs_in
from fermigrid.quoting import decode_row
from fermigrid.render import SHARD_BYTES, render_shards, render_submit
from fermigrid.resources import shipped
from fermigrid.runs import Run
from fermigrid.watch import advance, watch_once
from tests import stand_in
from tests.campaigns import SMALL, assemble, complaints, lines_of_jobs, read_items, rows, values
from tests.stand_in import Memory, end_job
from tests.unit.test_submit import campaign

L1 = """\
campaign: l1
version: 7
image: light
runs: {table: runs.csv}
steps:
  digi:
    foreach: chunk
    split: {events: 10}
    command: [/bin/true, "{run}", "{chunk}", "{first_event}", "{event_count}"]
    outputs: {digi.fit.gz: "{run}/{chunk} v{version}.fit.gz"}
  recon:
    foreach: crumb
    split: {events: 10, crumbs: 3, crumb_events: 2}
    after: [digi]
    gather: {digi: {step: digi, output: digi.fit.gz}}
    command: [/bin/true, "digi/{chunk}.fit.gz", "{crumb}"]
    outputs: {out.fit: "{run}_{piece}_v{version}.fit"}
  chunk:
    foreach: chunk
    split: {events: 10}
    after: {recon: done}
    gather: {crumbs: {step: recon, output: out.fit}}
    command: [/bin/true]
    outputs: {out.fit: "{run}_{piece}_v{version}.fit"}
  run:
    after: {chunk: done, digi: accepted}
    gather:
      chunks: {step: chunk, output: out.fit}
      digis: {step: digi, output: digi.fit.gz}
    command: [/bin/true]
"""
TABLE = "run,events\nr1,25\nr2,4\n"
SITE = "site: mine\ntitle: T\ncontact: c\nmanual: m\nbackend: htcondor\ncontainer: {launch: worker}\n"


def plan_of(a: Assembled, step: str, site: str = "local", given: object = None, **more: object) -> Plan:
    work = replace(Work("b0000", step, site, 0, a.runs), **more)  # type: ignore[arg-type]
    return plan_batch(a, work, given)  # type: ignore[arg-type]


def gathered(plan: Plan) -> dict[str, list[dict[str, str]]]:
    """Job -> its lines."""
    found = {}
    for job, row in lines_of_jobs(plan):
        lines = row.split("\n")
        found[job] = [dict(decode_row(line)) for line in lines_of_row(lines, 1)]
        assert len(found[job]) == len(lines) - 1
    return found


def local_names(plan: Plan) -> dict[str, list[str]]:
    return {job: [line["in"] for line in lines] for job, lines in gathered(plan).items()}


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """A batch system in the place of this machine's."""
    monkeypatch.setitem(backends.BACKENDS, "local", "tests.stand_in")
    yield stand_in.forget()
    stand_in.forget()


# --- the plan


def test_each_job_is_given_what_belongs_to_it_in_the_order_of_events(tmp_path: Path) -> None:
    a = assemble(tmp_path, L1, TABLE)
    assert local_names(plan_of(a, "digi")) == {f"digi.{n}": [] for n in ("r1.k000", "r1.k001", "r1.k002", "r2.k000")}
    crumbs = local_names(plan_of(a, "recon"))
    assert crumbs["recon.r1.k001u002"] == ["digi/k001.fit.gz"]
    assert len(crumbs) == 11
    assert local_names(plan_of(a, "chunk"))["chunk.r1.k001"] == [f"crumbs/k001u00{u}.fit" for u in range(3)]
    chunks, digis = ([f"{of}/k00{k}.fit{end}" for k in range(3)] for of, end in (("chunks", ""), ("digis", ".gz")))
    assert local_names(plan_of(a, "run")) == {
        "run.r1": [*chunks, *digis],
        "run.r2": ["chunks/k000.fit", "digis/k000.fit.gz"],
    }


def test_the_rows_say_where_each_file_is_and_of_which_events(tmp_path: Path) -> None:
    line = gathered(plan_of(assemble(tmp_path, L1, TABLE), "recon"))["recon.r1.k001u000"][0]
    assert line == {
        "in": "digi/k001.fit.gz",
        "in.from": "outputs:r1/k001 v7.fit.gz",
        "in.piece": "k001",
        "in.first": "9",
        "in.events": "8",
    }


def test_placeholders_of_chunks_and_crumbs(tmp_path: Path) -> None:
    a = assemble(tmp_path, L1, TABLE)
    assert values(rows(plan_of(a, "digi"))[1], "arg") == ["/bin/true", "r1", "k001", "9", "8"]
    first = decode_row(lines_of_jobs(plan_of(a, "recon"))[0][1].split("\n")[0])
    assert values(first, "arg") == ["/bin/true", "digi/k000.fit.gz", "u000"]


def test_what_was_accepted_is_what_is_given_and_the_rest_is_lost(tmp_path: Path) -> None:
    a = assemble(tmp_path, L1, TABLE)

    def given(step: str, output: str, run: Run) -> Mapping[str, Good]:
        assert (step, output) == ("recon", "out.fit")
        return {"k000u001": Good("of another version.fit", "local", 12, "ab" * 32)} if run.name == "r2" else {}

    lines = gathered(plan_of(a, "chunk", given=given))
    named = [line.get("lost", line.get("in")) for line in lines["chunk.r2.k000"]]
    assert named == ["crumbs/k000u000.fit", "crumbs/k000u001.fit"]
    lost, good = lines["chunk.r2.k000"]
    assert lost == {"lost": "crumbs/k000u000.fit", "lost.piece": "k000u000", "lost.first": "0", "lost.events": "1"}
    assert (good["in.from"], good["in.bytes"], good["in.sha256"]) == ("outputs:of another version.fit", "12", "ab" * 32)
    assert all("lost" in line for line in lines["chunk.r1.k000"])


def test_a_piece_that_had_to_be_accepted_and_is_not_is_an_error(tmp_path: Path) -> None:
    plan = plan_of(assemble(tmp_path, L1, TABLE), "recon", given=lambda *_: {})
    with pytest.raises(LedgerError, match=r"gather digi.fit.gz of digi.r1.k000, which has no accepted result"):
        list(plan.rows())


@pytest.mark.parametrize(
    ("output", "place"),
    [
        ("{kind: posix, root: /data}", "/data/x.fit"),
        ("{kind: http, root: 'https://se.example.org/l1'}", "https://se.example.org/l1/x.fit"),
        ("{kind: xrootd, root: 'root://se.example.org//l1'}", "root://se.example.org//l1/x.fit"),
        ("{kind: transfer}", "outputs:x.fit"),
    ],
)
def test_where_a_file_is_by_the_site_that_made_it(tmp_path: Path, output: str, place: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"{SITE}output: {output}\n")
    a = assemble(tmp_path, L1 + "sites: {mine: 1}\n", TABLE, site=None, own=[tmp_path])
    goods = {f"k00{k}u00{u}": Good("x.fit", "mine") for k in range(3) for u in range(3)}
    plan = plan_of(a, "chunk", "mine", given=lambda *_: goods)
    assert gathered(plan)["chunk.r2.k000"][0]["in.from"] == place
    fields = plan.header.worker
    assert ("gather", "crumbs") in fields
    assert (("stage.http", "yes") in fields) == ("http" in output)
    submit = render_submit(plan.header, shipped("submit_templates"))
    assert (", in/$(fg_job)/gathered" in submit) == ("transfer" in output)
    assert "gathered" not in render_submit(plan_of(a, "digi", "mine").header, shipped("submit_templates"))


@pytest.mark.parametrize(
    ("here", "made_at", "place"),
    [
        ("disk", "disk", "/a/x"),
        ("same", "disk", "/a/x"),
        ("other", "disk", "it is in /a (site disk)"),
        ("home", "disk", "it is in /a (site disk)"),
        ("other", "home", "outputs:x"),
        ("arc", "home", "it is in the run folder (site home)"),
        ("arc", "arc", "https://se.example.org/x"),
        ("home", "arc", "https://se.example.org/x"),
        ("home", "gone", "it is at site gone"),
    ],
)
def test_files_of_a_step_that_was_done_at_another_site(tmp_path: Path, here: str, made_at: str, place: str) -> None:
    disk = "output: {kind: posix, root: /a}"
    arc = "htcondor: {grid: {kind: arc, url: 'https://arc.example.org/arex'}}\n"
    for name, output in {
        "disk": disk, "same": disk, "other": disk.replace("/a", "/b"), "home": "output: {kind: transfer}",
        "arc": f"{arc}output: {{kind: http, root: 'https://se.example.org'}}",
    }.items():  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(SITE.replace("mine", name) + output)
    sites = "sites: {disk: 1, same: 1, other: 1, home: 1, arc: 1}\n"
    a = assemble(tmp_path, L1 + sites, TABLE, site=None, own=[tmp_path])
    plan = plan_of(a, "chunk", here, given=lambda *_: {"k000u000": Good("x", made_at)})
    if place.startswith("it is"):
        with pytest.raises(SubmissionRefused, match=re.escape(f"chunk at site {here} cannot be given x: {place}")):
            list(plan.rows())
    else:
        assert gathered(plan)["chunk.r1.k000"][0]["in.from"] == place


def test_a_batch_for_some_pieces_and_with_other_parameters(tmp_path: Path) -> None:
    text = L1.replace("version: 7", "version: 7\nparameters: {release: R1}\nenvironment: {REL: '{release}'}")
    a = assemble(tmp_path, text.replace('"{crumb}"]', '"{release}"]'), TABLE)
    only = {"r1": frozenset({"k001u000", "k002u001"})}
    plan = plan_of(a, "recon", pieces=only, parameters={"release": "R2", "version": "8"})
    jobs = {job: line for job, line in lines_of_jobs(plan) if job.startswith("recon.r1")}
    assert list(jobs) == ["recon.r1.k001u000", "recon.r1.k002u001"]
    assert plan.header.jobs == 2 + 2
    row = decode_row(jobs["recon.r1.k001u000"].split("\n")[0])
    assert (values(row, "arg")[-1], values(row, "out.to")) == ("R2", ["r1_k001u000_v8.fit"])
    assert ("env", "REL=R2") in plan.header.worker


def test_a_row_with_many_files_has_a_shard_to_itself_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    table = "run,events\n" + "".join(f"r{n},{events}\n" for n, events in enumerate([25, 4000, 4, 0, 60, 9]))
    plan = plan_of(assemble(tmp_path, L1, table), "run")
    shards = list(render_shards(plan))
    assert sum(len(shard.data) > SHARD_BYTES for shard in shards) == 1
    found = {}
    for shard in shards:
        lines = shard.data.decode().split("\n")
        for item in shard.items.decode().splitlines():
            job, name, row = item.split()
            assert (name, dict(decode_row(lines[int(row) - 1]))["job"]) == (shard.name, job)
            found[job] = len(lines_of_row(lines, int(row)))
    assert found == {"run.r0": 6, "run.r1": 800, "run.r2": 2, "run.r3": 0, "run.r4": 12, "run.r5": 2}


def test_a_difference_of_two_plans_tells_of_a_piece(tmp_path: Path) -> None:
    a = assemble(tmp_path, L1, TABLE)
    goods = {f"k00{k}u00{u}": Good(f"{k}{u}.fit", "local", 1, "a" * 64) for k in range(3) for u in range(3)}
    other = {**goods, "k001u001": replace(goods["k001u001"], sha256="b" * 64)}
    for name, known in (("one", goods), ("two", other)):
        write_plan(plan_of(a, "chunk", given=lambda *_, known=known: known), tmp_path / name)
    found = compare_jobs(lambda: jobs_in(tmp_path / "one"), lambda: jobs_in(tmp_path / "two"), 8)
    assert found.names["changed"] == ["chunk.r1.k001"]
    (change,) = found.fields
    assert (change.what, change.before, change.after) == ("inputs.crumbs/k001u001.fit.sha256", "a" * 64, "b" * 64)


# --- the run folder


@pytest.fixture
def laid(tmp_path: Path) -> tuple[Path, Path, Path]:
    """(outputs, plan, work) of the merges of chunks."""
    a, outputs = assemble(tmp_path, L1, TABLE), tmp_path / "run/outputs"
    write_plan(plan_of(a, "recon"), tmp_path / "plan")
    for job in ("r1/k000 v7.fit.gz", "r1/k001 v7.fit.gz", "r1/k002 v7.fit.gz", "r2/k000 v7.fit.gz"):
        (outputs / job).parent.mkdir(parents=True, exist_ok=True)
        (outputs / job).write_text(job)
    work = tmp_path / "work"
    for shard in (tmp_path / "plan/shards").iterdir():
        (work / shard.name).mkdir(parents=True)
    return outputs, tmp_path / "plan", work


def files(work: Path) -> dict[str, str]:
    return {str(path.relative_to(work)).partition("/in/")[2]: path.read_text() for path in work.rglob("*.fit.gz")}


def test_outputs_are_laid_out_by_job_and_doing_it_again_is_harmless(laid: tuple[Path, Path, Path]) -> None:
    lay_out(*laid)
    first = files(laid[2])
    assert len(first) == 11
    assert first["recon.r1.k001u002/gathered/digi/k001.fit.gz"] == "r1/k001 v7.fit.gz"
    copy = next(laid[2].rglob("recon.r2.k000u000/gathered/digi/k000.fit.gz"))
    assert copy.samefile(laid[0] / "r2/k000 v7.fit.gz")
    copy.unlink()
    copy.write_text("cut short")
    lay_out(*laid)
    assert files(laid[2]) == first


def test_where_there_can_be_no_more_names_it_is_a_copy(
    laid: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(*_: object, **__: object) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(os, "link", too_many)
    lay_out(*laid)
    assert len(files(laid[2])) == 11
    assert (laid[0] / "r2/k000 v7.fit.gz").stat().st_nlink == 1


def test_an_output_that_is_gone_or_a_link_is_an_error(laid: tuple[Path, Path, Path], tmp_path: Path) -> None:
    output = laid[0] / "r1/k001 v7.fit.gz"
    output.unlink()
    with pytest.raises(RunFolderError, match=r"cannot be laid out: k001 v7\.fit\.gz: No such file"):
        lay_out(*laid)
    output.symlink_to("/etc/passwd")
    with pytest.raises(RunFolderError, match="symbolic link"):
        lay_out(*laid)


def test_what_was_laid_out_for_a_job_goes_away_with_it(laid: tuple[Path, Path, Path]) -> None:
    lay_out(*laid)
    shard = next(laid[2].iterdir())
    take_away(shard / "recon.r2.k000u000.log", "recon.r2.k000u000")
    assert len(files(laid[2])) == 10
    take_away(shard / "recon.r2.k000u000.log", "recon.r2.k000u000")
    assert (laid[0] / "r2/k000 v7.fit.gz").exists()


# --- from step to step


TWO = (
    L1[: L1.index("  chunk:")]
    + """\
  merge:
    after: [recon]
    gather: {crumbs: {step: recon, output: out.fit}}
    command: [/bin/true]
"""
)


def end_all(batch: RenderedBatch, failed: frozenset[str] = frozenset()) -> None:
    for index, (name, _) in enumerate(read_items(batch.plan_dir)):
        end_job(batch, index, 3 if name in failed else 0, content=name.encode())


def test_what_was_accepted_goes_from_step_to_step(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, TWO, TABLE) as f:
        advance(f)
        run, digi = f.assembled.runs[0], system.landed[0]
        assert given_by(f.ledger)("digi", "digi.fit.gz", run) == {}
        end_all(digi)
        watch_once(f)
        content = b"digi.r1.k001"
        wanted = Good("r1/k001 v7.fit.gz", "local", len(content), hashlib.sha256(content).hexdigest())
        assert given_by(f.ledger)("digi", "digi.fit.gz", run)["k001"] == wanted
        assert given_by(f.ledger)("digi", "another", run) == {}
        recon = system.landed[1]
        laid = files(recon.work_dir)
        assert laid["recon.r1.k001u002/gathered/digi/k001.fit.gz"] == "digi.r1.k001"
        end_all(recon)
        watch_once(f)
        assert files(recon.work_dir) == {}, "what a job was given goes away with it"
        merge = system.landed[2]
        assert len(list(merge.work_dir.rglob("merge.r1/gathered/crumbs/*.fit"))) == 9
        lines = [line for row in (merge.plan_dir / "shards").iterdir() for line in row.read_text().splitlines()]
        sums = [dict(decode_row(line)).get("in.sha256") for line in lines]
        assert hashlib.sha256(b"recon.r1.k002u001").hexdigest() in sums


def test_a_run_whose_outputs_have_no_final_names_yet_comes_later(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, TWO, TABLE) as f:
        advance(f)
        in_the_way = f.folder.outputs / "r1/k002 v7.fit.gz"
        in_the_way.parent.mkdir(parents=True)
        in_the_way.write_text("somebody's")
        end_all(system.landed[0])
        turn = watch_once(f)
        assert "exists with other content" in turn.problems[0]
        assert not turn.finished
        jobs = [name for name, _ in read_items(system.landed[1].plan_dir)]
        assert jobs == ["recon.r2.k000u000", "recon.r2.k000u001"]
        in_the_way.unlink()
        watch_once(f)
        more = [name for name, _ in read_items(system.landed[2].plan_dir)]
        assert len(more) == 9
        assert {name[:8] for name in more} == {"recon.r1"}


# --- what check says


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("step: recon, output: out.fit", "step: recno, output: out.fit", "22: steps.chunk.gather.crumbs.step: no step 'recno'; did you mean 'recon'?"),
        ("step: recon, output: out.fit", "step: digi, output: digi.fit.gz", "'chunk' does not come after 'digi': write after: [digi] as well"),
        ("step: recon, output: out.fit", "step: recon, output: out.fits", "steps.chunk.gather.crumbs.output: 'recon' has no output 'out.fits'; did you mean 'out.fit'?"),
        ("split: {events: 10, crumbs: 3, crumb_events: 2}", "split: {events: 9}", "15: steps.recon.gather.digi.step: 'digi' cannot be gathered by 'recon': its chunks are of 9 events"),
        ("foreach: chunk\n    split: {events: 10}\n    after", "foreach: clump\n    split: {events: 10}\n    after", "a clump is no part of a crumb"),
        ("{crumbs: {", "{out/x: {", "steps.chunk.gather.out/x"),
        ("gather: {crumbs:", "inputs: {crumbs.csv: /etc/passwd}\n    gather: {crumbs:", "its crumbs.csv has the same name as an input"),
        ("gather: {crumbs:", "inputs: {crumbs/x: /etc/passwd}\n    gather: {crumbs:", "its crumbs has the same name as an input"),
        ("digis: {step", "chunks.csv: {step", "its chunks.csv has the same name as what is made for gather: chunks"),
        ("{chunk}.fit.gz\", \"{crumb}", "{piece}.fit.gz\", \"{crump}", "no placeholder {crump}; did you mean 'crumb'?"),
        ("/bin/true]\n", "/bin/true, '{crumb}']\n", "no placeholder {crumb}"),
    ],
)  # fmt: skip
def test_what_cannot_be_gathered(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in L1
    found = complaints(tmp_path, L1.replace(old, new), TABLE)
    assert any(said in line for line in found), found
    assert all(line.startswith("campaign.yaml:") for line in found)


def test_a_campaign_that_gathers_is_good(tmp_path: Path) -> None:
    assert complaints(tmp_path, L1, TABLE) == []


@pytest.mark.parametrize("kind", ["chunk", "crumb", "clump"])
def test_pieces_need_numbers_of_events(tmp_path: Path, kind: str) -> None:
    text = SMALL.replace("command:", f"foreach: {kind}\n    split: {{events: 5}}\n    command:").replace(
        "{run}.fit", "{job}"
    )
    (said,) = complaints(tmp_path, text)
    assert f"6: steps.go.foreach: {kind}s need the column 'events' in the run table" in said


def test_a_run_has_a_thousand_chunks_at_most(tmp_path: Path) -> None:
    table = "run,events\nr1,10000\nr2,10001\nr3,20000\n"
    found = complaints(tmp_path, L1[: L1.index("  chunk:")], table)
    words = "r2 has 10001 events: 1001 chunks of 10 at most (and 1 more run). A run has 1000 chunks at most"
    assert next(line for line in found if words in line).startswith("campaign.yaml:7: steps.digi.foreach")
    assert complaints(tmp_path, L1[: L1.index("  chunk:")], "run,events\nr1,10000\n") == []


def test_a_column_may_not_have_the_name_of_a_placeholder(tmp_path: Path) -> None:
    (said,) = complaints(tmp_path, L1, "run,events,crumb\nr1,5,x\n")
    assert "its column 'crumb' has the name of a placeholder" in said


def test_a_run_has_no_more_clumps_than_anybody_wants(tmp_path: Path) -> None:
    """A number of events that slipped would be millions of jobs, and `check` would count them all."""
    text = SMALL.replace("command:", "foreach: clump\n    split: {events: 50}\n    command:").replace(
        "{run}.fit", "{job}"
    )
    text = text.replace("runs: {count: 2}", "runs: {table: runs.csv}")
    (said,) = complaints(tmp_path, text, "run,events\nr1,9999999999\n")
    assert "r1 has 9999999999 events: 200000000 clumps of 50 at most. A run has 100000 clumps at most" in said
