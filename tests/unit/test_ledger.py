"""The ledger: each method happened or did not, whatever is killed or full; one writer; one accepted result a job."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fermigrid.backends import Cursor
from fermigrid.errors import LedgerBusy, LedgerError
from fermigrid.ledger import Ledger, create_ledger, open_ledger
from fermigrid.ledger_file import on_network, writing
from fermigrid.packed_logs import PackedLogs
from fermigrid.records import BatchRecord, CampaignRecord, JobRecord
from fermigrid.report import Report, parse_report
from fermigrid.schema import MIGRATIONS
from fermigrid.states import State
from tests.campaigns import NOW, SMALL_DISK, finish, python

CAMPAIGN = CampaignRecord(
    "c", "1" * 32, "d" * 64, None, {"p": "é\t"}, "/here", ("/sites", "/more"), NOW.isoformat(), "0.1.0"
)


def batch(number: int = 0, **changes: Any) -> BatchRecord:
    name = f"c.b{number:04d}.go.g0"
    record = BatchRecord(
        f"{number:032x}", f"b{number:04d}", "go", 0, "local", "local", name, "e" * 64, 3, {"slots": None}
    )
    return replace(record, **changes)


def job(number: int = 0, index: int = 0, state: State = State.RUNNING, **changes: Any) -> JobRecord:
    return replace(JobRecord(f"{number:032x}", index, f"go.r{index}", state, NOW.isoformat()), **changes)


def report(of: JobRecord, attempt: str, code: int = 0, outputs: bool = False) -> Report:
    out = {"name": "o", "to": "r.fit", "file": f"x.{attempt}", "bytes": 1, "sha256": "0", "result": "ours"}
    data = {
        "job": of.name,
        "batch": of.batch,
        "attempt": attempt,
        "start": 1,
        "host": "n",
        "where": "image",
        "rehearsal": True,
        "image": {"rung": "path"},
        "exit": code,
        "payload_exit": code,
        "message": "",
        "begin": 1,
        "end": 2,
        "summary": {},
        "outputs": [out] if outputs else [],
    }
    text = json.dumps(data).encode()
    return parse_report(b"@@FERMIGRID 1 %d %s\n" % (len(text), text), of.name, of.batch)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(create_ledger(tmp_path / "ledger.sqlite", CAMPAIGN, NOW, "me@here")) as made:
        yield made


def test_a_campaign_comes_back(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.campaign() == CAMPAIGN
    with closing(open_ledger(tmp_path / "ledger.sqlite")) as again:
        assert again.campaign() == CAMPAIGN
        assert again.journal()[0][1:] == ("me@here", "began campaign c with fermigrid 0.1.0")


def test_batches_come_back_in_order_and_in_doubt_until_recorded(ledger: Ledger) -> None:
    for number in (1, 0):
        ledger.intend(batch(number, options={"a": [1, "ü"]}), NOW, "me")
    assert ledger.batches() == [batch(1, options={"a": [1, "ü"]}), batch(0, options={"a": [1, "ü"]})]
    ledger.record(batch(0).id, "schedd", 17, NOW, "me", "submitted")
    first, second = ledger.batches()
    assert (first.submitted, first.cluster) == (None, None)
    assert (second.submitted, second.place, second.cluster) == ("2027-03-04T05:06:07+00:00", "schedd", 17)


def test_a_record_is_not_changed_by_a_second_one(ledger: Ledger) -> None:
    ledger.intend(batch(), NOW, "me")
    ledger.record(batch().id, "one", 1, NOW, "me", "submitted")
    ledger.record(batch().id, "two", 2, NOW, "me", "adopted")
    assert (ledger.batches()[0].place, ledger.batches()[0].cluster) == ("one", 1)


def test_nothing_is_intended_twice(ledger: Ledger) -> None:
    ledger.intend(batch(), NOW, "me")
    for double in (batch(), batch(id="f" * 32)):
        with pytest.raises(LedgerError, match="UNIQUE"):
            ledger.intend(double, NOW, "me")
    assert len(ledger.batches()) == 1
    assert len(ledger.journal()) == 2


def test_only_what_did_not_land_is_withdrawn(ledger: Ledger) -> None:
    for number in (0, 1):
        ledger.intend(batch(number), NOW, "me")
    ledger.record(batch(1).id, "", 1, NOW, "me", "submitted")
    for number in (0, 1):
        ledger.withdraw(batch(number).id, NOW, "me", "no")
    assert [b.id for b in ledger.batches()] == [batch(1).id]


def test_jobs_and_how_far_was_read_come_together(ledger: Ledger) -> None:
    ledger.intend(batch(), NOW, "me")
    ledger.apply(
        [job(index=2), job(index=0, state=State.HELD, reason="it's \u4f60")], Cursor({"/log": 10, "/other": 5})
    )
    ledger.apply([job(index=2, state=State.ENDED, starts=2)], Cursor({"/log": 20}))
    assert ledger.cursor().offsets == {"/log": 20, "/other": 5}
    assert ledger.job(batch().id, 2) == job(index=2, state=State.ENDED, starts=2)
    assert ledger.job(batch().id, 1) is None
    assert ledger.counts() == {batch().id: {State.ENDED: 1, State.HELD: 1}}
    assert [found.index for found in ledger.jobs_not_done(batch().id)] == [0, 2]


def test_what_fails_in_the_middle_did_not_happen(ledger: Ledger) -> None:
    ledger.intend(batch(), NOW, "me")

    def broken() -> Iterator[JobRecord]:
        yield job()
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        ledger.apply(broken(), Cursor({"/log": 10}))
    with pytest.raises(LedgerError, match="FOREIGN KEY"):
        ledger.apply([job(), job(number=9)], Cursor({"/log": 10}))
    assert (ledger.counts(), ledger.cursor().offsets) == ({}, {})
    ledger.apply([job()], Cursor({"/log": 10}))
    assert ledger.cursor().offsets == {"/log": 10}


# --- accepted exactly once


def done(number: int = 0) -> JobRecord:
    return job(number, state=State.DONE)


def test_of_two_good_attempts_the_first_is_accepted(ledger: Ledger) -> None:
    for number in (0, 1):  # two generations of one job
        ledger.intend(batch(number), NOW, "me")
        ledger.take_in([(done(number), report(done(number), f"g{number}.s1.aaaaaaaa", outputs=True))])
    assert [(a.attempt, a.accepted) for a in ledger.attempts("go.r0")] == [
        ("g0.s1.aaaaaaaa", True),
        ("g1.s1.aaaaaaaa", False),
    ]
    assert [a.attempt for a in ledger.accepted()] == ["g0.s1.aaaaaaaa"]
    assert [a.attempt for a in ledger.unpublished("", 9)] == ["g0.s1.aaaaaaaa"]
    assert ledger.rehearsed() == 1


def test_two_in_one_transaction_too(ledger: Ledger) -> None:
    for number in (0, 1):
        ledger.intend(batch(number), NOW, "me")
    ledger.take_in([(done(n), report(done(n), f"g{n}.s1.aaaaaaaa")) for n in (1, 0)])
    assert [a.attempt for a in ledger.accepted()] == ["g1.s1.aaaaaaaa"]


def test_a_bad_attempt_leaves_room_for_a_good_one(ledger: Ledger) -> None:
    ledger.intend(batch(), NOW, "me")
    failed = job(state=State.FAILED)
    ledger.take_in([(failed, report(failed, "g0.s1.aaaaaaaa", 1)), (job(index=1, state=State.FAILED), None)])
    assert list(ledger.accepted()) == []
    ledger.take_in([(done(), report(done(), "g0.s2.bbbbbbbb"))])
    assert [a.attempt for a in ledger.accepted()] == ["g0.s2.bbbbbbbb"]
    assert ledger.job(batch().id, 0) == done()


def test_the_same_report_again_changes_nothing(ledger: Ledger) -> None:
    ledger.intend(batch(), NOW, "me")
    for _ in range(2):
        ledger.take_in([(done(), report(done(), "g0.s1.aaaaaaaa", outputs=True))])
        ledger.published(ledger.unpublished("", 9))
    assert ledger.waiting_to_publish() == 0
    assert len(ledger.attempts("go.r0")) == 1


def test_the_file_itself_refuses_a_second_accepted_attempt(ledger: Ledger) -> None:
    ledger.intend(batch(), NOW, "me")
    ledger.take_in([(done(), report(done(), "g0.s1.aaaaaaaa"))])
    with closing(sqlite3.connect(ledger.path)) as other, pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        other.execute("INSERT INTO attempt VALUES ('go.r0', 'x', ?, 0, 0, 0, 1, 1, '{}', NULL)", (batch().id,))


# --- files


def test_a_ledger_of_a_newer_fermigrid_is_left_alone(ledger: Ledger) -> None:
    with closing(sqlite3.connect(ledger.path)) as other:
        other.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(LedgerError, match="was written by a newer fermigrid") as refused:
        open_ledger(ledger.path)
    assert refused.value.hint == "Use the fermigrid that wrote it."


def test_a_ledger_of_before_generations_goes_on(tmp_path: Path) -> None:
    """Its batches say by their plans which runs they do; what was accepted counts; of a lost plan: the whole block."""
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as old:
        for script in MIGRATIONS[:4]:
            old.executescript(script)
        old.execute("PRAGMA user_version = 4")
        asked = ("two", "i", "d", None, "{}", "/", "[]", "2027", "0.1", None, None)
        old.execute("INSERT INTO campaign VALUES (?,?,?,?,?,?,?,?,?,?,?)", asked)
        for number, (block, step, jobs) in enumerate(
            [("b0000", "clump", 3), ("b0000", "merge", 1), ("b0001", "clump", 1)]
        ):
            row = (
                f"{number}" * 32,
                block,
                step,
                0,
                "local",
                "local",
                f"two.{block}.{step}.g0",
                "x",
                jobs,
                '{"slots": 2}',
            )
            old.execute("INSERT INTO batch VALUES (?,?,?,?,?,?,?,?,?,?,'2027','2027','',7,NULL)", row)
        for index, (name, state) in enumerate(
            [("clump.r.1.c000", "done"), ("clump.r.1.c001", "failed"), ("clump.r2.c000", "done")]
        ):
            old.execute("INSERT INTO job VALUES (?,?,?,?,'2027',1,'h','','')", ("0" * 32, index, name, state))
        accepted = ("clump.r2.c000", "g0.s1.aa", "0" * 32, 2, 0, 0, 1, 1, '{"begin": 1}')
        old.execute("INSERT INTO attempt VALUES (?,?,?,?,?,?,?,?,?)", accepted)
        old.commit()
    for step, rows in (("clump", "r.1 r.1 r2"), ("merge", "r2")):
        shards = tmp_path / f"blocks/b0000/{step}.g0/plan/shards"
        shards.mkdir(parents=True)
        (shards / "s0000-x.rows").write_text("".join(f"job=j\trun={run}\tpiece=\targ=run=no\n" for run in rows.split()))
    for _ in range(2):  # once
        with closing(open_ledger(path)) as ledger:
            clump, merge, lost = ledger.batches()
            assert (clump.runs, merge.runs, lost.runs) == (("r.1", "r2"), ("r2",), None)
            assert {(b.counted, b.retired, len(b.pieces), len(b.parameters)) for b in ledger.batches()} == {
                (3, 0, 0, 0), (1, 0, 0, 0),
            }  # fmt: skip
            assert clump.options == {"slots": 2}
            assert [attempt.job for attempt in ledger.accepted()] == ["clump.r2.c000"]
            assert [job.retired for job in ledger.jobs_of(clump.id)] == [None] * 3
            assert ledger.counts()[clump.id] == {State.DONE: 2, State.FAILED: 1}
            assert (ledger.decisions(), ledger.overrides(), ledger.again()) == ([], {}, [])


def test_migrations_are_done_once(ledger: Ledger) -> None:
    for _ in range(2):
        with closing(open_ledger(ledger.path)) as again:
            assert again.campaign() == CAMPAIGN
    with closing(sqlite3.connect(ledger.path)) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("content", [b"words, not a database\n" * 100, b"SQLite format 3\0" + b"\xff" * 2000])
def test_a_file_that_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite cannot be opened"):
        open_ledger(path)


def test_no_ledger_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger at"):
        open_ledger(tmp_path / "ledger.sqlite")
    (tmp_path / "ledger.sqlite").touch()
    with closing(open_ledger(tmp_path / "ledger.sqlite")) as empty, pytest.raises(LedgerError, match="never begun"):
        empty.campaign()


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/home/me/run", False),
        ("/nfs/farm/run", True),
        ("/nfs", True),
        ("/nfsx/run", False),
        ("/nfs/farm/local/run", False),
        ("/sps/with blank/run", True),
        ("/afs/slac/run", True),
        ("/cvmfs/x", False),
        ("/mnt/run", True),
    ],
)
def test_network_file_systems_are_recognised(tmp_path: Path, path: str, network: bool) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/x /nfs nfs4 rw 0 0\n/dev/sdb /nfs/farm/local xfs rw 0 0\n"
        "fs /sps/with\\040blank gpfs rw 0 0\n"
        "AFS /afs afs rw 0 0\ncvmfs2 /cvmfs fuse ro 0 0\n/dev/sdc /mnt ext4 rw 0 0\nserver:/y /mnt nfs rw 0 0\n"
    )
    assert on_network(Path(path), mounts) is network


def test_a_link_to_a_network_file_system_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to("far")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path / 'far'} nfs4 rw 0 0\n")
    assert on_network(tmp_path / "near" / "ledger.sqlite", mounts)


# --- one writer

HOLD = """
import os, signal, sys
from pathlib import Path
from fermigrid.ledger_file import writing
with writing(Path(sys.argv[1])):
    print(os.getpid(), flush=True)
    signal.pause()
