"""The audit finds what is off, whatever it is, and nothing where all is well."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fermigrid.audit import Finding
from fermigrid.audit_campaign import CampaignAudit, Subject
from fermigrid.audit_names import Names
from fermigrid.cli import run as fermigrid
from tests.audited import CLUMPS, ONE, TABLE, THREE, TWO, Ran, ran, sha256
from tests.campaigns import assemble, complaints

FIRST, SECOND, THIRD = (f"clump.{ONE}.c00{n}" for n in range(3))


def audit(campaign: Ran, **how: Any) -> list[Finding]:
    """What is found."""
    work = CampaignAudit(Subject(campaign.ledger, campaign.assembled, campaign.folder.outputs), **how)
    return [finding for audited in work.runs() for finding in audited.findings]


def words(findings: list[Finding]) -> list[str]:
    return [f"{found.kind} {found.run} {found.subject}: {found.words}" for found in findings]


def only(campaign: Ran, **how: Any) -> str:
    """The one thing that is found."""
    (found,) = words(audit(campaign, **how))
    return found


def output(campaign: Ran, piece: str = "c000") -> Path:
    return campaign.outputs / f"clump/{ONE}_{piece}_v400.fit"


# --- all is well


def test_clean(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        assert audit(campaign) == []
        assert audit(campaign, quick=True) == []
        assert audit(campaign, only=(TWO,)) == []


def test_a_clean_audit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ran(tmp_path):
        pass
    assert fermigrid(["audit", "P400"]) == 0
    done = capsys.readouterr()
    assert done.err == ""
    line = "P400: clean: 3 runs, 9 jobs, 9 outputs read (336 B); clump: 47 events read, 47 kept; merge: 47 events read, 47 kept"
    assert done.out == f"{line}\n"


# --- files


def test_a_truncated_file(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        os.truncate(output(campaign), 10)
        text = f"altered {ONE} {FIRST}: clump/{ONE}_c000_v400.fit is cut short: 10 bytes, the job wrote 39"
        assert only(campaign) == text
        assert only(campaign, quick=True) == text


def test_an_altered_byte(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        data = bytearray(output(campaign).read_bytes())
        data[7] ^= 1
        output(campaign).write_bytes(data)
        assert f"altered {ONE} {FIRST}: clump/{ONE}_c000_v400.fit was changed: its sha256" in only(campaign)
        assert audit(campaign, quick=True) == []  # sizes alone do not tell


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        output(campaign).unlink()
        assert only(campaign) == f"missing {ONE} {FIRST}: clump/{ONE}_c000_v400.fit is not there"


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
def test_something_that_is_no_file(tmp_path: Path, what: str) -> None:
    with ran(tmp_path) as campaign:
        path = output(campaign)
        path.rename(tmp_path / "elsewhere")
        if what == "link":
            path.symlink_to(tmp_path / "elsewhere")
        elif what == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
        found = [text for text in words(audit(campaign)) if text.startswith("altered")]
        assert len(found) == 1 and "is no file to be read" in found[0]


def test_a_folder_that_is_a_link(tmp_path: Path) -> None:
    """What lies in the run folder is taken for what it is, all the way."""
    with ran(tmp_path) as campaign:
        (campaign.outputs / "ft1").rename(tmp_path / "elsewhere")
        (campaign.outputs / "ft1").symlink_to(tmp_path / "elsewhere")
        found = words(audit(campaign))
        assert (
            len([text for text in found if "is no file to be read: it is a symbolic link, no plain folder" in text])
            == 3
        )
        assert f"foreign  {campaign.outputs}/ft1: is a symbolic link" in found


def test_two_files_that_were_exchanged(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        one, other = output(campaign), output(campaign, "c001")
        one.rename(tmp_path / "x")
        other.rename(one)
        (tmp_path / "x").rename(other)
        assert [found.subject for found in audit(campaign)] == [FIRST, SECOND]


@pytest.mark.parametrize("name", ["new.fit", "clump/deep/new.fit", f"clump/{ONE}_c007_v400.fit", ".hidden"])
def test_a_foreign_file(tmp_path: Path, name: str) -> None:
    with ran(tmp_path) as campaign:
        path = campaign.folder.outputs / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("from somewhere")
        run = ONE if ONE in name else ""
        assert only(campaign) == f"foreign {run} {path}: no accepted attempt made it"


def test_a_file_of_another_version(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        path = campaign.folder.outputs / f"clump/{ONE}_c001_v399.fit"
        path.write_text("of the processing before")
        assert only(campaign) == f"older {ONE} {path}: has the name of an output in another version"


def test_a_foreign_link_and_a_name_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ran(tmp_path) as campaign:
        (campaign.folder.outputs / "a.fit").symlink_to("/etc/passwd")
        Path(os.fsdecode(os.fsencode(campaign.folder.outputs) + b"/\xff\x1b[31m.fit")).write_text("")
    assert fermigrid(["audit", "P400"]) == 1
    said = capsys.readouterr().out
    assert "a.fit  is a symbolic link" in said and "??[31m.fit  no accepted attempt made it" in said
    assert fermigrid(["audit", "P400", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 2


def test_what_attempts_leave_while_they_work_is_not_foreign(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        (campaign.folder.outputs / "clump/.x.fit.g0.s1.aaaaaaaa.part").write_text("")
        assert audit(campaign) == []


def test_an_output_that_has_not_got_its_name_yet(tmp_path: Path) -> None:
    with ran(tmp_path, leave=frozenset({"b0001"})) as campaign:
        campaign.ledger.published = lambda _: None  # type: ignore[method-assign, assignment]
        campaign.run_step("b0001", "clump", (THREE,))
        (campaign.outputs / f"clump/{THREE}_c001_v400.fit").unlink()
        assert any("it came back, and has not got its name" in text for text in words(audit(campaign)))


# --- jobs


def test_a_missing_piece(tmp_path: Path) -> None:
    with ran(tmp_path, told={SECOND: {"failed": "the payload ended with exit code 1"}}) as campaign:
        text = "has no accepted result: failed: the payload ended with exit code 1"
        assert only(campaign) == f"missing {ONE} {SECOND}: {text}"


def test_a_run_that_was_never_sent(tmp_path: Path) -> None:
    with ran(tmp_path, leave=frozenset({"b0001"})) as campaign:
        assert only(campaign) == f"missing {THREE} run: nothing of it was submitted"


def test_all_pieces_of_a_run_are_told_at_once(tmp_path: Path) -> None:
    told = {f"clump.{ONE}.c00{n}": {"failed": "no luck"} for n in range(3)}
    with ran(tmp_path, told=told) as campaign:
        found = words(audit(campaign))
        assert found == [f"missing {ONE} clump: none of its 3 jobs has an accepted result (failed: no luck)"]


def test_a_step_that_was_never_sent(tmp_path: Path) -> None:
    with ran(tmp_path, leave=frozenset({"b0001"})) as campaign:
        campaign.run_step("b0001", "clump", (THREE,))
        assert only(campaign) == f"missing {THREE} merge.{THREE}: has no accepted result: it was not submitted"


def test_a_piece_too_many(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        batch = campaign.batches["b0000", "clump", 0]
        extra = {"job": f"clump.{ONE}.c003", "run": ONE, "piece": "c003", "event_count": "5"}
        campaign.end(batch, 99, extra)
        text = f"foreign {ONE} clump.{ONE}.c003: has an accepted result, and the run table gives no such job"
        assert words(audit(campaign)) == [text]


def test_a_result_of_a_run_that_the_table_does_not_have(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        batch = campaign.batches["b0000", "clump", 0]
        campaign.end(batch, 99, {"job": "clump.r9.c000", "run": "r9", "piece": "c000", "event_count": "5"})
        found = words(audit(campaign))
        assert "foreign  clump.r9.c000: has an accepted result, and there is no such run or step" in found


def test_a_piece_that_is_a_copy_of_another(tmp_path: Path) -> None:
    told = {SECOND: {"content": f"{FIRST} of generation 0\n".encode()}}
    with ran(tmp_path, told=told) as campaign:
        text = f"clump/{ONE}_c001_v400.fit has the very content of the output of {FIRST}"
        assert only(campaign) == f"doubled {ONE} {SECOND}: {text}"


def test_pieces_without_events_may_be_alike(tmp_path: Path) -> None:
    told = {job: {"content": b"nothing", "kept": 0} for job in (FIRST, SECOND)}
    with ran(tmp_path, told=told) as campaign:
        assert audit(campaign) == []


def test_two_accepted_results(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        db = campaign.ledger._db  # what no program of ours would do
        db.execute("DROP INDEX accepted_once")
        columns = "batch, idx, exit, rehearsal, accepted, published, report, retired"
        db.execute(f"INSERT INTO attempt (job, attempt, {columns}) SELECT job, 'g0.s2.b', {columns} FROM attempt "
                   f"WHERE job = '{FIRST}'")  # fmt: skip
        assert only(campaign).startswith(f"doubled {ONE} {FIRST}: 2 of its attempts are accepted: g0.s1.aaaaaaaa, g0")


# --- generations


def test_a_rollback_that_is_done(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        campaign.retire(FIRST, f"merge.{ONE}")
        campaign.run_step("b0000", "clump", (ONE,), {ONE: frozenset({"c000"})})
        campaign.run_step("b0000", "merge", (ONE,))
        assert audit(campaign) == []


def test_a_rollback_that_is_not_done_yet(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        campaign.retire(FIRST)
        assert f"missing {ONE} {FIRST}: has no accepted result: it is to be done again" in words(audit(campaign))


def test_the_output_of_a_generation_that_was_rolled_back(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        before = output(campaign).read_bytes()
        campaign.retire(FIRST, f"merge.{ONE}")
        campaign.run_step("b0000", "clump", (ONE,), {ONE: frozenset({"c000"})})
        campaign.run_step("b0000", "merge", (ONE,))
        output(campaign).write_bytes(before)
        text = f"clump/{ONE}_c000_v400.fit is the output of the attempt g0.s1.aaaaaaaa, which does not count any more"
        assert only(campaign) == f"older {ONE} {FIRST}: {text}"


def test_an_output_of_an_older_version_that_was_left_behind(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        everything = (FIRST, SECOND, THIRD, f"merge.{ONE}")
        campaign.retire(*everything)
        campaign.run_step("b0000", "clump", (ONE,), parameters={"version": "401"})
        campaign.run_step("b0000", "merge", (ONE,), parameters={"version": "401"})
        found = words(audit(campaign))
        assert len(found) == 4 and all(text.startswith(f"older {ONE} {campaign.outputs}/") for text in found)
        assert any(f"the output of the attempt g0.s1.aaaaaaaa of merge.{ONE}, which does" in text for text in found)
        for name in (*(f"clump/{ONE}_c00{n}" for n in range(3)), f"ft1/gll_{ONE}"):
            (campaign.outputs / f"{name}_v400.fit").unlink()
        assert audit(campaign) == []


def test_a_result_that_is_not_of_the_newest_batch(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        campaign.told[FIRST] = {"failed": "no luck"}
        campaign.run_step("b0000", "clump", (ONE,), {ONE: frozenset({"c000"})})
        assert only(campaign).endswith("is not of the newest batch that does it (generation 1)")


# --- lineage


def test_a_merge_of_what_was_done_again_since(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        campaign.retire(SECOND)
        campaign.run_step("b0000", "clump", (ONE,), {ONE: frozenset({"c001"})})
        text = f"pieces is not what is accepted of clump now: it began before these were done: {SECOND}"
        assert f"inputs {ONE} merge.{ONE}: {text}" in words(audit(campaign))


def test_a_merge_without_a_piece_that_came_later(tmp_path: Path) -> None:
    with ran(tmp_path, told={SECOND: {"failed": "no luck"}}) as campaign:
        del campaign.told[SECOND]
        campaign.retire(SECOND)
        campaign.run_step("b0000", "clump", (ONE,), {ONE: frozenset({"c001"})})
        assert [text for text in words(audit(campaign)) if f"inputs {ONE} merge.{ONE}: pieces is not" in text]


def test_a_merge_that_does_not_tell_what_it_was_given(tmp_path: Path) -> None:
    with ran(tmp_path, told={f"merge.{ONE}": {"inputs": []}}) as campaign:
        assert only(campaign) == f"inputs {ONE} merge.{ONE}: does not tell what it was given in pieces"


def read(run: str, digi: str = "", calib: str = "") -> list[dict[str, Any]]:
    """Inputs of a clump, one of them in another version."""
    places = {"digi.root": (f"/data/{run}_digi.root", digi), "calib.root": ("/data/calib.root", calib)}
    return [{"name": name, "source": place, "bytes": 1, "sha256": sha256((other or place).encode())}
            for name, (place, other) in places.items()]  # fmt: skip


def test_two_pieces_that_read_other_versions_of_one_input(tmp_path: Path) -> None:
    with ran(tmp_path, told={THIRD: {"inputs": read(ONE, digi="other")}}) as campaign:
        assert only(campaign).startswith(f"inputs {ONE} {THIRD}: read digi.root with the sha256")
        assert f"{FIRST} with" in only(campaign)


def test_two_runs_that_read_other_versions_of_what_all_read(tmp_path: Path) -> None:
    with ran(tmp_path, told={f"clump.{TWO}.c000": {"inputs": read(TWO, calib="other")}}) as campaign:
        assert only(campaign).startswith(f"inputs {TWO} clump.{TWO}.c000: read calib.root with the sha256")


def test_a_job_that_read_an_older_output_by_its_path(tmp_path: Path) -> None:
    text = CLUMPS.replace("gather: {pieces: {step: clump, output: out.fit}}", "inputs: {a.fit: '/x/{run}'}")
    inputs = [{"name": "a.fit", "source": f"{tmp_path}/run/outputs/clump/{ONE}_c000_v400.fit", "sha256": "f" * 64}]
    with ran(tmp_path, text, told={f"merge.{ONE}": {"inputs": inputs}}) as campaign:
        assert only(campaign).startswith(f"inputs {ONE} merge.{ONE}: read a.fit (")


# --- numbers of events


@pytest.mark.parametrize(
    ("job", "told", "found"),
    [
        (FIRST, {"read": 9, "kept": 9}, "read 9 events; there are 10 (of the run table)"),
        (FIRST, {"kept": 11}, "kept 11 events of the 10 that it read"),
        (f"merge.{ONE}", {"read": 24}, "read 24 events; there are 25 (kept by clump)"),
        (FIRST, {"summary": {}}, "1 of 3 jobs do not tell how many events they read, such as"),
        (FIRST, {"summary": {"events_read": "ten"}}, "1 of 3 jobs do not tell how many events they read, such as"),
    ],
)
def test_numbers_that_do_not_add_up(tmp_path: Path, job: str, told: dict[str, Any], found: str) -> None:
    with ran(tmp_path) as campaign:
        campaign.told[job] = told
        step = job.partition(".")[0]
        campaign.retire(*(j for j in (FIRST, SECOND, THIRD) if step == "clump"), f"merge.{ONE}")
        if step == "clump":
            campaign.run_step("b0000", "clump", (ONE,))
        if step == "merge" or not {"kept", "summary"} & set(told):
            campaign.run_step("b0000", "merge", (ONE,))
        assert any(text.startswith(f"events {ONE}") and found in text for text in words(audit(campaign)))


def test_a_run_table_with_another_number(tmp_path: Path) -> None:
    with ran(tmp_path) as campaign:
        other = Ran(campaign.ledger, campaign.folder, campaign.assembled)
        text = TABLE.replace("300,12", "300,13")
        other.assembled = assemble(tmp_path / "again", CLUMPS, text)
        assert only(other).endswith("read 2 events; there are 3 (of the run table)")


CHUNKS = """\
campaign: P400
version: 400
image: light
runs: {table: runs.csv}
steps:
  digi:
    foreach: chunk
    split: {events: 6}
    command: [/bin/true]
    outputs: {digi.fit: "digi/{run}_{piece}.fit"}
  recon:
    foreach: crumb
    split: {events: 6, crumbs: 3, crumb_events: 1}
    after: [digi]
    gather: {digi: {step: digi, output: digi.fit}}
    command: [/bin/true]
    outputs: {recon.fit: "recon/{run}_{piece}.fit"}
  chunk:
    foreach: chunk
    split: {events: 6}
    after: {recon: done}
    gather: {crumbs: {step: recon, output: recon.fit}}
    command: [/bin/true]
    outputs: {recon.fit: "chunk/{run}_{piece}.fit"}
  merge:
    after: [chunk]
    gather: {chunks: {step: chunk, output: recon.fit}}
    command: [/bin/true]
    outputs: {recon.fit: "{run}.fit"}
