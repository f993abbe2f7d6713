"""The transport `commands`: commands that do and print what DIRAC's do (`legacy.py`), in front of a real server."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from pathlib import Path

import pytest

from fermigrid.backends import RenderedBatch, dirac
from fermigrid.backends.dirac_book import path_of
from fermigrid.errors import BackendUnavailable, SecretRefused, SubmissionRefused
from fermigrid.states import Seen
from tests.campaigns import fermigrid, python, write
from tests.dirac import proxy
from tests.dirac.batches import CAMPAIGN, SITE, Watch, ids_of, once, write_batch
from tests.dirac.legacy import COMMANDS
from tests.dirac.pilot import hand_back
from tests.dirac.proxy import CONFIRM, SUBMIT, between, on
from tests.dirac.server import Server
from tests.dirac.test_faults import SUBMITTER
from tests.dirac.test_follow import RUN, archive, report_of

pytestmark = pytest.mark.dirac

PROXY = """\
subject      : /O=Fermi/CN=Enrico Fermi/CN=proxy
issuer       : /O=Fermi/CN=Enrico Fermi
identity     : /O=Fermi/CN=Enrico Fermi
timeleft     : {left}
DIRAC group  : {group}
path         : /nonexistent/x509up_u1000
username     : fermiuser
"""


@pytest.fixture
def commands(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DIRAC's commands on the PATH; returns the file that breaks them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in COMMANDS:
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).parent}/legacy.py {name} "$@"\n')
        (folder / name).chmod(0o755)
    (tmp_path / "proxy").write_text(PROXY.format(left="23:53:55", group="glast_user"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LEGACY_URL", server.url)
    monkeypatch.setenv("LEGACY_TOKENS", str(server.credentials))
    monkeypatch.setenv("LEGACY_PROXY", str(tmp_path / "proxy"))
    monkeypatch.setenv("LEGACY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LEGACY_FAULT", str(tmp_path / "fault"))
    return tmp_path / "fault"


def legacy_batch(folder: Path, jobs: int, **options: object) -> RenderedBatch:
    return write_batch(folder, "http://127.0.0.1:9", jobs, **{"transport": "commands", "timeout_s": 20, **options})


def test_from_beginning_to_end(server: Server, commands: Path, tmp_path: Path) -> None:
    batch = legacy_batch(tmp_path, 25)
    assert dirac.find(batch) is None
    handle = dirac.submit(batch)
    assert handle.where == "DIRAC"
    once(server, batch)
    assert dirac.submit(batch) == handle
    once(server, batch)
    watch, ids = Watch(handle), ids_of(batch)
    assert watch.look() == []
    server.set(ids[:2], *RUN)
    assert [(one.index, one.seen) for one in watch.look()] == [(0, Seen.STARTED), (1, Seen.STARTED)]
    hand_back(server, ids[0], archive({"std.out": report_of(batch, "go.0000", 7), "go.0000.0.x": b"events"}))
    server.set(ids[:1], "Completing", "Done")
    server.set(ids[1:2], "Failed", minor="Job stalled: pilot not running")
    assert [(one.index, one.seen, one.exit_code) for one in watch.look()] == [(0, Seen.ENDED, 7), (1, Seen.ENDED, 99)]
    (out,) = batch.work_dir.glob("*/out/go.0000.0.x")
    assert out.read_bytes() == b"events"
    assert dirac.explain(handle, 1)[0].startswith(
        f"job {ids[1]} at DIRAC: Failed, Job stalled: pilot not running since "
    )
    dirac.remove([handle], [2])
    assert [(one.index, one.seen) for one in watch.look()] == [(2, Seen.REMOVED)]
    dirac.remove([handle])
    assert len(watch.look()) == 22
    assert watch.problems == []
    path_of(batch).unlink()
    assert len(Watch(handle).look()) > 22
    assert ids_of(batch) == ids
    assert dirac.silence(handle) == ""


@pytest.mark.parametrize("where", ["before", "unconfirmed", "confirmed"])
def test_a_command_that_hangs_is_ended_and_its_jobs_are_there_once(
    server: Server, commands: Path, tmp_path: Path, where: str
) -> None:
    """Before the server heard of them, between its answer and the confirmation, after that."""
    batch = legacy_batch(tmp_path, 25, timeout_s=6)
    commands.write_text(f"{where} 1\n")
    dirac.submit(batch)
    once(server, batch)


def test_a_confirmation_that_arrives_after_all(
    server: Server, commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that sent it was ended, and the jobs are handed in anew; only then the server hears of it."""
    with between(server.port, on(CONFIRM, 1, what=proxy.LATE), late_s=10) as network:
        monkeypatch.setenv("LEGACY_URL", network.url)
        batch = legacy_batch(tmp_path, 3, timeout_s=5)
        began = time.monotonic()
        dirac.submit(batch)
        first = server.jobs(batch.batch_id)[0]["JobID"]
        assert first not in ids_of(batch)
        while "Received" not in dict(server.history(first)):
            assert time.monotonic() < began + 40, "the late request never arrived"
            time.sleep(0.1)
        once(server, batch)
    # whenever it comes: what it would confirm was gone before anything was handed in anew
    assert dict(server.history(first))["Killed"] < dict(server.history(ids_of(batch)[0]))["Submitting"]


