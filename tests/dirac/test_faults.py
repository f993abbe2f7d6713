"""What a network and a server do to a submission, and that each job is there once afterwards: a proxy in front of the real
server loses, delays and repeats; the server is killed; so is fermigrid."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fermigrid.backends import Handle, RenderedBatch, dirac, dirac_client, dirac_landing, dirac_sandbox
from fermigrid.backends.dirac_book import path_of
from fermigrid.errors import BackendUnavailable, SubmissionDoubt, SubmissionRefused
from fermigrid.jdl import documents
from tests.campaigns import python
from tests.dirac import proxy
from tests.dirac.batches import Watch, ids_of, once, write_batch
from tests.dirac.proxy import CONFIRM, METADATA, SANDBOX, SEARCH, SUBMIT, Fault, Request, between, on
from tests.dirac.server import Server

pytestmark = pytest.mark.dirac


def submit_again(batch: RenderedBatch, tries: int = 10) -> Handle:
    """As a person does: the same command until it goes through."""
    for _ in range(tries):
        try:
            return dirac.submit(batch)
        except (BackendUnavailable, SubmissionDoubt):
            time.sleep(0.2)
    raise AssertionError("it never went through")


FAULTS: dict[str, Fault] = {
    "the first request is lost": on(SUBMIT, 1, what=proxy.LOSE_REQUEST),
    "the answer to the first is lost": on(SUBMIT, 1, what=proxy.LOSE_ANSWER),
    "the answer to the last is lost": on(SUBMIT, 3, what=proxy.LOSE_ANSWER),
    "two answers are lost, one after the other": on(SUBMIT, 2, 3, what=proxy.LOSE_ANSWER),
    "500": on(SUBMIT, 2, what=proxy.ERROR),
    "503": on(SUBMIT, 2, what="HTTP/1.1 503 Service Unavailable"),
    "502 from something in between": on(SUBMIT, 1, what="HTTP/1.1 502 Bad Gateway"),
    "no answer to the second": on(SUBMIT, 2, what=proxy.HANG),
    "an answer in drips": on(SUBMIT, 2, what=proxy.DRIP),
    "the confirmation is lost": on(CONFIRM, 1, what=proxy.LOSE_REQUEST),
    "the answer to the confirmation is lost": on(CONFIRM, 1, what=proxy.LOSE_ANSWER),
    "the confirmation is answered with 500": on(CONFIRM, 1, what=proxy.ERROR),
    "the look for what landed is lost, too": lambda r: proxy.LOSE_ANSWER if (r.line, r.number) in ((SUBMIT, 2), (SEARCH, 2)) else proxy.PASS,
    "the sandbox cannot be handed in at first": on(SANDBOX, 1, what=proxy.LOSE_ANSWER),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_one_submission_overcomes(server: Server, tmp_path: Path, what: str) -> None:
    with between(server.port, FAULTS[what]) as network:
        batch = write_batch(tmp_path, network.url, jobs=45, timeout_s=4)
        began = time.monotonic()
        dirac.submit(batch)
        assert time.monotonic() - began < 45  # the drips alone would take longer
        assert network.count(SUBMIT) >= 3
        once(server, batch)


@pytest.mark.parametrize("number", range(1, 9))
def test_whichever_request_for_a_session_is_lost(server: Server, tmp_path: Path, number: int) -> None:
    """Each operation begins with a question of the client's own."""

    def fault(request: Request) -> str:
        if (request.line, request.number) == (SUBMIT, 2):
            return proxy.LOSE_ANSWER  # so that there is more than one round
        return on(METADATA, number, what=proxy.LOSE_REQUEST)(request)

    with between(server.port, fault) as network:
        submit_again(batch := write_batch(tmp_path, network.url, jobs=45, timeout_s=4))
        network.fault = lambda _: proxy.PASS
        once(server, batch)