"""


def test_chunks_and_crumbs(tmp_path: Path) -> None:
    with ran(tmp_path, CHUNKS) as campaign:
        assert audit(campaign) == []
        assert len(campaign.ledger.accepted_of("recon", ONE)) == 15


def test_a_crumb_that_read_the_events_of_its_whole_chunk(tmp_path: Path) -> None:
    with ran(tmp_path, CHUNKS, told={f"recon.{ONE}.k001u002": {"read": 5, "kept": 2}}) as campaign:
        assert only(campaign) == f"events {ONE} recon.{ONE}.k001u002: read 5 events; there are 2 (of the run table)"


def test_a_crumb_that_failed_for_good_is_lost_and_the_merge_is_right(tmp_path: Path) -> None:
    lost = f"recon.{ONE}.k001u002"
    with ran(tmp_path, CHUNKS, told={lost: {"failed": "no luck"}}) as campaign:
        assert only(campaign) == f"missing {ONE} {lost}: has no accepted result: failed: no luck"


# --- where outputs are


def posix(root: Path) -> str:
    text = (Path(__file__).parents[2] / "sites/local.yaml").read_text()
    return text.replace("output: {kind: transfer}", f"output: {{kind: posix, root: {root}}}")


def test_outputs_on_the_sites_file_system(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with ran(tmp_path, site=posix(root)) as campaign:
        assert campaign.assembled.sites["local"].output.kind == "posix"
        assert audit(campaign) == []
        (root / "clump/thesis.tex").write_text("somebody's, in a folder of the site")
        assert audit(campaign) == []
        (root / f"clump/{ONE}_c008_v400.fit").write_text("an output that nobody asked for")
        assert only(campaign) == f"foreign {ONE} {root}/clump/{ONE}_c008_v400.fit: no accepted attempt made it"
        assert only(campaign, only=(ONE,)) == only(campaign)
        assert audit(campaign, only=(TWO,)) == []
        output(campaign).write_bytes(b"")
        assert f"altered {ONE} {FIRST}: clump/{ONE}_c000_v400.fit is cut short: 0 bytes, the job wrote 39" in words(
            audit(campaign)
        )


def test_what_cannot_be_seen_from_here_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with ran(tmp_path, site=posix(root)):
        root.rename(tmp_path / "unmounted")
    assert fermigrid(["audit", "P400"]) == 0
    done = capsys.readouterr()
    assert done.err == f"not looked at: 9 ({root} is not to be seen on this machine)\n"
    assert "0 outputs read" in done.out


def test_the_runs_of_names() -> None:
    names = Names(
        [("clump", "ft1/{run}_{piece}_v400.fit"), ("merge", "{job}.fit"), ("x", "all.fit")], {"r1", "r22", "r1_c"}
    )
    known = {name: names.run_of(name) for name in (
        "ft1/r1_c000_v400.fit", "ft1/r22_c000_v400.fit", "ft1/r1_c_c000_v400.fit", "ft1/r3_c000_v400.fit",
        "ft1/r1_c000_v401.fit", "ft1/x/r1_c000_v400.fit", "merge.r22.fit", "merge.r22.c001.fit", "all.fit",
    )}  # fmt: skip
    assert list(known.values()) == ["r1", "r22", "r1_c", None, None, None, "r22", "r22", None]


# --- what is printed


def test_a_table_of_what_is_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ran(tmp_path, told={SECOND: {"failed": "no luck"}}) as campaign:
        output(campaign).unlink()
    assert fermigrid(["audit", "P400", "--run", ONE, "--run", TWO]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kind", "run", "what", "how"]
    assert lines[1].split()[:3] == ["missing", ONE, SECOND] and lines[2].split()[:3] == ["missing", ONE, FIRST]
    assert lines[3] == "P400: 2 findings: 2 missing (2 runs, 6 jobs audited)"


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ran(tmp_path) as campaign:
        assert fermigrid(["audit", "P400", "--json"]) == 0
        clean = json.loads(capsys.readouterr().out)
        output(campaign).unlink()
    assert clean["findings"] == [] and clean["clean"] and clean["runs"] == 3 and clean["outputs"] == 9
    assert clean["steps"]["merge"] == {"jobs": 3, "events_read": 47, "events_kept": 47}
    assert fermigrid(["audit", "P400", "--json"]) == 1
    bad = json.loads(capsys.readouterr().out)
    assert not bad["clean"] and bad["kinds"] == {"missing": 1}
    words = f"clump/{ONE}_c000_v400.fit is not there"
    assert bad["findings"] == [{"kind": "missing", "run": ONE, "subject": FIRST, "words": words}]


def test_the_table_of_all_outputs(tmp_path: Path) -> None:
    with ran(tmp_path, told={SECOND: {"failed": "no luck"}}) as campaign:
        output(campaign, "c002").unlink()
    file = tmp_path / "all.csv"
    assert fermigrid(["audit", str(tmp_path / "run"), "--csv", str(file)]) == 1
    rows = {row["job"]: row for row in csv.DictReader(file.read_text().splitlines())}
    assert len(rows) == 9 and file.stat().st_mode & 0o777 == 0o600
    assert [rows[job]["found"] for job in (FIRST, SECOND, THIRD)] == ["ok", "missing", "missing"]
    assert rows[FIRST]["inputs"].startswith(f"digi.root={sha256(f'/data/{ONE}_digi.root'.encode())} calib.root=")
    assert rows[FIRST]["place"] == str(tmp_path / f"run/outputs/clump/{ONE}_c000_v400.fit")
    assert (rows[FIRST]["events_read"], rows[FIRST]["events_kept"], rows[FIRST]["generation"]) == ("10", "10", "0")


def test_a_run_that_is_not_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ran(tmp_path):
        pass
    assert fermigrid(["audit", "P400", "--run", "r7"]) == 19
    assert "no run 'r7' in the run table of P400" in capsys.readouterr().err


# --- the campaign file


@pytest.mark.parametrize(
    ("audit_section", "problem"),
    [
        ("{clomp: {from: digi.root}}", "no step 'clomp'; did you mean 'clump'?"),
        ("{clump: {of: x, from: digi.root}}", "'clump' has no output 'x'"),
        ("{clump: {from: calib}}", "'clump' has no input, gathered folder or step before it 'calib'"),
        ("{clump: {from: merge}}", "'merge' does not come before 'clump'"),
        ("{clump: {from: digi.root, unique: file}}", "'file' is not allowed"),
        ("{clump: {}}", "is required"),
    ],
)
def test_what_is_wrong_with_the_audit_of_a_campaign(tmp_path: Path, audit_section: str, problem: str) -> None:
    text = f"{CLUMPS}audit:\n  events: {audit_section}\n"
    assert any(problem in said for said in complaints(tmp_path, text, TABLE))


def test_runs_without_a_number(tmp_path: Path) -> None:
    text = f"{CLUMPS}audit:\n  events: {{clump: {{from: digi.root, run: RUN_ID}}}}\n"
    assert complaints(tmp_path, text, TABLE) == []
    (problem,) = complaints(tmp_path, text, TABLE.replace(TWO, "crab"))
    assert "the run 'crab' has no number at its end to be found in a column" in problem


def test_files_that_no_reader_knows(tmp_path: Path) -> None:
    text = f"{CLUMPS}audit:\n  events: {{clump: {{from: digi.root}}}}\n".replace("_v{version}.fit", "_v{version}.root")
    (problem,) = complaints(tmp_path, text, TABLE)
    assert "cannot be read: its name must end with .fit, .fits, .fit.gz, .fits.gz" in problem