def running(fault: Path) -> list[str]:
    """The commands that run for this test, by their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if path.name != str(os.getpid()) and f"LEGACY_FAULT={fault}".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it has ended meanwhile
    return [command for command in found if command]


@pytest.mark.parametrize("where", ["before", "unconfirmed", "confirmed"])
def test_a_command_ends_with_fermigrid(server: Server, commands: Path, tmp_path: Path, where: str) -> None:
    """kill -9 while a command hands in: it hands in nothing more."""
    batch = legacy_batch(tmp_path, 25)
    (tmp_path / "batch").write_bytes(pickle.dumps(batch))
    commands.write_text(f"{where} 1\n")
    process = python(SUBMITTER, tmp_path / "batch")
    end = time.monotonic() + 60
    while commands.read_text() != f"{where} 0\n":
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    end = time.monotonic() + 10  # its own time limit comes later
    while still := running(commands):
        assert time.monotonic() < end, f"it goes on: {still}"
        time.sleep(0.05)
    dirac.submit(batch)
    once(server, batch)


def test_what_dirac_refuses(server: Server, commands: Path, tmp_path: Path) -> None:
    """The second document landed with the same command, and was confirmed: it is taken back."""
    batch = legacy_batch(tmp_path, 25, chunk=21)
    with pytest.raises(SubmissionRefused, match="cannot submit more than 20"):
        dirac.submit(batch)
    assert [job["Status"] for job in server.jobs(batch.batch_id)] == ["Killed"] * 4


def test_what_was_refused_is_sent_whole_when_it_is_sent_again(
    server: Server, commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had landed was confirmed by DIRAC's own command, and killed: none of that counts as having landed."""
    with between(server.port, on(SUBMIT, 3, what="HTTP/1.1 403 Forbidden")) as network:
        monkeypatch.setenv("LEGACY_URL", network.url)
        batch = legacy_batch(tmp_path, 50)
        with pytest.raises(SubmissionRefused):
            dirac.submit(batch)
        assert server.confirmed(batch.batch_id) == {}
        handle = dirac.submit(batch)
        once(server, batch)
        assert Watch(handle).look() == []


