"""From a log and a file that came back to an accepted result under its final name; cut short anywhere, it goes on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fermigrid import backends
from fermigrid.accept import Items, accept_ended, judge, publish_accepted, publish_output
from fermigrid.errors import FermigridError
from fermigrid.find_job import find_job, read_log
from fermigrid.records import JobRecord
from fermigrid.standing import standing_of
from fermigrid.states import Seen, State
from fermigrid.watch import Following, advance, watch_once
from tests import stand_in
from tests.campaigns import SMALL, SMALL_DISK, finish, python
from tests.stand_in import Memory
from tests.unit.test_submit import campaign

GOOD, SHA = b"content", hashlib.sha256(b"content").hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "out").mkdir()
    came = tmp_path / "out" / "go.r1.0.g0.s1"
    came.write_bytes(GOOD)
    return came, tmp_path / "final" / "deep" / "r1.fit"


def publish(came: Path, final: Path) -> None:
    """The output gets the name `final`, which is in some folder beside `out`."""
    outputs = came.parent.parent
    publish_output(came, outputs, final.relative_to(outputs).as_posix(), SHA)


def test_an_output_gets_its_final_name(files: tuple[Path, Path]) -> None:
    came, final = files
    publish(came, final)
    assert final.read_bytes() == GOOD
    assert not came.exists()


def test_doing_it_again_is_harmless_at_each_point_where_it_could_have_been_cut_short(files: tuple[Path, Path]) -> None:
    came, final = files
    final.parent.mkdir(parents=True)
    publish(came, final)  # cut before the link
    os.link(final, came)
    publish(came, final)  # cut between the link and the unlink
    assert not came.exists()
    publish(came, final)  # cut before it was written down
    assert final.read_bytes() == GOOD
    assert final.stat().st_nlink == 1


def test_nothing_is_clobbered(files: tuple[Path, Path]) -> None:
    came, final = files
    final.parent.mkdir(parents=True)
    final.write_bytes(b"somebody's")
    with pytest.raises(FermigridError, match="exists with other content: move it away; the new file is"):
        publish(came, final)
    assert (final.read_bytes(), came.read_bytes()) == (b"somebody's", GOOD)


def test_the_same_content_that_is_there_already_is_enough(files: tuple[Path, Path]) -> None:
    came, final = files
    final.parent.mkdir(parents=True)
    final.write_bytes(GOOD)
    publish(came, final)
    assert not came.exists()


def test_what_is_not_what_the_job_wrote_gets_no_name(files: tuple[Path, Path]) -> None:
    came, final = files
    came.write_bytes(b"damaged")
    with pytest.raises(FermigridError, match="is not what the job wrote"):
        publish(came, final)
    assert came.exists()
    assert not final.exists()


def test_an_output_that_is_gone(files: tuple[Path, Path]) -> None:
    came, final = files
    came.unlink()
    with pytest.raises(FermigridError, match="is gone before it was published"):
        publish(came, final)


def test_a_name_that_lies_below_a_file(files: tuple[Path, Path], tmp_path: Path) -> None:
    came, final = files
    (tmp_path / "final").write_text("a file")
    with pytest.raises(FermigridError, match="cannot become"):
        publish(came, final)
    final = tmp_path / "folder"
    final.mkdir()
    with pytest.raises(FermigridError, match="cannot become"):
        publish(came, final)
    assert came.exists()


KILLED = """
import os, sys
from pathlib import Path
from fermigrid import accept
point, came, final, sha = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
def die(event, arguments):
    if event == point:
        os.kill(os.getpid(), 9)