@pytest.mark.parametrize("line", ["GET /api/auth/userinfo", SEARCH, SUBMIT])
def test_an_answer_that_is_of_no_use_refuses_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    """404 from something in between, while some of the batch is there and may run: it is not given up."""
    monkeypatch.setattr(dirac_landing, "_CONFIRM_AFTER_S", 0.0)
    monkeypatch.setattr(dirac_landing, "_ROUNDS", 1)
    with between(server.port, on(SUBMIT, 3, what=proxy.LOSE_REQUEST)) as network:
        batch = write_batch(tmp_path, network.url, jobs=60, flights=1)
        with pytest.raises(SubmissionDoubt):
            dirac.submit(batch)
        assert len(server.confirmed(batch.batch_id)) >= 20
        network.fault = on(line, what="HTTP/1.1 404 Not Found")
        with pytest.raises((BackendUnavailable, SubmissionDoubt), match="404"):
            dirac.submit(batch)
        network.fault = lambda _: proxy.PASS
        dirac.submit(batch)
        once(server, batch)


def test_what_was_refused_is_sent_whole_when_it_is_sent_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had landed of it was killed: none of that counts as having landed."""
    monkeypatch.setattr(dirac_landing, "_CONFIRM_AFTER_S", 0.0)
    with between(server.port, on(SUBMIT, 3, what="HTTP/1.1 400 Bad Request")) as network:
        batch = write_batch(tmp_path, network.url, jobs=70, flights=1)
        with pytest.raises(SubmissionRefused):
            dirac.submit(batch)
        assert [job["Status"] for job in server.jobs(batch.batch_id)] == ["Killed"] * 40
        assert dirac.find(batch) is None
        handle = dirac.submit(batch)
        once(server, batch)
        watch = Watch(handle)
        assert (watch.look(), watch.problems) == ([], [])


def test_a_refusal_takes_back_what_was_under_way(server: Server, tmp_path: Path) -> None:
    """The answers to documents beside the one that was refused come later."""
    with between(server.port, on(SUBMIT, 14, what="HTTP/1.1 400 Bad Request")) as network:
        batch = write_batch(tmp_path, network.url, jobs=200, chunk=5, flights=4)
        with pytest.raises(SubmissionRefused):
            dirac.submit(batch)
    assert {job["Status"] for job in server.jobs(batch.batch_id)} == {"Killed"}


def test_a_document_of_which_some_is_missing_is_sent_once_the_rest_is_killed(server: Server, tmp_path: Path) -> None:
    batch = write_batch(tmp_path, server.url, jobs=5)
    dirac.submit(batch)
    ids = ids_of(batch)
    server.forget(ids[3:])
    path_of(batch).unlink()
    with pytest.raises(SubmissionDoubt, match="DIRAC has only 3 of 5 jobs that were handed in as one") as told:
        dirac.submit(batch)
    assert str(ids[0]) in told.value.hint
    server.set(ids[:3], "Killed", minor="Marked for termination")  # as the hint says
    dirac.submit(batch)
    once(server, batch)


def test_a_sandbox_that_is_too_large_leaves_nothing_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a later document; the first has landed."""
    monkeypatch.setattr(dirac_landing, "_CONFIRM_AFTER_S", 0.0)
    batch = write_batch(tmp_path, server.url, jobs=4, chunk=1, flights=1)
    made, large = list(documents(batch)), tmp_path / "gathered"
    large.mkdir()
    (large / "x").write_bytes(os.urandom(3 << 20))
    made[2] = replace(made[2], own=(*made[2].own, large))
    monkeypatch.setattr(dirac_sandbox, "MOST_BYTES", 2 << 20)
    monkeypatch.setattr(dirac_landing, "documents", lambda _: iter(made))
    with pytest.raises(SubmissionRefused, match="the largest of it is gathered"):
        dirac.submit(batch)
    assert [job["Status"] for job in server.jobs(batch.batch_id)] == ["Killed"] * 2


