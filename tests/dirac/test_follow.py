"""States of a real DiracX server, moved by the test as optimizers, pilots and agents move them; and what jobs leave."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from fermigrid.backends import Handle, RenderedBatch, dirac, dirac_follow, dirac_http
from fermigrid.backends.dirac_follow import Asked
from fermigrid.backends.dirac_http import Http
from fermigrid.backends.dirac_states import STAGES, Stage
from fermigrid.states import Seen
from tests.dirac.batches import Watch, ids_of, write_batch
from tests.dirac.pilot import hand_back
from tests.dirac.proxy import PASS, SEARCH, Request, between
from tests.dirac.server import Server

pytestmark = pytest.mark.dirac

RUN = ("Checking", "Waiting", "Matched", "Running")


@pytest.fixture
def sent(server: Server, tmp_path: Path) -> Handle:
    return dirac.submit(write_batch(tmp_path, server.url, jobs=3))


def report_of(batch: RenderedBatch, name: str, code: int = 0) -> bytes:
    """A worker's last line, of a job that did nothing."""
    told = {"format": 1, "job": name, "batch": batch.batch_id, "attempt": "g0.s1.00000001", "start": 1, "host": "node"}
    told |= {"where": "host", "rehearsal": False, "image": {"rung": "path"}, "exit": code, "payload_exit": code}
    told |= {"message": "", "begin": 1790000000, "end": 1790000003, "outputs": [], "summary": {}}
    text = json.dumps(told)
    return f"@@FERMIGRID 1 {len(text)} {text}\n".encode()


def archive(files: Mapping[str, bytes], how: str = "gz") -> bytes:
    """An output sandbox, as DIRAC's JobWrapper makes it: flat."""
    with io.BytesIO() as out:
        with tarfile.open(fileobj=out, mode=f"w:{how}") as tar:  # type: ignore[call-overload]
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return out.getvalue()


def leave(server: Server, job: int, files: Mapping[str, bytes], how: str = "gz") -> None:
    """What a job leaves."""
    hand_back(server, job, archive(files, how))


@pytest.mark.parametrize("lost", ["damaged", "deleted"])
def test_a_sandbox_that_can_never_be_had_ends_its_job(server: Server, sent: Handle, tmp_path: Path, lost: str) -> None:
    ids, watch = ids_of(sent.batch), Watch(sent)
    hand_back(server, ids[0], b"no archive at all" if lost == "damaged" else archive({"std.out": b""}))
    server.set(ids[:1], *RUN, "Completing", "Done")

    def fault(request: Request) -> str:
        return "HTTP/1.1 404 Not Found" if lost == "deleted" and request.line == "GET /api/jobs/sandbox" else PASS

    with between(server.port, fault) as network:
        batch = replace(sent.batch, options={**sent.batch.options, "url": network.url})
        watch = Watch(Handle(batch, sent.where, sent.cluster))
        assert [one.seen for one in watch.look()] == [Seen.STARTED] or not watch.seen
        assert f"the output sandbox of job {ids[0]}" in "".join(watch.problems)
        server.write(ids[:1], LastUpdateTime="2026-01-01 00:00:00.000000")
        assert [(one.seen, one.exit_code) for one in watch.look()][-1] == (Seen.ENDED, 88)
        assert (watch.look(), watch.problems) == ([], [])