"""


def test_a_second_writer_is_told_the_pid_of_the_first_and_gets_the_lock_when_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    holder = python(HOLD, path)
    assert holder.stdout is not None
    pid = holder.stdout.readline().strip()
    try:
        with (
            pytest.raises(LedgerBusy, match=f"another fermigrid \\(process {pid}\\) is at work on {tmp_path}"),
            writing(path),
        ):
            pass
    finally:
        holder.kill()
        finish(holder)
    with writing(path):
        pass


def test_the_lock_is_given_back_after_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(RuntimeError), writing(path):
        raise RuntimeError
    with writing(path), pytest.raises(LedgerBusy), writing(path):
        pass


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    with (
        pytest.raises(LedgerError, match=r"ledger\.lock cannot be written"),
        writing(tmp_path / "absent" / "ledger.sqlite"),
    ):
        pass


# --- killed at any moment

# What is acknowledged on stdout is in the file, and at most the one thing after it.
WORK = """
import sys
from pathlib import Path
from tests.unit.test_ledger import *
ledger = create_ledger(Path(sys.argv[1]), CAMPAIGN, NOW, "me")
print("ready", flush=True)
number = 0
while True:
    jobs = [done(number), job(number, 1, State.DONE, name=f"go.x{number}")]
    jobs[0] = replace(jobs[0], name=f"go.y{number}")
    for step in (
        lambda: ledger.intend(batch(number), NOW, "me"),
        lambda: ledger.record(batch(number).id, "", number, NOW, "me", "submitted"),
        lambda: ledger.apply([replace(j, state=State.ENDED) for j in jobs], Cursor({"/log": number + 1})),
        lambda: ledger.take_in([(j, report(j, f"g0.s{n}.aaaaaaaa")) for j in jobs for n in (1, 2)]),
    ):
        step()
        print("done", flush=True)
    number += 1