sys.addaudithook(die)
accept.publish_output(came, final.parents[1], "deep/" + final.name, sha)
"""


@pytest.mark.parametrize("point", ["os.mkdir", "os.link", "os.remove"])
def test_killed_before_each_change_of_the_file_system(files: tuple[Path, Path], point: str) -> None:
    came, final = files
    assert finish(python(KILLED, point, came, final, SHA))[0] == -9
    publish(came, final)
    assert final.read_bytes() == GOOD
    assert not came.exists()


# --- judging


@pytest.fixture
def f(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    """A campaign of two jobs that was submitted."""
    monkeypatch.setitem(backends.BACKENDS, "local", "tests.stand_in")
    stand_in.forget()
    with campaign(tmp_path) as following:
        advance(following)
        yield following
    stand_in.forget()


def judged(f: Following, **changes: Any) -> JobRecord:
    batch = stand_in.memory.landed[0]
    stand_in.end_job(batch, 0, changes.pop("code", 0), **changes)
    record = JobRecord(batch.batch_id, 0, "go.0000", State.ENDED, "")
    return look_at(f, record)


def look_at(f: Following, record: JobRecord) -> JobRecord:
    items, batch = Items(f.folder), f.ledger.batches()[0]
    return judge(record, items.log(batch, record.index), items.declared(batch, record.index))[0]


def test_a_good_job(f: Following) -> None:
    job = judged(f)
    assert (job.state, job.reason, job.host, job.code) == (State.DONE, "", "n1", "0")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"code": 3}, "the payload ended with exit code 3"),
        ({"job": "go.0001"}, "the report in its log is of go.0001"),
        ({"batch": "f" * 32}, "the report in its log is of go.0000 in batch fff"),
        ({"to": "../../x"}, "leaves the folder of the outputs"),
        ({"exit": "0"}, "is no exit code"),
    ],
)
def test_jobs_that_are_not_good(f: Following, changes: dict[str, Any], said: str) -> None:
    job = judged(f, **changes)
    assert job.state is State.FAILED
    assert said in job.reason


def test_outputs_that_did_not_come_back_whole(f: Following) -> None:
    judged(f)
    (came,) = f.folder.path.rglob("go.0000.0.*")
    batch = f.ledger.batches()[0]
    record = JobRecord(batch.id, 0, "go.0000", State.ENDED, "")
    came.write_bytes(b"f")
    assert look_at(f, record).reason == "the output out.fit came back with 1 byte instead of 3"
    came.unlink()
    assert look_at(f, record).reason == "the output out.fit did not come back"
    came.mkdir()
    assert look_at(f, record).reason == "the output out.fit did not come back: it is a folder, no plain file"


def test_the_report_is_found_behind_megabytes_of_chatter(f: Following) -> None:
    judged(f)
    log = Items(f.folder).log(f.ledger.batches()[0], 0)
    log.write_bytes(b"chatter\n" * 500_000 + log.read_bytes())
    assert look_at(f, JobRecord(f.ledger.batches()[0].id, 0, "go.0000", State.ENDED, "")).state is State.DONE


def test_jobs_are_found_by_name_and_by_number(f: Following) -> None:
    items, batch = Items(f.folder), f.ledger.batches()[0]
    assert [items.get(batch, index)[0] for index in (0, 1)] == ["go.0000", "go.0001"]
    assert [items.find(batch, name) for name in ("go.0000", "go.0001")] == [0, 1]
    assert [items.find(batch, name) for name in ("go.000", "o.0000", "", "go.0002", "0001")] == [None] * 5


def test_logs_of_good_jobs_are_packed_and_those_of_failures_stay(f: Following) -> None:
    batch = stand_in.memory.landed[0]
    stand_in.end_job(batch, 0)
    stand_in.end_job(batch, 1, 3)
    watch_once(f)
    assert [path.name for path in f.folder.path.rglob("*.log") if path.name != "events.log"] == ["go.0001.log"]
    for name in ("go.0000", "go.0001"):
        log = read_log(find_job(f.ledger, f.folder, name)[0], f.folder)
        assert log is not None
        assert log.startswith(b"hello\n@@FERMIGRID 1 ")


def test_an_output_in_the_way_is_said_again_until_it_is_moved(f: Following) -> None:
    f.folder.outputs.mkdir()
    (f.folder.outputs / "0000.fit").write_bytes(b"in the way")
    for index in (0, 1):
        stand_in.end_job(stand_in.memory.landed[0], index)
    for _ in range(2):
        (problem,) = watch_once(f).problems
        assert problem.startswith("go.0000: ")
        assert "exists with other content" in problem
    assert f.ledger.waiting_to_publish() == 1
    assert (f.folder.outputs / "0001.fit").is_file()
    (f.folder.outputs / "0000.fit").unlink()
    assert watch_once(f).problems == ()
    assert (f.folder.outputs / "0000.fit").read_bytes() == b"fit"


def test_two_attempts_come_back_and_one_is_accepted(f: Following) -> None:
    batch, items = stand_in.memory.landed[0], Items(f.folder)
    stand_in.end_job(batch, 0, attempt="g0.s1.aaaaaaaa", content=b"first")
    watch_once(f)
    record = f.ledger.job(f.ledger.batches()[0].id, 0)
    stand_in.end_job(batch, 0, attempt="g0.s2.bbbbbbbb", content=b"second")
    second, report = judge(
        replace(record, state=State.ENDED),
        items.log(f.ledger.batches()[0], 0),
        items.declared(f.ledger.batches()[0], 0),
    )
    f.ledger.take_in([(second, report)])
    assert publish_accepted(f.ledger, f.folder, items) == []
    assert [(a.attempt, a.accepted) for a in f.ledger.attempts("go.0000")] == [
        ("g0.s1.aaaaaaaa", True),
        ("g0.s2.bbbbbbbb", False),
    ]
    assert (f.folder.outputs / "0000.fit").read_bytes() == b"first"


def test_thousands_that_ended_are_judged_in_bounded_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.BACKENDS, "local", "tests.stand_in")
    system: Memory = stand_in.forget()
    with campaign(tmp_path, SMALL.replace("count: 2", "count: 1200") + "block: 2000\n") as f:
        advance(f)
        for index in range(1200):
            stand_in.tell(system.landed[0], index, Seen.ENDED, 1)
        turn = watch_once(f)
        assert (turn.judged, turn.finished) == (1200, True)
        assert accept_ended(f.ledger, f.folder, Items(f.folder)) == (0, [])


def test_what_stands_in_the_way_of_one_output_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "local", "tests.stand_in")
    monkeypatch.setattr("fermigrid.accept.CHUNK", 2)
    system: Memory = stand_in.forget()
    with campaign(tmp_path, SMALL.replace("count: 2", "count: 7")) as f:
        advance(f)
        for index in range(7):
            stand_in.end_job(system.landed[0], index, content=b"result")
        f.folder.outputs.mkdir()
        for foreign in ("0000.fit", "0001.fit", "0004.fit"):
            (f.folder.outputs / foreign).write_bytes(b"foreign")
        turn = watch_once(f)
        assert len(turn.problems) == 3
        assert sorted(path.name for path in f.folder.outputs.iterdir() if path.read_bytes() == b"result") == [
            f"{number:04d}.fit" for number in (2, 3, 5, 6)
        ]
        standing = standing_of(f)
        assert (standing.unpublished, standing.good) == (3, False)
        (f.folder.outputs / "0001.fit").unlink()
        assert len(watch_once(f).problems) == 2


def test_a_log_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.BACKENDS, "local", "tests.stand_in")
    system: Memory = stand_in.forget()
    with campaign(tmp_path, SMALL) as f:
        advance(f)
        stand_in.tell(system.landed[0], 0, Seen.ENDED, 0)
        Items(f.folder).log(f.ledger.batches()[0], 0).mkdir()
        stand_in.end_job(system.landed[0], 1)
        turn = watch_once(f)
        assert turn.judged == 1
        assert "go.0000: its log cannot be read" in turn.problems[0]
        assert not turn.finished


FULL = """
import sys
from pathlib import Path
from fermigrid.accept import publish_output
from fermigrid.errors import FermigridError
folder = Path(sys.argv[1])
came = folder / "came"
came.write_bytes(b"content")
(folder / "ballast").write_bytes(b"")
try:
    with (folder / "ballast").open("wb") as file:
        while True:
            file.write(b"x" * 4096)
except OSError:
    pass
try:
    publish_output(came, folder, "a/b/final", sys.argv[2])
except FermigridError as error:
    print(error)
print(came.read_bytes())
"""


def test_a_full_disk_is_said_and_the_file_is_kept(tmp_path: Path) -> None:
    code, out, err = finish(python(FULL, tmp_path, SHA, wrap=[*SMALL_DISK, "1m,nr_inodes=4", str(tmp_path)]))
    assert code == 0, err
    assert "cannot become" in out
    assert "No space left on device" in out
    assert out.endswith("b'content'\n")
