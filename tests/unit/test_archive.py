"""An archived campaign is whole in one file, whatever is killed when; the verbs that read still read it."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fermigrid.access import Trust, trust_of
from fermigrid.archive import About, check_archive, make_archive, refuse_place, unpacked
from fermigrid.cli import run as fermigrid
from fermigrid.errors import AccessRefused, RunFolderError
from fermigrid.records import JobRecord
from fermigrid.runfolder import RunFolder
from fermigrid.states import State
from tests.audited import ONE, Ran, ran

FIRST, SECOND = f"clump.{ONE}.c000", f"clump.{ONE}.c001"
ABOUT = About("P400", "i", "/run", "t", "me", "0", "clean", "9 done", 9)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The run folder of a campaign that has run; one job failed and was done again."""
    with ran(tmp_path, told={SECOND: {"failed": "no luck"}}) as campaign:
        campaign.told.clear()
        campaign.retire(SECOND, f"merge.{ONE}")
        campaign.run_step("b0000", "clump", (ONE,), {ONE: frozenset({"c001"})})
        campaign.run_step("b0000", "merge", (ONE,))
        (campaign.folder.path / "notes.txt").write_text("mine")
    return tmp_path / "run"


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """A command in this process: exit code, stdout, stderr."""
    capsys.readouterr()
    code = fermigrid([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def archive(done: Path, *options: str, name: str = "P400.tar.gz") -> Path:
    file = done.parent / name
    assert fermigrid(["archive", "P400", "--output", str(file), *options]) == 0
    return file


# --- what is in it, what is left


def test_all_but_the_outputs_is_in_one_file(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = {path: path.read_bytes() for path in done.glob("outputs/**/*") if path.is_file()}
    file = archive(done)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"P400: archived in {file} (audit: clean); outputs stay in place"
    )
    assert names(done) == ["archived.json", "notes.txt", "outputs"]
    assert {path: path.read_bytes() for path in done.glob("outputs/**/*") if path.is_file()} == outputs
    with tarfile.open(file) as tar:
        members = tar.getnames()
    assert members[:2] == ["archive.json", "ledger.sqlite"] and members[-1] == "digests.json"
    assert {"campaign.yaml", "runs.csv", "sites/0/local.yaml", "audit.json", "outputs.csv", "logs.sqlite"} <= set(
        members
    )
    assert "blocks/b0000/clump.g1/plan/shards/s0000" in members
    assert not [name for name in members if "/work/" in name or "outputs/" in name]


def test_it_is_private(done: Path) -> None:
    assert archive(done).stat().st_mode & 0o777 == 0o600
    assert (done / "archived.json").stat().st_mode & 0o777 == 0o600


def test_that_of_a_team_is_for_the_team(done: Path, tmp_path: Path) -> None:
    """Readable for the group of the run folder, writable for its owner alone."""
    os.chown(done, -1, 4243)
    done.chmod(0o2770)
    file = tmp_path / "a.tar.gz"
    make_archive(RunFolder(done), file, ABOUT, {})
    assert (file.stat().st_gid, file.stat().st_mode & 0o777) == (4243, 0o640)
    os.chown(file, 4242, -1)
    check_archive(file, Trust(os.geteuid(), groups=frozenset({4243})))
    with pytest.raises(AccessRefused, match="belongs to 4242"):
        check_archive(file, Trust(os.geteuid()))


def test_same_content_same_bytes(done: Path, tmp_path: Path) -> None:
    extra = {"audit.json": tmp_path / "a", "outputs.csv": tmp_path / "b"}
    for path in extra.values():
        path.write_text("x")
    made = []
    for name in ("one.tar.gz", "two.tar.gz"):
        make_archive(RunFolder(done), tmp_path / name, ABOUT, extra)
        made.append((tmp_path / name).read_bytes())
        for path in done.rglob("*"):
            os.utime(path, (1, len(made)))
    assert made[0] == made[1]


def test_the_audit_that_was_made_is_in_it(done: Path) -> None:
    with tarfile.open(archive(done)) as tar:
        audit, about = (json.load(tar.extractfile(name)) for name in ("audit.json", "archive.json"))  # type: ignore[arg-type]
        outputs = tar.extractfile("outputs.csv").read().decode()  # type: ignore[union-attr]
    assert audit["clean"] and audit["findings"] == [] and audit["outputs"] == 9
    assert about["audit"] == "clean" and about["folder"] == str(done) and about["state"] == "9 done"
    assert len(outputs.splitlines()) == 10


# --- read again


@pytest.mark.parametrize("how", ["file", "name", "run folder"])
def test_the_verbs_that_read_still_do(done: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    questions = (["status", "--json"], ["status", "--history", "--json"], ["why", SECOND, "--json"], ["logs", SECOND],
                 ["logs", SECOND, "--report"], ["why", FIRST], ["status"], ["audit"], ["report"])  # fmt: skip

    def ask(campaign: object) -> list[tuple[int, str]]:
        return [said(capsys, question[0], campaign, *question[1:])[:2] for question in questions]

    before = ask("P400")
    file = archive(done)
    after = ask({"file": file, "name": "P400", "run folder": done}[how])
    assert all(code == 0 for code, _ in (*before, *after))
    was, now = (json.loads(answers[0][1]) for answers in (before, after))
    assert now.pop("archive") == str(file) and was.pop("archive") is None
    assert was == now and was["folder"] == str(done)
    assert [row["what"] for row in json.loads(after[1][1])][:-1] == [row["what"] for row in json.loads(before[1][1])]
    assert before[2:] == after[2:]
    assert f"{SECOND} has failed" in after[3][1]  # the log of the first try, which was left whole


def test_the_list_of_mine_tells_where_it_is(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = archive(done)
    code, out, _ = said(capsys, "status", "--json")
    assert code == 0
    (mine,) = json.loads(out)
    assert mine == {"campaign": "P400", "jobs": 9, "state": f"archived to {file}: 9 done", "folder": str(done)}


@pytest.mark.parametrize("verb", ["watch --once", "remove", "hold", "release"])
def test_nothing_can_be_done_with_it(done: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = archive(done)
    name, *options = verb.split()
    for campaign in ("P400", file):
        code, _, err = said(capsys, name, campaign, *options)
        assert code == 14 and f"P400 is archived in {file}: it can be read" in err


def test_it_is_not_submitted_over(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive(done)
    code, _, err = said(capsys, "submit", done.parent / "campaign.yaml", "--site", "local", "--run-dir", done)
    assert code == 14 and f"{done} held a campaign that was archived" in err


def test_an_archive_that_was_moved(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = archive(done)
    moved = file.rename(file.with_name("tape.tar.gz"))
    code, _, err = said(capsys, "status", "P400")
    assert code == 14 and "Has it been moved? Give the file in place of the campaign's name." in err
    assert said(capsys, "status", moved)[0] == 0


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "tar"])
def test_a_damaged_archive_is_said(done: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = archive(done)
    data = bytearray(file.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        data[len(data) // 2] ^= 0xFF
    elif damage == "text":
        data = bytearray(b"no archive\n")
    else:
        with tarfile.open(file, "w:gz") as tar:
            tar.add(done / "notes.txt", "notes.txt")
        data = bytearray(file.read_bytes())
    file.write_bytes(data)
    code, _, err = said(capsys, "status", file)
    assert code == 14 and str(file) in err


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a//b", "blocks/../../x"])
def test_a_member_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    file = tmp_path / "bad.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        about = json.dumps({key: getattr(ABOUT, key) for key in About.__dataclass_fields__}).encode()
        for member, data in (("archive.json", about), (name, b"x")):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(RunFolderError, match="is no name of a member"), unpacked(file):
        pass


def test_others_may_not_be_able_to_write_it(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = archive(done)
    file.chmod(0o666)
    code, _, err = said(capsys, "status", "P400")
    assert code == 20 and f"everybody can write {file}" in err
    file.chmod(0o600)
    os.chown(file, 4242, 4242)
    with pytest.raises(AccessRefused, match="belongs to 4242"):
        check_archive(file, trust_of({}))


# --- refused


def test_not_after_an_audit_that_is_not_clean(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done / f"outputs/clump/{ONE}_c000_v400.fit").unlink()
    file = done.parent / "P400.tar.gz"
    said(capsys, "status", "P400")
    before = names(done)
    code, out, err = said(capsys, "archive", "P400", "--output", file)
    assert code == 1 and f"clump/{ONE}_c000_v400.fit is not there" in out and "not archived: --force" in err
    assert names(done) == before and not file.exists()
    assert said(capsys, "archive", "P400", "--output", file, "--force")[0] == 0
    with tarfile.open(file) as tar:
        assert json.load(tar.extractfile("archive.json"))["audit"] == "1 missing"  # type: ignore[arg-type]
        assert not json.load(tar.extractfile("audit.json"))["clean"]  # type: ignore[arg-type]


def unfinished(campaign: Ran) -> str:
    batch = campaign.batches["b0000", "clump", 0]
    campaign.ledger.take_in([(JobRecord(batch.id, 0, FIRST, State.RUNNING, ""), None)])
    return "1 job of it may still end"


def unpublished(campaign: Ran) -> str:
    campaign.ledger._db.execute(f"UPDATE attempt SET published = 0 WHERE job = '{FIRST}'")
    path = campaign.outputs / f"clump/{ONE}_c000_v400.fit"
    path.write_text("in the way")
    batch = campaign.batches["b0000", "clump", 0]
    work = campaign.folder.batch(batch.block, batch.step, 0) / "work/s0000/out"
    work.mkdir()
    (work / f"{FIRST}.0.g0.s1.aaaaaaaa").write_bytes(b"the only copy")
    return "the accepted outputs of 1 job have no final names yet"


@pytest.mark.parametrize("make", [unfinished, unpublished])
def test_not_while_something_is_still_to_come(
    tmp_path: Path, make: Callable[[Ran], str], capsys: pytest.CaptureFixture[str]
) -> None:
    with ran(tmp_path) as campaign:
        why = make(campaign)
    code, _, err = said(capsys, "archive", "P400", "--output", tmp_path / "a.tar.gz", "--force")
    assert code == 14 and why in err and (tmp_path / "run/blocks").is_dir()


def test_where_it_may_not_be(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = done.parent / "taken"
    taken.write_text("mine")
    for place, why in ((taken, "exists already"), (done / "outputs/a", "lies in a folder of the campaign's run folder"),
                       (done / "blocks/a", "lies in a folder"), (done / "nowhere/a", "lies in a folder"),
                       (done.parent / "nowhere/a", "there is no folder")):  # fmt: skip
        code, _, err = said(capsys, "archive", "P400", "--output", place)
        assert code == 14 and why in err, err
    assert taken.read_text() == "mine" and (done / "ledger.sqlite").exists()


def test_once_only(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = archive(done)
    assert said(capsys, "archive", "P400", "--output", file)[0] == 0  # nothing left to do
    code, _, err = said(capsys, "archive", "P400", "--output", done.parent / "other.tar.gz")
    assert code == 14 and f"P400 was archived to {file}" in err


def test_nothing_is_removed_for_an_archive_that_is_not_the_one_that_was_verified(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = archive(done)
    (done / "blocks").mkdir()
    file.write_bytes(gzip.compress(b"another"))
    code, _, err = said(capsys, "archive", "P400", "--output", file)
    assert code == 14 and "is not the archive that was made of" in err and (done / "blocks").is_dir()


def test_a_disk_that_writes_something_else(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read back before anything is removed."""

    fsync = os.fsync

    def damage(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path.suffix == ".part":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(RunFolderError):
        make_archive(RunFolder(done), tmp_path / "a.tar.gz", ABOUT, {})
    assert not (tmp_path / "a.tar.gz").exists() and not (tmp_path / ".a.tar.gz.part").exists()
    assert (done / "ledger.sqlite").exists()


def test_a_place_that_an_earlier_try_took(done: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.tar.gz"
    make_archive(RunFolder(done), file, ABOUT, {})
    refuse_place(file, RunFolder(done), "i")
    with pytest.raises(RunFolderError, match="exists already"):
        refuse_place(file, RunFolder(done), "another campaign")


# --- killed

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.chmod", "os.mkdir", "shutil.rmtree", "open")


def killed(wanted: int, folder: Path, file: Path) -> int:
    """The command in a process that is killed before change number `wanted` of the campaign's files or the archive;
    how many there were, if it came to its end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def die(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if event not in CHANGES or (event == "open" and not set("wax+") & set(str(arguments[1]))):
                return
            if str(folder.parent) in str(arguments[0]) or event in ("os.remove", "os.rmdir"):
                count += 1
                if count == wanted:
                    os.kill(os.getpid(), signal.SIGKILL)

        tempfile.tempdir = str(folder.parent.parent)  # what it has there stays
        sys.addaudithook(die)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = fermigrid(["archive", str(folder), "--output", str(file), "--force"])
        os.write(writing, b"%d" % count)
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        counted = told.read()
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return int(counted) if status == 0 else 0


def state_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What `status` and `logs` say of the campaign."""
    code, out, err = said(capsys, "status", folder, "--json")
    assert code == 0, err
    found = json.loads(out)
    code, log, err = said(capsys, "logs", folder, SECOND)
    assert code == 0, err
    return found["states"], found["batches"], log


def changes(home: Path) -> int:
    """How often the command changes a file."""
    with ran(home):
        pass
    return killed(10**6, home / "run", home / "a.tar.gz")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.drill) for part in range(1, 6))])
def test_killed_at_any_instant_nothing_is_lost(part: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At each change of a file in turn: the campaign can be read then, and the same command ends the work."""
    (tmp_path / "all").mkdir()
    count = changes(tmp_path / "all")
    assert count > 20
    for step in range(1 + part, count + 1, 6):
        home = tmp_path / str(step)
        home.mkdir()
        with ran(home, told={SECOND: {"failed": "no luck"}}):
            pass
        check_killed(step, home / "run", home / "a.tar.gz", capsys)


def check_killed(step: int, folder: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(folder, capsys)
    outputs = {path: path.read_bytes() for path in folder.glob("outputs/**/*.fit")}
    killed(step, folder, file)
    assert state_of(folder, capsys) == before
    assert fermigrid(["archive", str(folder), "--output", str(file), "--force"]) == 0
    assert state_of(folder, capsys) == before
    assert names(folder) == ["archived.json", "outputs"], step
    assert {path: path.read_bytes() for path in folder.glob("outputs/**/*.fit")} == outputs
    assert names(folder.parent) == ["a.tar.gz", "campaign.yaml", "run", "runs.csv"]