def test_killed_before_the_ids_were_written_down(
    server: Server, commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies that were killed look as if they had been confirmed: those that are alive count."""
    commands.write_text("unconfirmed 1\n")
    batch = legacy_batch(tmp_path, 5, timeout_s=6)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dirac, "make_book", interrupt)
        with pytest.raises(KeyboardInterrupt):
            dirac.submit(batch)
    handle = dirac.find(batch)
    assert handle is not None
    watch = Watch(handle)
    assert (watch.look(), watch.problems) == ([], [])
    once(server, batch)


def test_sandboxes_that_take_long_come_by_and_by(server: Server, commands: Path, tmp_path: Path) -> None:
    """One that never comes keeps only its own job."""
    batch = legacy_batch(tmp_path, 4, transfer_s=5, timeout_s=5)
    watch = Watch(dirac.submit(batch))
    ids = ids_of(batch)
    for index, job in enumerate(ids):
        hand_back(server, job, archive({"std.out": report_of(batch, f"go.000{index}")}))
    server.set(ids, *RUN, "Completing", "Done")
    commands.write_text(f"slow{ids[2]} 100\n")
    seen = {one.index for one in watch.look()} | {one.index for one in watch.look()}
    assert seen == {0, 1, 3}
    assert f"the output sandbox of job {ids[2]}: not here within 5 s" in "".join(watch.problems)
    commands.write_text("")
    assert {one.index for one in watch.look()} == {2}


def test_a_job_that_is_done_is_asked_for_its_sandbox_for_a_while(
    server: Server, commands: Path, tmp_path: Path
) -> None:
    watch = Watch(dirac.submit(legacy_batch(tmp_path, 1)))
    (job,) = ids_of(watch.handles[0].batch)
    server.set([job], *RUN, "Completing", "Done")
    assert [one.seen for one in watch.look()] == []
    server.write([job], LastUpdateTime="2026-01-01 00:00:00.000000")
    assert [(one.seen, one.exit_code) for one in watch.look()][-1] == (Seen.ENDED, 88)


def test_jobs_that_dirac_has_forgotten_are_lost_and_not_failed(server: Server, commands: Path, tmp_path: Path) -> None:
    """Its command says nothing of them, and that all is well."""
    watch = Watch(dirac.submit(legacy_batch(tmp_path, 2)))
    server.forget(ids_of(watch.handles[0].batch))
    assert [(one.index, one.seen) for one in watch.look()] == [(0, Seen.LOST), (1, Seen.LOST)]
    assert watch.problems == []


@pytest.mark.parametrize(
    ("left", "group", "words"),
    [
        ("23:53:55", "glast_prod", "is of group glast_prod; the site says glast_user"),
        ("00:00:00", "glast_user", "ended at"),
        ("00:04:00", "glast_user", r"2 documents at 1 s each \+ 5 min to spare = 5 min 2 s"),
    ],
)
def test_a_proxy_that_will_not_do(commands: Path, tmp_path: Path, left: str, group: str, words: str) -> None:
    (tmp_path / "proxy").write_text(PROXY.format(left=left, group=group))
    with pytest.raises(SecretRefused, match=words):
        dirac.submit(legacy_batch(tmp_path, 25))


def test_outputs_on_storage_elements(server: Server, commands: Path, tmp_path: Path) -> None:
    """With `output_se` they are DIRAC's to keep; a job has ended when they are here, too."""
    batch = legacy_batch(tmp_path, 3, output_se=["DISK"])
    watch = Watch(dirac.submit(batch))
    ids = ids_of(batch)
    for index, job in enumerate(ids):
        hand_back(server, job, archive({"std.out": report_of(batch, f"go.000{index}")}))
    for job, name in ((ids[0], "go.0000.0.x"), (ids[1], "broken")):
        (tmp_path / "data" / str(job)).mkdir(parents=True)
        (tmp_path / "data" / str(job) / name).write_text("events")
    server.set(ids, *RUN, "Completing", "Done")
    assert sorted({one.index for one in watch.look()}) == [0, 2]
    assert f"the output sandbox of job {ids[1]}: ERROR {ids[1]}: Failed to download file" in "".join(watch.problems)
    assert [path.name for path in batch.work_dir.glob("*/out/*")] == ["go.0000.0.x"]
    (tmp_path / "data" / str(ids[1]) / "broken").rename(tmp_path / "data" / str(ids[1]) / "go.0001.0.x")
    assert {one.index for one in watch.look()} == {1}


def test_a_campaign_by_the_commands(server: Server, commands: Path, tmp_path: Path) -> None:
    """The whole command line, where DIRAC's own commands are all that there is."""
    write(tmp_path, CAMPAIGN.format(jobs=25))
    (tmp_path / "sites").mkdir()
    site = SITE.replace("  transport: diracx\n  url: {url}\n", "  transport: commands\n").format()
    (tmp_path / "sites/grid.yaml").write_text(site)
    place = ("--site", "grid", "--sites", "sites")
    code, out, said = fermigrid("submit", "campaign.yaml", *place, "--run-dir", "run", cwd=tmp_path)
    assert (code, server.may_run()) == (0, 25), (out, said)
    _, out, _ = fermigrid("why", "run", "go.0024", cwd=tmp_path)
    assert " at DIRAC: Received, Job accepted since 20" in out
    code, _, said = fermigrid("remove", "run", cwd=tmp_path)
    assert (code, server.may_run()) == (0, 0), said
    assert "25 removed" in fermigrid("status", "run", cwd=tmp_path)[1]


def test_without_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(BackendUnavailable, match="dirac-proxy-info is not on the PATH"):
        dirac.submit(legacy_batch(tmp_path, 1))


def test_what_is_on_disk_can_be_read(server: Server, commands: Path, tmp_path: Path) -> None:
    batch = legacy_batch(tmp_path, 3)
    dirac.submit(batch)
    head = json.loads(path_of(batch).read_text().splitlines()[0])
    assert (head["batch"], head["where"], len(head["ids"])) == (batch.batch_id, "DIRAC", 3)
