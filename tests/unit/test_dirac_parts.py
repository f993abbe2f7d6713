"""Parts of the DIRAC backend that need no server: archives, the batch's file, pace, processes."""

from __future__ import annotations

import io
import os
import tarfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fermigrid.backends import JobSeen, RenderedBatch, dirac_process
from fermigrid.backends.dirac_book import Line, locked, make_book, open_book
from fermigrid.backends.dirac_flights import Flights
from fermigrid.backends.dirac_process import run
from fermigrid.backends.dirac_sandbox import pack, unpack
from fermigrid.backends.dirac_states import Known, Stage
from fermigrid.backends.dirac_transport import Unreachable
from fermigrid.errors import BackendUnavailable
from fermigrid.states import Seen

TIME = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC)


@pytest.fixture
def batch(tmp_path: Path) -> RenderedBatch:
    (tmp_path / "work").mkdir()
    return RenderedBatch("a" * 32, "small", tmp_path / "plan", tmp_path / "work", tmp_path / "log", 3)


# --- archives


def test_the_same_files_are_the_same_archive(tmp_path: Path) -> None:
    """So that a sandbox is handed in once, however often it is tried."""
    for folder in ("one", "two"):
        (tmp_path / folder / "given").mkdir(parents=True)
        (tmp_path / folder / "worker.sh").write_text("#!/bin/bash\n")
        (tmp_path / folder / "worker.sh").chmod(0o755 if folder == "one" else 0o700)
        (tmp_path / folder / "given/x").write_text("x")
    os.utime(tmp_path / "two/worker.sh", (1, 1))
    first, second = (pack([tmp_path / name / "worker.sh", tmp_path / name / "given"]) for name in ("one", "two"))
    assert first == second
    (tmp_path / "out").mkdir()
    assert unpack(io.BytesIO(first[0]), tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["worker.sh", "x"]


@pytest.mark.parametrize("data", [b"", b"no archive", b"\x28\xb5\x2f\xfdno zstd", b"\x1f\x8bno gzip"])
def test_a_damaged_archive(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match="it is damaged"):
        unpack(io.BytesIO(data), tmp_path)


def test_an_archive_that_is_cut_short(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(os.urandom(100_000))
    data, _ = pack([tmp_path / "x"])
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="it is damaged"):
        unpack(io.BytesIO(data[:50_000]), tmp_path / "out")


def test_an_archive_that_would_fill_the_disk(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.size = 5 << 30
    with pytest.raises(ValueError, match="it holds more than 4 GiB"):
        unpack(io.BytesIO(info.tobuf() + bytes(10240)), tmp_path)
    assert not (tmp_path / "x").exists()


# --- the batch's file


def line(index: int, seen: Seen = Seen.STARTED, stage: Stage = Stage.RUNNING) -> Line:
    return Line(JobSeen("a" * 32, index, seen, TIME, host="LCG.Example.org", reason="r"), Known(stage, 1, True))


def test_what_was_written_is_read(batch: RenderedBatch) -> None:
    make_book(batch, "server", [7, 8, 9]).add([line(0), line(2, Seen.ENDED, Stage.ENDED)])
    book = open_book(batch)
    assert book is not None
    assert (book.ids, book.where) == ((7, 8, 9), "server")
    assert book.known == {0: Known(Stage.RUNNING, 1, True), 2: Known(Stage.ENDED, 1, True)}
    seen, end = book.read(batch, 0, 1 << 20)
    assert seen == [line(0).seen, line(2, Seen.ENDED).seen]
    assert book.read(batch, end, 1 << 20) == ([], end)


def test_it_is_read_in_pieces(batch: RenderedBatch) -> None:
    book = make_book(batch, "server", [7, 8, 9])
    book.add(line(index) for index in (0, 1, 2))
    seen, offset = list[JobSeen](), 0
    for _ in range(3):
        some, offset = book.read(batch, offset, 10)
        assert len(some) == 1
        seen += some
    assert [one.index for one in seen] == [0, 1, 2]
    assert offset == book.size


def test_another_batch_s_file_is_none(batch: RenderedBatch) -> None:
    make_book(batch, "server", [7, 8])
    assert open_book(batch) is None


def test_a_file_made_anew_has_another_cursor(batch: RenderedBatch) -> None:
    assert make_book(batch, "server", [7, 8, 9]).key != make_book(batch, "server", [7, 8, 9]).key


def test_a_link_is_no_file(batch: RenderedBatch, tmp_path: Path) -> None:
    make_book(batch, "server", [7, 8, 9]).path.rename(tmp_path / "other")
    (batch.work_dir / "dirac.jobs").symlink_to(tmp_path / "other")
    assert open_book(batch) is None


def test_one_at_a_time(batch: RenderedBatch) -> None:
    with locked(batch, 1):
        began = time.monotonic()
        with (
            pytest.raises(BackendUnavailable, match=r"another fermigrid has been at work on it for 0\.2 s"),
            locked(batch, 0.2),
        ):
            pass
        assert time.monotonic() - began < 5
    with locked(batch, 1):
        pass


# --- pace


def fly(seconds: dict[int, float], answers: int = 200) -> int:
    """How many are under way in the end, where an answer comes every so many seconds with so many under way."""
    flights, now = Flights(8, window=5), 0.0
    for _ in range(answers):
        now += seconds[flights.now]
        flights.answered(now)
    return flights.now


def test_as_many_at_once_as_help() -> None:
    assert fly({1: 1.0, 2: 0.5, 4: 0.25, 8: 0.13}) == 8
    assert fly({1: 1.0, 2: 0.5, 4: 0.49, 8: 0.1}) == 4 or fly({1: 1.0, 2: 0.5, 4: 0.49, 8: 0.1}) == 2
    assert fly({1: 1.0, 2: 1.5, 4: 2.0, 8: 3.0}) == 1
    assert fly({1: 1.0, 2: 0.95, 4: 0.1, 8: 0.1}) <= 2


# --- processes


def test_a_command_that_is_not_here() -> None:
    with pytest.raises(Unreachable, match="is not on the PATH"):
        run(["dirac-no-such-command"], 1)


def test_a_command_s_words_and_code() -> None:
    ran = run(["sh", "-c", "echo out; echo err >&2; exit 3"], 10)
    assert (ran.code, ran.late, sorted(ran.output.split())) == (3, False, ["err", "out"])


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    began = time.monotonic()
    ran = run(["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/pid; wait"], 1)
    assert ran.late
    assert time.monotonic() - began < 10
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_command_whose_output_somebody_else_keeps_open_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirac_process, "_GRACE_S", 0.5)
    began = time.monotonic()
    ran = run(["sh", "-c", "echo begun; setsid sleep 20 & sleep 20"], 0.5)
    assert ran.late and time.monotonic() - began < 10