def test_what_dirac_gives_up_before_it_is_confirmed_is_sent_anew(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the confirmation, which then does nothing for it."""
    given_up = list[int]()

    def give_up(request: Request) -> str:
        if request.line == CONFIRM and not given_up:
            given_up.extend(job["JobID"] for job in server.jobs(batch.batch_id))
            server.write(given_up, Status="Failed")
            for job in given_up:
                server.shift(job, 60)
        return proxy.PASS

    with between(server.port, give_up) as network:
        batch = write_batch(tmp_path, network.url, jobs=3)
        handle = dirac.submit(batch)
        assert not set(ids_of(batch)) & set(given_up)
        assert {job["Status"] for job in server.jobs(batch.batch_id) if job["JobID"] in ids_of(batch)} == {"Received"}
        assert Watch(handle).look() == []


def test_a_request_that_arrives_after_all_is_a_copy_that_never_runs(server: Server, tmp_path: Path) -> None:
    """Its client had given up, looked, and sent it again; only then the server hears of the first."""
    with between(server.port, on(SUBMIT, 2, what=proxy.LATE), late_s=6) as network:
        batch = write_batch(tmp_path, network.url, jobs=45, timeout_s=3)
        handle = dirac.submit(batch)
        end = time.monotonic() + 20
        while len(server.jobs(batch.batch_id)) < 65:
            assert time.monotonic() < end, "the late request never arrived"
            time.sleep(0.1)
        once(server, batch)
        watch = Watch(handle)
        watch.look()
        assert (watch.seen, watch.problems) == ([], [])
        late = [job for job in server.jobs(batch.batch_id) if job["Status"] == "Submitting"]
        assert len(late) == 20
        server.set([job["JobID"] for job in late], "Killed")  # as DIRAC's agent does after some minutes
        assert (watch.look(), watch.problems) == ([], [])
        dirac.remove([handle])
        assert server.confirmed(batch.batch_id) == {}


def test_a_confirmation_is_of_the_servers_own_time(server: Server, tmp_path: Path) -> None:
    """A server passes over what is older than what it has, in silence, and holds back what it hears later of what is not
    yet: by our clock it would do so wherever clocks differ."""
    batch = write_batch(tmp_path, server.url, jobs=25)
    dirac.submit(batch)
    for job in ids_of(batch):
        (first, made), (then, confirmed) = server.history(job)
        assert (first, then) == ("Submitting", "Received")
        assert timedelta(0) < confirmed - made < timedelta(milliseconds=10)


def test_what_a_server_passes_over_is_told_it_again(server: Server, tmp_path: Path) -> None:
    """The states of a job that runs are of its node's clock, which is far ahead."""
    batch = write_batch(tmp_path, server.url, jobs=3)
    handle = dirac.submit(batch)
    (job, *_) = ids_of(batch)
    server.set([job], "Checking", "Waiting", "Matched", "Running")
    server.shift(job, 600)
    dirac.remove([handle])
    assert server.confirmed(batch.batch_id) == {}


def test_a_confirmation_that_arrives_late_begins_no_job_again(server: Server, tmp_path: Path) -> None:
    """Nobody answered it, the next one was heard, and the job runs by the time that the first arrives."""
    with between(server.port, on(CONFIRM, 1, what=proxy.LATE), late_s=6) as network:
        batch = write_batch(tmp_path, network.url, jobs=3, timeout_s=3)
        dirac.submit(batch)
        ids = ids_of(batch)
        server.set(ids, "Checking", "Waiting", "Matched", "Running")
        end = time.monotonic() + 20
        while len(server.history(ids[0])) < 7:  # made, confirmed, four of ours, and the late one
            assert time.monotonic() < end, "the late request never arrived"
            time.sleep(0.1)
        assert {job["Status"] for job in server.jobs(batch.batch_id)} == {"Running"}


def test_the_server_asks_to_wait(server: Server, tmp_path: Path) -> None:
    with between(server.port, on(SUBMIT, 1, 2, what=proxy.BUSY), retry_after="2") as network:
        batch = write_batch(tmp_path, network.url, jobs=25)
        began = time.monotonic()
        dirac.submit(batch)
        assert time.monotonic() - began >= 2
        assert network.count(SUBMIT) == 4  # two documents, and what was refused once more
        once(server, batch)


def test_the_server_asks_to_wait_for_ever(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirac_client, "_MOST_PATIENCE_S", 2.0)
    monkeypatch.setattr(dirac_landing, "_WAIT_S", 0.01)
    with between(server.port, on(SUBMIT, what=proxy.BUSY), retry_after="0.1") as network:
        batch = write_batch(tmp_path, network.url, jobs=5)
        with pytest.raises(BackendUnavailable, match="asks to wait"):
            dirac.submit(batch)
    assert server.jobs(batch.batch_id) == []


@pytest.mark.parametrize("told", ["7200", "nan", "inf", "-1"])
def test_how_long_the_server_asks_to_wait(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    """Longer than anybody waits is no answer; what is no time means nothing."""
    monkeypatch.setattr(dirac_landing, "_ROUNDS", 1)
    with between(server.port, on(SUBMIT, 1, what=proxy.BUSY), retry_after=told) as network:
        batch = write_batch(tmp_path, network.url, jobs=5)
        began = time.monotonic()
        if told == "7200":
            with pytest.raises(BackendUnavailable, match="asks to wait for 7200 s more"):
                dirac.submit(batch)
        else:
            dirac.submit(batch)
            once(server, batch)
        assert time.monotonic() - began < 10


def test_credentials_that_another_program_has_locked(server: Server, tmp_path: Path) -> None:
    """DiracX's client would wait for the lock, and nothing could end that."""
    with server.credentials.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="another program has locked"):
            dirac.submit(write_batch(tmp_path, server.url, jobs=1, timeout_s=1))
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("what", [proxy.ERROR, proxy.LOSE_ANSWER, "HTTP/1.1 503 Service Unavailable"])
def test_nothing_is_sent_again_without_a_look(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """DiracX's client would repeat some requests by itself, and make jobs twice."""
    monkeypatch.setattr(dirac_landing, "_ROUNDS", 1)
    with between(server.port, on(SUBMIT, what=what)) as network:
        with pytest.raises((BackendUnavailable, SubmissionDoubt)):
            dirac.submit(write_batch(tmp_path, network.url, jobs=25, flights=1))
        assert network.count(SUBMIT) == 1


@pytest.mark.parametrize("line", [METADATA, SEARCH, SUBMIT, SANDBOX])
def test_a_server_that_hangs_is_left_in_time(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(dirac_landing, "_ROUNDS", 2)
    with between(server.port, on(line, what=proxy.HANG)) as network:
        batch = write_batch(tmp_path, network.url, jobs=25, timeout_s=1)
        began = time.monotonic()
        with pytest.raises((BackendUnavailable, SubmissionDoubt), match=r"no answer within 1 s|does not answer"):
            dirac.submit(batch)
        assert time.monotonic() - began < 25
        network.fault = lambda _: proxy.PASS
        dirac.submit(batch)
        once(server, batch)


def test_a_server_whose_process_stands_still(
    own_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dirac_landing, "_ROUNDS", 1)
    batch = write_batch(tmp_path, own_server.url, jobs=25, timeout_s=1)
    own_server.stop_answering()
    began = time.monotonic()
    with pytest.raises(BackendUnavailable):
        dirac.submit(batch)
    assert time.monotonic() - began < 20
    own_server.answer_again()
    dirac.submit(write_batch(tmp_path / "other", own_server.url, jobs=1))
    submit_again(batch)
    once(own_server, batch)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_server_is_killed_in_the_middle_and_comes_back(own_server: Server, tmp_path: Path, number: int) -> None:
    """kill -9 as soon as it has heard of a document; nobody knows what it did of it."""

    def kill(request: Request) -> str:
        if (request.line, request.number) == (SUBMIT, number):
            threading.Timer(0.05, own_server.kill).start()
        return proxy.PASS

    with between(own_server.port, kill) as network:
        batch = write_batch(tmp_path, network.url, jobs=60, timeout_s=3)
        with pytest.raises((BackendUnavailable, SubmissionDoubt)):
            dirac.submit(batch)
        own_server.start()
        submit_again(batch)
        once(own_server, batch)


SUBMITTER = """
import os, pickle, signal, sys
from fermigrid.backends import dirac
batch = pickle.load(open(sys.argv[1], "rb"))
dirac.submit(batch)
"""


@pytest.mark.parametrize(("line", "number"), [(SUBMIT, 1), (SUBMIT, 2), (SUBMIT, 3), (CONFIRM, 1), (SANDBOX, 1)])
@pytest.mark.parametrize("what", [proxy.PASS, proxy.LOSE_REQUEST])
def test_fermigrid_is_killed_in_the_middle(server: Server, tmp_path: Path, line: str, number: int, what: str) -> None:
    """kill -9 of the process that hands in, when a request is under way: it lands, or it does not."""
    import pickle

    process: list[subprocess.Popen[str]] = []

    def kill(request: Request) -> str:
        if process and (request.line, request.number) == (line, number):
            process[0].kill()
            process[0].wait()
            return what
        return proxy.PASS

    with between(server.port, kill) as network:
        batch = write_batch(tmp_path, network.url, jobs=45)
        (tmp_path / "batch").write_bytes(pickle.dumps(batch))
        process.append(python(SUBMITTER, tmp_path / "batch"))
        process[0].communicate(timeout=60)
        assert process[0].returncode == -9
        network.fault = lambda _: proxy.PASS
        if dirac.find(batch) is None:
            dirac.submit(batch)
        else:
            Watch(Handle(batch, "", 1)).look()
        once(server, batch)


def test_what_landed_in_part_is_taken_back(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its campaign was removed before the batch could be completed."""
    monkeypatch.setattr(dirac_landing, "_ROUNDS", 1)
    with between(
        server.port, lambda r: proxy.LOSE_REQUEST if r.line == SUBMIT and r.number >= 2 else proxy.PASS
    ) as network:
        batch = write_batch(tmp_path, network.url, jobs=45)
        with pytest.raises(SubmissionDoubt, match="20 of its 45 jobs landed, 20 of them are not confirmed"):
            dirac.submit(batch)
        assert dirac.find(batch) is None
        dirac.take_back(batch)
    assert {job["Status"] for job in server.jobs(batch.batch_id)} == {"Killed"}
    assert server.confirmed(batch.batch_id) == {}


def test_what_is_not_confirmed_has_not_landed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it is there, and nobody has confirmed it: DIRAC starts none of it, and it can be given up."""
    monkeypatch.setattr(dirac_landing, "_ROUNDS", 1)
    with between(server.port, on(CONFIRM, what=proxy.LOSE_REQUEST)) as network:
        batch = write_batch(tmp_path, network.url, jobs=25)
        with pytest.raises(SubmissionDoubt, match="25 of its 25 jobs landed, 25 of them are not confirmed"):
            dirac.submit(batch)
        assert dirac.find(batch) is None
        network.fault = lambda _: proxy.PASS
        dirac.take_back(batch)
        assert dirac.find(batch) is None
    assert {job["Status"] for job in server.jobs(batch.batch_id)} == {"Killed"}


def test_what_waits_long_is_confirmed_on_the_way(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DIRAC gives up after minutes what is not confirmed: a long submission confirms as it goes."""
    monkeypatch.setattr(dirac_landing, "_CONFIRM_AFTER_S", 0.0)
    monkeypatch.setattr(dirac_landing, "_ROUNDS", 1)
    with between(
        server.port, lambda r: proxy.LOSE_REQUEST if r.line == SUBMIT and r.number >= 3 else proxy.PASS
    ) as network:
        batch = write_batch(tmp_path, network.url, jobs=60)
        with pytest.raises(SubmissionDoubt):
            dirac.submit(batch)
        early = server.confirmed(batch.batch_id)
        assert len(early) >= 20
        assert dirac.find(batch) is None
        network.fault = lambda _: proxy.PASS
        dirac.submit(batch)
        once(server, batch)


def test_what_dirac_gave_up_meanwhile_is_sent_anew(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dirac_landing, "_ROUNDS", 1)
    with between(server.port, on(SUBMIT, 2, what=proxy.LOSE_REQUEST)) as network:
        batch = write_batch(tmp_path, network.url, jobs=25)
        with pytest.raises(SubmissionDoubt):
            dirac.submit(batch)
        given_up = [job["JobID"] for job in server.jobs(batch.batch_id)]
        server.write(given_up, Status="Failed")  # as DIRAC's agent does: the minor status stays
        dirac.submit(batch)
    assert not set(ids_of(batch)) & set(given_up)
    assert {job["Status"] for job in server.jobs(batch.batch_id) if job["JobID"] in ids_of(batch)} == {"Received"}


def test_a_lost_answer_to_a_look_is_a_problem_and_nothing_more(server: Server, tmp_path: Path) -> None:
    with between(server.port) as network:
        batch = write_batch(tmp_path, network.url, jobs=3)
        handle = dirac.submit(batch)
        server.set(ids_of(batch), "Checking", "Waiting", "Matched", "Running")
        watch = Watch(handle)
        for what in (proxy.LOSE_ANSWER, proxy.ERROR, proxy.LOSE_REQUEST):
            network.fault = on(SEARCH, what=what)
            assert watch.look() == []
            assert len(watch.problems) == 1
            assert "DIRAC does not answer" in watch.problems[0]
        network.fault = lambda _: proxy.PASS
        assert len(watch.look()) == 3