def test_a_plan_that_was_damaged_is_a_problem_and_nothing_more(sent: Handle) -> None:
    items = sent.batch.plan_dir / "items.txt"
    whole = items.read_bytes()
    watch = Watch(sent)
    for damage in (whole[: len(whole) // 2], b"\xff" * 10, b"", b"go.0000\n"):
        items.write_bytes(damage)
        assert watch.look() == [] and len(watch.problems) == 1, damage
        assert "items.txt" in watch.problems[0] or "cannot be read" in watch.problems[0]
    items.unlink()
    assert watch.look() == [] and len(watch.problems) == 1
    items.write_bytes(whole)
    assert (watch.look(), watch.problems) == ([], [])


def test_a_login_that_has_ended_silences_only_its_own_site(server: Server, tmp_path: Path) -> None:
    first = dirac.submit(write_batch(tmp_path / "first", server.url, jobs=1))
    second = dirac.submit(write_batch(tmp_path / "second", server.url, jobs=1))
    gone = Handle(replace(first.batch, options={**first.batch.options, "credentials": "/nonexistent/c"}), "", 1)
    server.set(ids_of(second.batch), *RUN)
    watch = Watch(gone, second)
    assert [one.batch_id for one in watch.look()] == [second.batch.batch_id]
    assert "nobody is logged in" in "".join(watch.problems)


def test_each_state_of_dirac_has_a_meaning() -> None:
    """The table is whole: every state that DIRAC has."""
    from DIRACCommon.WorkloadManagementSystem.Client.JobStatus import JOB_STATES

    assert set(STAGES) == set(JOB_STATES)


def test_a_job_from_beginning_to_end(server: Server, sent: Handle) -> None:
    watch, (job, *_), batch = Watch(sent), ids_of(sent.batch), sent.batch
    for state in ("Checking", "Waiting", "Matched"):
        server.set([job], state)
        assert watch.look() == []
    server.request("PATCH", "/api/jobs/metadata", {str(job): {"Site": "LCG.IN2P3-CC.fr"}})
    server.set([job], "Running")
    (start,) = watch.look()
    assert (start.index, start.seen, start.host) == (0, Seen.STARTED, "LCG.IN2P3-CC.fr")
    server.set([job], "Completing")
    assert watch.look() == []
    leave(server, job, {"std.out": b"hello\n" + report_of(batch, "go.0000", 7), "go.0000.0.g0.s1.00000001": b"events"})
    server.set([job], "Done", minor="Execution Complete")
    (end,) = watch.look()
    assert (end.seen, end.exit_code, end.reason) == (Seen.ENDED, 7, "Done, Execution Complete")
    (log,) = batch.work_dir.glob("*/go.0000.log")
    assert log.read_bytes().startswith(b"hello\n@@FERMIGRID 1 ")
    assert (log.parent / "out/go.0000.0.g0.s1.00000001").read_bytes() == b"events"
    assert watch.problems == []


@pytest.mark.parametrize("state", ["Stalled", "Completed"])
def test_what_is_no_end(server: Server, sent: Handle, state: str) -> None:
    """A stalled job is not failed: it may come back. A completed one is not done: its outputs are under way."""
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    server.set([job], *RUN)
    assert [one.seen for one in watch.look()] == [Seen.STARTED]
    server.set([job], *(["Completing"] if state == "Completed" else []), state)
    assert watch.look() == []
    server.set([job], *(["Done"] if state == "Completed" else ["Running"]))
    server.write([job], LastUpdateTime="2020-01-01 00:00:00")
    assert [one.seen for one in watch.look()] == ([Seen.ENDED] if state == "Completed" else [])


def test_an_unknown_state_concludes_nothing(server: Server, sent: Handle) -> None:
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    server.set([job], *RUN)
    watch.look()
    server.write([job], Status="Pondering")
    assert watch.look() == []
    assert watch.problems == [f"{sent.batch.name}: DIRAC says of 1 jobs Pondering, which fermigrid does not know"]
    server.write([job], Status="Running")
    assert (watch.look(), watch.problems) == ([], [])


def test_a_job_that_dirac_starts_again(server: Server, sent: Handle) -> None:
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    server.set([job], *RUN)
    watch.look()
    server.set([job], "Rescheduled", "Waiting", minor="Pilot Agent Submission")
    (back,) = watch.look()
    assert back.seen is Seen.EVICTED
    assert "Waiting" in back.reason
    server.set([job], "Matched", "Running")
    assert [one.seen for one in watch.look()] == [Seen.STARTED]


def test_a_job_that_was_started_again_between_two_looks(server: Server, sent: Handle) -> None:
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    server.set([job], *RUN)
    watch.look()
    server.write([job], RescheduleCounter=1)
    assert [one.seen for one in watch.look()] == [Seen.EVICTED, Seen.STARTED]
    assert watch.look() == []


def test_failed_without_a_log_is_an_end(server: Server, sent: Handle) -> None:
    """What DIRAC gives up leaves no sandbox; the campaign's rules say what becomes of it."""
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    server.set([job], *RUN, "Failed", minor="Job stalled: pilot not running")
    start, end = watch.look()
    assert (start.seen, end.seen) == (Seen.STARTED, Seen.ENDED)
    assert (end.exit_code, end.reason) == (99, "Failed, Job stalled: pilot not running")


def test_a_job_whose_sandbox_is_late(server: Server, sent: Handle) -> None:
    """Done, and its sandbox is not there yet: asked for again, and not for ever."""
    watch, (job, other, _) = Watch(sent), ids_of(sent.batch)
    server.set([job, other], *RUN, "Completing", "Done")
    assert [one.seen for one in watch.look()] == []
    leave(server, job, {"std.out": report_of(sent.batch, "go.0000")})
    assert [(one.index, one.seen) for one in watch.look()] == [(0, Seen.STARTED), (0, Seen.ENDED)]
    server.write([other], LastUpdateTime="2020-01-01 00:00:00")
    assert [(one.index, one.seen) for one in watch.look()] == [(1, Seen.STARTED), (1, Seen.ENDED)]


def test_a_job_that_dirac_has_forgotten_is_lost_and_not_failed(server: Server, sent: Handle) -> None:
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    server.forget([job])
    assert [(one.index, one.seen) for one in watch.look()] == [(0, Seen.LOST)]
    assert watch.look() == []
    assert dirac.explain(sent, 0) == (f"job {job} is not known at {sent.where} any more",)


def test_a_job_that_is_known_again(server: Server, sent: Handle) -> None:
    """An answer of the server was not whole; the job is what it was."""
    watch, (job, other, _) = Watch(sent), ids_of(sent.batch)
    server.set([other], *RUN)
    watch.look()
    group = sent.batch.batch_id
    server.write([job, other], JobGroup="0" * 32)
    assert [(one.index, one.seen) for one in watch.look()] == [(0, Seen.LOST), (1, Seen.LOST)]
    server.write([job, other], JobGroup=group)
    known = [(0, Seen.SUBMITTED), (1, Seen.SUBMITTED), (1, Seen.STARTED)]
    assert [(one.index, one.seen) for one in watch.look()] == known
    assert watch.look() == []


def test_how_jobs_stand_whatever_was_seen_of_them(server: Server, tmp_path: Path) -> None:
    """For a ledger that missed events. Of a job whose log is not here yet nothing is said: a look brings it."""
    sent = dirac.submit(write_batch(tmp_path, server.url, jobs=6))
    ids, watch = ids_of(sent.batch), Watch(sent)
    server.set([ids[1]], *RUN)
    server.set([ids[2], ids[3]], *RUN, "Failed", minor="Input Data Not Available")
    server.set([ids[4]], "Killed")
    server.forget([ids[5]])
    early = dirac.resolve([sent])
    assert [(one.index, one.seen) for one in early.seen] == [
        (0, Seen.SUBMITTED),
        (1, Seen.STARTED),
        (4, Seen.REMOVED),
        (5, Seen.LOST),
    ]
    watch.look()
    for _ in range(2):
        found = dirac.resolve([sent])
        assert (found.problems, [one.index for one in found.seen]) == ((), [0, 1, 2, 3, 4, 5])
        assert [(one.seen, one.exit_code) for one in found.seen[2:4]] == [(Seen.ENDED, 86)] * 2
    server.forget([ids[2]])  # it ended, and was cleaned away
    assert [one.index for one in dirac.resolve([sent]).seen] == [0, 1, 3, 4, 5]
    assert watch.look() == []


def test_deleted_is_removed(server: Server, sent: Handle) -> None:
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    server.set([job], "Deleted")
    (gone,) = watch.look()
    assert gone.seen is Seen.REMOVED
    assert "deleted" in dirac.explain_removal(gone.reason, "")[0]


@pytest.mark.parametrize("how", ["bz2", "gz", ""])
def test_sandboxes_of_any_making(server: Server, sent: Handle, how: str) -> None:
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    leave(server, job, {"std.err": b"oops\n", "std.out": report_of(sent.batch, "go.0000", 82)}, how)
    server.set([job], *RUN, "Failed", minor="Application Finished With Errors")
    *_, end = watch.look()
    assert end.exit_code == 82
    (log,) = sent.batch.work_dir.glob("*/go.0000.log")
    assert log.read_bytes() == b"oops\n" + report_of(sent.batch, "go.0000", 82)


def test_a_damaged_sandbox_is_told_and_asked_for_again(server: Server, sent: Handle) -> None:
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    hand_back(server, job, b"no archive at all")
    server.set([job], *RUN, "Completing", "Done")
    assert watch.look() == []
    assert f"the output sandbox of job {job}: ValueError: it is damaged" in "".join(watch.problems)


def test_what_came_back_stays_in_its_folders(server: Server, sent: Handle, tmp_path: Path) -> None:
    """A node's archive is not trusted: no paths, no links, no names that hide."""
    watch, (job, *_) = Watch(sent), ids_of(sent.batch)
    with io.BytesIO() as out:
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name in ("../../escaped", "/absolute", ".hidden", "std.out"):
                data = report_of(sent.batch, "go.0000") if name == "std.out" else b"x"
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        hand_back(server, job, out.getvalue())
    server.set([job], *RUN, "Completing", "Done")
    watch.look()
    (log,) = sent.batch.work_dir.glob("*/go.0000.log")
    assert sorted(path.name for path in (log.parent / "out").iterdir()) == ["absolute", "escaped"]
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert not (tmp_path / "escaped").exists()


def test_many_batches_are_one_question(server: Server, tmp_path: Path) -> None:
    with between(server.port) as network:
        sent = [dirac.submit(write_batch(tmp_path / str(n), network.url, jobs=2 + n)) for n in range(4)]
        for handle in sent:
            server.set(ids_of(handle.batch)[:1], *RUN)
        watch = Watch(*sent)
        assert [(one.batch_id, one.index) for one in watch.look()] == [(handle.batch.batch_id, 0) for handle in sent]
        before = network.count(SEARCH)
        assert watch.look() == []
        assert network.count(SEARCH) == before + 1


@pytest.mark.parametrize("jobs", [9, 10, 11])
def test_more_jobs_than_an_answer_has_room_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """Also where the last answer is just full: of what is behind it the server says that it is an error."""
    monkeypatch.setattr(dirac_http, "_PAGE", 5)
    watch = Watch(dirac.submit(write_batch(tmp_path, server.url, jobs)))
    server.set(ids_of(watch.handles[0].batch), "Checking", "Waiting", "Matched", "Running")
    assert sorted(each.index for each in watch.look()) == list(range(jobs))
    assert not watch.problems
    assert dirac.find(watch.handles[0].batch) is not None


def test_an_answer_is_too_old_when_another_has_looked_since(server: Server, tmp_path: Path) -> None:
    """Two look at once: what one has written down is not undone by what the other was told before."""
    one, other = (dirac.submit(write_batch(tmp_path / str(n), server.url, jobs=1)) for n in range(2))
    asked, way = Asked([one.batch, other.batch]), Http(one.batch.options)
    assert asked.jobs(one.batch, way, {})[0].stage is Stage.WAITING
    server.set(ids_of(other.batch), *RUN)
    Watch(other).look()
    assert asked.jobs(other.batch, way, {})[0].stage is Stage.RUNNING


def test_many_jobs_end_at_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one call of `observe` brings home: none is told before its log is here."""
    monkeypatch.setattr(dirac_follow, "FETCHES", 4)
    sent = dirac.submit(write_batch(tmp_path, server.url, jobs=10))
    ids = ids_of(sent.batch)
    for index, job in enumerate(ids):
        leave(server, job, {"std.out": report_of(sent.batch, f"go.{index:04d}", index + 1)})
    server.set(ids, *RUN, "Completing", "Done")
    watch = Watch(sent)
    watch.look()
    assert [(one.index, one.exit_code) for one in watch.seen if one.seen is Seen.ENDED] == [
        (i, i + 1) for i in range(10)
    ]
    assert len(list(sent.batch.work_dir.glob("*/go.*.log"))) == 10


def test_a_submission_that_was_cut_short_is_confirmed_by_whoever_looks(server: Server, sent: Handle) -> None:
    """It was decided that the batch landed; a part of the confirmation was still to be done."""
    ids = ids_of(sent.batch)
    server.write(ids[1:], Status="Submitting", MinorStatus="Bulk transaction confirmation")
    Watch(sent).look()
    assert {job["Status"] for job in server.jobs(sent.batch.batch_id)} == {"Received"}