"""


def kill_and_look(path: Path, after: int) -> None:
    """Kill a writer after so many things that it acknowledged, and see what the ledger has."""
    process = python(WORK, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for _ in range(after):
        assert process.stdout.readline() == "done\n"
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    finish(process)
    acknowledged = after + rest.count("done\n")
    with closing(open_ledger(path)) as ledger:
        batches = ledger.batches()
        accepted = [attempt.job for attempt in ledger.accepted()]
        steps = [
            len(batches),
            sum(b.submitted is not None for b in batches),
            ledger.cursor().offsets.get("/log", 0),
            len(accepted) // 2,
        ]
        ended = {State.DONE: 2} if steps[2] == steps[3] else {State.ENDED: 2}
        assert sum(steps) in (acknowledged, acknowledged + 1)
        assert steps == sorted(steps, reverse=True)
        assert steps[0] - steps[3] <= 1
        assert len(accepted) == len(set(accepted)) == 2 * steps[3]
        assert len(ledger.journal()) == 1 + steps[0] + steps[1]
        if steps[2]:
            assert ledger.counts()[batch(steps[2] - 1).id] == ended
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("number", range(10))
def test_kill_9_at_any_moment(tmp_path: Path, number: int) -> None:
    kill_and_look(tmp_path / "ledger.sqlite", random.Random(number).randrange(40))


@pytest.mark.drill
@pytest.mark.parametrize("number", range(300))
def test_kill_9_hundreds_of_times(tmp_path: Path, number: int) -> None:
    kill_and_look(tmp_path / "ledger.sqlite", random.Random(number).randrange(400))


# --- a full disk

FULL = """
import sys
from pathlib import Path
from tests.unit.test_ledger import *
def what_is_in(ledger):
    return ledger.counts()[batch().id]["running"], ledger.cursor().offsets["/log"]
