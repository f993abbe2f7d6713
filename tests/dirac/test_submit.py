"""Jobs handed in at a real DiracX server, followed, and taken out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fermigrid.backends import dirac
from fermigrid.backends.dirac_book import path_of
from fermigrid.errors import SubmissionDoubt, SubmissionRefused
from fermigrid.jdl import names_of
from fermigrid.states import Seen
from tests.dirac.batches import Watch, ids_of, write_batch
from tests.dirac.server import Server

pytestmark = pytest.mark.dirac


def test_a_batch_lands_whole_and_once(server: Server, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=45)
    assert dirac.find(batch) is None
    handle = dirac.submit(batch)
    jobs = server.jobs(batch.batch_id)
    assert [job["JobName"] for job in jobs] == names_of(batch)
    assert {job["Status"] for job in jobs} == {"Received"}
    assert handle.cluster == jobs[0]["JobID"]
    assert handle.where == server.url.removeprefix("http://")
    assert dirac.find(batch) == handle
    assert dirac.submit(batch) == handle
    assert len(server.jobs(batch.batch_id)) == 45
    assert ids_of(batch) == tuple(job["JobID"] for job in jobs)


def test_a_thousand_jobs_in_chunks(server: Server, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=1000, timeout_s=60)
    dirac.submit(batch)
    assert server.confirmed(batch.batch_id) == dict.fromkeys(names_of(batch), 1)
    watch = Watch(dirac.Handle(batch, "", 1))
    assert watch.look() == []
    assert watch.problems == []


def test_jobs_run_the_worker_with_their_row(server: Server, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=21)
    dirac.submit(batch)
    (shard,) = (path.name for path in (batch.plan_dir / "shards").iterdir())
    jdl = server.jdl(ids_of(batch)[20])
    assert f'Arguments = "run go.0020 {shard} 21 {batch.batch_id} ' in jdl
    assert jdl.count("SB:SandboxSE|/S3/sandboxes/glast.org/glast_user/fermiuser/sha256:") == 2  # shared, shard


def test_a_batch_of_one_job(server: Server, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=1)
    dirac.submit(batch)
    assert server.confirmed(batch.batch_id) == {"go.0000": 1}


def test_what_is_refused_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    """The second shard's document asks for more jobs than the server takes at a time."""
    batch = write_batch(tmp_path, server.url, jobs=25, chunk=21)
    with pytest.raises(SubmissionRefused, match="cannot submit more than 20 jobs at once"):
        dirac.submit(batch)
    assert server.confirmed(batch.batch_id) == {}
    assert {job["Status"] for job in server.jobs(batch.batch_id)} <= {"Killed"}
    assert dirac.find(batch) is None


def test_jobs_are_killed_one_by_one_and_all_together(server: Server, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=22)
    handle = dirac.submit(batch)
    watch, ids = Watch(handle), ids_of(batch)
    server.set([ids[3]], *("Checking", "Waiting", "Matched", "Running"))
    dirac.remove([handle], [3, 21])
    dirac.remove([handle], [3])
    assert {job["JobID"] for job in server.jobs(batch.batch_id) if job["Status"] == "Killed"} == {ids[3], ids[21]}
    assert {(one.index, one.seen) for one in watch.look()} == {(3, Seen.REMOVED), (21, Seen.REMOVED)}
    dirac.remove([handle])
    assert {job["Status"] for job in server.jobs(batch.batch_id)} == {"Killed"}
    assert sorted(one.index for one in watch.look()) == sorted(set(range(22)) - {3, 21})
    assert all(one.seen is Seen.REMOVED for one in watch.seen)
    dirac.remove([handle])


