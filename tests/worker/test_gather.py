"""What a job is given of the steps before it: the files in their folder, checked, and the lists beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.faulty_http import Faulty
from tests.worker.worker_job import Done, Job, Pairs, sha256

MakeJob = Callable[..., Job]
SHOW = ["/bin/sh", "-c", "cat crumbs.csv crumbs.missing.csv; for file in crumbs/*; do cat $file; done"]


def given(name: str, source: str, content: bytes, first: int = 0, events: int = 1) -> Pairs:
    """The line of a file that a job is given."""
    piece = name.partition(".")[0]
    checks = [("in.bytes", str(len(content))), ("in.sha256", sha256(content))]
    where = [("in.piece", piece), ("in.first", str(first)), ("in.events", str(events))]
    return [("in", f"crumbs/{name}"), ("in.from", source), *checks, *where]


def lost(name: str, first: int = 0, events: int = 1) -> Pairs:
    piece = name.partition(".")[0]
    where = [("lost.piece", piece), ("lost.first", str(first)), ("lost.events", str(events))]
    return [("lost", f"crumbs/{name}"), *where]


def gathering(make_job: MakeJob, lines: list[Pairs], came: dict[str, bytes] | None = None, **more: object) -> Job:
    """A job that gathers the folder `crumbs`; `came`: what came along with it."""
    settings = [("gather", "crumbs"), *more.pop("settings", [])]  # type: ignore[misc]
    job = make_job(settings=settings, row=[("more", str(len(lines)))], lines=lines, args=SHOW, **more)
    folder = job.scratch / "gathered/crumbs"
    if came is not None:
        folder.mkdir(parents=True)
        for name, content in came.items():
            (folder / name).write_bytes(content)
    return job


def shown(done: Done) -> list[str]:
    return [line for line in done.out.decode().split("\n@@FERMIGRID")[0].splitlines() if line]


def test_files_that_came_with_the_job(make_job: MakeJob) -> None:
    came = {"k000u000.fit": b"zero\n", "k000u001.fit": b"one\n"}
    lines = [
        given("k000u000.fit", "outputs:some where/\\x", b"zero\n", 0, 4),
        given("k000u001.fit", "outputs:other", b"one\n", 4, 6),
        lost("k000u002.fit", 10, 7),
    ]
    done = gathering(make_job, lines, came).run()
    assert done.code == 0, done.err
    assert shown(done) == [
        "piece,file,first_event,events",
        "k000u000,crumbs/k000u000.fit,0,4",
        "k000u001,crumbs/k000u001.fit,4,6",
        "piece,first_event,events",
        "k000u002,10,7",
        "zero",
        "one",
    ]
    (read,) = done.data["inputs"]
    sums = "".join(f"{sha256(content)}  crumbs/{name}\n" for name, content in came.items())
    assert (read["name"], read["files"], read["lost"], read["bytes"]) == ("crumbs", 2, 1, 9)
    assert (read["sha256"], read["verified"]) == (sha256(sums.encode()), ["sha256"])


def test_files_of_the_sites_own_folder(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "a b\\c.fit").write_bytes(b"zero\n")
    lines = [given("k000.fit", str(tmp_path / "a b\\c.fit"), b"zero\n")]
    done = gathering(make_job, lines).run()
    assert (done.code, shown(done)[-1]) == (0, "zero"), done.err
    assert (tmp_path / "a b\\c.fit").read_bytes() == b"zero\n"


def test_files_of_a_server(make_job: MakeJob, faulty: Faulty) -> None:
    lines = [given(f"k00{k}.fit", f"{faulty.url}/drop/{k}", faulty.content) for k in range(2)]
    job = gathering(make_job, lines, settings=[("stage.http", "yes")])
    job.args = ["/bin/sh", "-c", "ls crumbs"]
    done = job.run(env={"FERMIGRID_STALL": "1"})
    assert (done.code, shown(done)) == (0, ["k000.fit", "k001.fit"]), done.err
    assert done.data["inputs"][0]["bytes"] == 2 * len(faulty.content)


def test_nothing_to_gather_is_an_empty_folder_and_two_empty_lists(make_job: MakeJob) -> None:
    job = gathering(make_job, [])
    job.args = ["/bin/sh", "-c", "cat crumbs.csv crumbs.missing.csv; ls crumbs"]
    done = job.run()
    assert (done.code, shown(done)) == (0, ["piece,file,first_event,events", "piece,first_event,events"]), done.err


def test_several_folders_and_jobs_in_one_shard(make_job: MakeJob, tmp_path: Path) -> None:
    """The lines of a job are those after its row, whatever else is in the shard; each goes to its own folder."""
    (tmp_path / "x").write_bytes(b"x\n")
    mine = given("k000.fit", str(tmp_path / "x"), b"x\n")
    other = [("in", "digi/k000.fit"), *mine[1:]]
    job = gathering(make_job, [mine, other], settings=[("gather", "digi")])
    job.before = [[("job", "another"), ("more", "1")], given("k999.fit", "/nowhere", b"")]
    job.args = ["/bin/sh", "-c", "cat digi.csv; ls crumbs digi"]
    done = job.run()
    wanted = ["piece,file,first_event,events", "k000,digi/k000.fit,0,1", "crumbs:", "k000.fit", "digi:", "k000.fit"]
    assert (done.code, shown(done)) == (0, wanted), done.err


@pytest.mark.fault(fault="a gathered output has other content", mode="any", does="names it", code=86)
@pytest.mark.parametrize("where", ["with the job", "at the site"])
def test_other_content_is_refused(make_job: MakeJob, tmp_path: Path, where: str) -> None:
    (tmp_path / "x").write_bytes(b"twice\n")
    line = given("k000.fit", "outputs:x" if where == "with the job" else str(tmp_path / "x"), b"once\n")
    done = gathering(make_job, [line], {"k000.fit": b"twice\n"} if where == "with the job" else None).run()
    assert (done.code, done.message) == (86, "crumbs: crumbs/k000.fit: FAILED")
    assert done.data["started_payload"] is False


@pytest.mark.fault(fault="a gathered output is gone", mode="any", does="names it", code=86)
def test_a_file_that_is_not_there_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    one = [given("k000.fit", "outputs:x", b"x"), given("k001.fit", "outputs:y", b"y")]
    done = gathering(make_job, one, {"k000.fit": b"x"}).run()
    assert done.code == 86
    assert "crumbs/k001.fit" in done.message
    done = gathering(make_job, [given("k000.fit", str(tmp_path / "gone"), b"x")], settings=[("stage.tries", "1")]).run()
    assert done.code == 86
    assert "gone" in done.message
    assert "No such file" in done.message


def test_a_shard_without_all_lines_is_no_job(make_job: MakeJob) -> None:
    job = gathering(make_job, [lost("k000.fit")])
    job.row = [("more", "2")]
    done = job.run()
    assert (done.code, "has not all that row 1 gathers" in done.message) == (80, True)


def test_a_name_outside_its_folder_is_no_job(make_job: MakeJob) -> None:
    done = gathering(make_job, [given("../../k000.fit", "/etc/passwd", b"")]).run()
    assert (done.code, "is no relative path" in done.message) == (80, True)


def test_lists_that_fill_the_disk_never_lose_a_piece(make_job: MakeJob, small_disk: list[str]) -> None:
    lines = [lost(f"k{k:03d}u{u:03d}.fit", k, u) for k in range(522) for u in range(45)]
    job = gathering(make_job, lines)
    job.args = ["/bin/true"]
    done = job.run(prefix=small_disk, timeout=60)
    assert done.code == 89, done.message
    assert done.data["started_payload"] is False


def test_45_crumbs_of_a_thousand_chunks_in_one_merge(make_job: MakeJob, tmp_path: Path) -> None:
    """A run that is merged at once. The files are few, so that the test is about their number, not about the disk."""
    (tmp_path / "x").write_bytes(b"x\n")
    names = [f"k{k:03d}u{u:03d}.fit" for k in range(1000) for u in range(45)]
    lines = [given(name, "outputs:x", b"x\n", at, 1) for at, name in enumerate(names)]
    job = gathering(make_job, lines, {})
    for name in names:
        (job.scratch / "gathered/crumbs" / name).hardlink_to(tmp_path / "x")
        if (tmp_path / "x").stat().st_nlink > 30_000:
            (tmp_path / "x").unlink()
            (tmp_path / "x").write_bytes(b"x\n")
    job.args = ["/bin/sh", "-c", "wc -l < crumbs.csv; ls crumbs | wc -l"]
    began = time.monotonic()
    done = job.run(timeout=120)
    assert (done.code, shown(done)) == (0, ["45001", "45000"]), done.err
    assert time.monotonic() - began < 60
    assert len(done.report.data) < 5000, "the report is as short as that of any job"