folder = Path(sys.argv[1])
(folder / "ballast").write_bytes(b"x" * 400_000)
ledger = create_ledger(folder / "ledger.sqlite", CAMPAIGN, NOW, "me")
ledger.intend(batch(), NOW, "me")
count = 0
try:
    while count < 100_000:
        ledger.apply([job(index=count, reason="r" * 500)], Cursor({"/log": count + 1}))
        count += 1
except LedgerError as error:
    print(json.dumps([str(error), error.hint, count, *what_is_in(ledger)]))
(folder / "ballast").unlink()
ledger.apply([job(index=count)], Cursor({"/log": count + 1}))
ledger.close()
again = open_ledger(folder / "ledger.sqlite")
print(json.dumps([*what_is_in(again), *again._db.execute("PRAGMA integrity_check").fetchone()]))
"""


def test_a_full_disk_loses_nothing_and_the_work_goes_on_when_there_is_room(tmp_path: Path) -> None:
    code, out, err = finish(python(FULL, tmp_path, wrap=[*SMALL_DISK, "2m", str(tmp_path)]))
    assert code == 0, err
    (said, hint, count, rows, offset), (rows_after, offset_after, integrity) = map(json.loads, out.splitlines())
    assert "ledger.sqlite cannot be written: database or disk is full" in said
    assert hint == "Make room, then run the same command again: nothing is lost."
    assert count > 20
    assert rows == offset == count
    assert (rows_after, offset_after, integrity) == (count + 1, count + 1, "ok")


# --- packed logs


def test_packed_logs_come_back_and_packing_twice_is_harmless(tmp_path: Path) -> None:
    with closing(PackedLogs(tmp_path / "logs.sqlite")) as logs:
        for _ in range(2):
            logs.pack([("go.r0", "b", b"\xff\0text\n"), ("go.r1", "b", b"")])
        assert (logs.read("go.r0", "b"), logs.read("go.r1", "b"), logs.read("go.r2", "b")) == (
            b"\xff\0text\n",
            b"",
            None,
        )


PACK_FULL = """
import os, sys
from pathlib import Path
from fermigrid.errors import LedgerError
from fermigrid.packed_logs import PackedLogs
logs = PackedLogs(Path(sys.argv[1]) / "logs.sqlite")
logs.pack([("a", "b", b"first")])
try:
    logs.pack([(f"{n}", "b", os.urandom(100_000)) for n in range(40)])
except LedgerError as error:
    print(error)
print(logs.read("a", "b"), logs.read("0", "b"))
"""


def test_a_full_disk_packs_nothing_rather_than_a_part(tmp_path: Path) -> None:
    code, out, err = finish(python(PACK_FULL, tmp_path, wrap=[*SMALL_DISK, "1m", str(tmp_path)]))
    assert code == 0, err
    assert "disk is full" in out
    assert out.endswith("b'first' None\n")