def test_what_dirac_cannot_do_is_said(server: Server, tmp_path: Path) -> None:
    handle = dirac.submit(write_batch(tmp_path, server.url, jobs=2))
    for act, words in ((dirac.hold, "cannot hold"), (dirac.release, "holds no jobs")):
        with pytest.raises(SubmissionRefused, match=words) as caught:
            act([handle])
        assert caught.value.hint
    with pytest.raises(SubmissionRefused, match="cannot keep waiting jobs from starting"):
        dirac.pause([handle])
    dirac.resume([handle])
    assert {job["Status"] for job in server.jobs(handle.batch.batch_id)} == {"Received"}


def test_why_a_job_waits(server: Server, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=2, sites=["LCG.IN2P3-CC.fr"])
    handle = dirac.submit(batch)
    (job, _) = ids_of(batch)
    server.set([job], "Checking", "Waiting", minor="Pilot Agent Submission")
    said = dirac.explain(handle, 0)
    assert said[0].startswith(f"job {job} at {handle.where}: Waiting, Pilot Agent Submission since 20")
    assert said[1:] == (
        "it waits for a pilot at a site where it may run",
        "it may run only at LCG.IN2P3-CC.fr (dirac.sites)",
    )
    server.write([job], Status="Pondering")
    assert "does not know" in dirac.explain(handle, 0)[1]


def test_another_of_the_same_name_is_for_a_person_to_settle(server: Server, tmp_path: Path) -> None:
    """Somebody handed the JDL in once more, and confirmed it."""
    batch = write_batch(tmp_path, server.url, jobs=2)
    handle = dirac.submit(batch)
    first = ids_of(batch)[0]
    (twin,) = server.request("POST", "/api/jobs/jdl", [server.jdl(first)])
    assert twin["Status"] == "Received"
    with pytest.raises(SubmissionDoubt, match=f"go.0000 more than once, as jobs {first}, {twin['JobID']}") as caught:
        dirac.find(batch)
    assert f"dirac-wms-job-kill {twin['JobID']}" in caught.value.hint
    watch = Watch(handle)
    watch.look()
    assert f"dirac-wms-job-kill {twin['JobID']}" in "".join(watch.problems)


def test_ids_are_had_anew_from_the_server(server: Server, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=23)
    handle = dirac.submit(batch)
    before, watch = ids_of(batch), Watch(handle)
    server.set(before[:2], "Checking", "Waiting", "Matched", "Running")
    watch.look()
    for harm in (
        lambda path: path.unlink(),
        lambda path: path.write_text("{}\n"),
        lambda path: path.write_bytes(b"\xff"),
    ):
        harm(path_of(batch))
        assert [(one.index, one.seen) for one in watch.look()] == [(0, Seen.STARTED), (1, Seen.STARTED)]
        assert ids_of(batch) == before


def test_half_a_line_is_mended(server: Server, tmp_path: Path) -> None:
    """A fermigrid was killed while it wrote down what it saw."""
    batch = write_batch(tmp_path, server.url, jobs=2)
    handle = dirac.submit(batch)
    watch, ids = Watch(handle), ids_of(batch)
    watch.look()
    with path_of(batch).open("a") as book:
        book.write('{"i":0,"seen":"sta')
    server.set(ids, "Checking", "Waiting", "Matched", "Running")
    assert [one.seen for one in watch.look()] == [Seen.STARTED, Seen.STARTED]
    assert [json.loads(line) for line in path_of(batch).read_text().splitlines()]


def test_the_same_cursor_gives_the_same_again(server: Server, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=3)
    handle = dirac.submit(batch)
    server.set(ids_of(batch), "Checking", "Waiting", "Matched", "Running")
    watch = Watch(handle)
    first = watch.look()
    assert len(first) == 3
    assert Watch(handle).look() == first
    assert watch.look() == []


def test_whether_dirac_answers(server: Server, tmp_path: Path) -> None:
    handle = dirac.submit(write_batch(tmp_path, server.url, jobs=1))
    assert dirac.silence(handle) == ""
    nobody = write_batch(tmp_path, "http://127.0.0.1:9", jobs=1)
    assert "does not answer" in dirac.silence(dirac.Handle(nobody, "", 1))
