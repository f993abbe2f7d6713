"""The parts of the local backend that need no process: events, the table they add up to, slots, settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.backends import Cursor, Handle, RenderedBatch, local
from fermigrid.backends.local_events import (
    HELD,
    OVER,
    RUNNING,
    WAITING,
    EventFile,
    Table,
    batch_from_text,
    batch_to_text,
    folder_of,
    last_event,
    read_all,
    read_lines,
    to_seen,
    try_lock,
)
from fermigrid.backends.local_job import Slots, read_options, remove_tree
from fermigrid.backends.local_runner import Items
from fermigrid.errors import BackendUnavailable, NotFound, SubmissionRefused
from fermigrid.states import Seen

TIME = "2025-09-30T17:32:36.000001+00:00"
STARTED = {"index": 0, "seen": "started", "time": TIME, "host": "node7", "start": 1}
ENDED = {"index": 0, "seen": "ended", "time": TIME, "host": "node7", "exit": 0}


def batch_in(folder: Path, jobs: int = 3) -> RenderedBatch:
    return RenderedBatch("a" * 32, "P.b0000.s.g0", folder / "plan", folder / "work", folder / "events.log", jobs)


def lines_of(*events: object) -> bytes:
    return "".join(json.dumps(event) + "\n" for event in events).encode()


def landed(folder: Path, *events: object, host: str | None = None) -> Handle:
    """A batch that was submitted, as its files tell."""
    batch = batch_in(folder)
    place = folder_of(batch)
    place.commands.mkdir(parents=True)
    first = {"batch": batch.batch_id, "jobs": 3, "host": host or os.uname().nodename, "time": TIME}
    place.events.write_bytes(lines_of(first, *events))
    return Handle(batch, "", 0)


# --- the event file


def test_half_a_line_stays_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events"
    whole = lines_of(STARTED)
    path.write_bytes(whole + b'{"index": 0, "se')
    first = read_lines(path, 0, 1 << 20)
    assert (first.events, first.offset, first.problems) == ((STARTED,), len(whole), ())
    path.write_bytes(whole + lines_of(ENDED))
    assert read_lines(path, first.offset, 1 << 20).events == (ENDED,)


@pytest.mark.parametrize(
    "bad", [b"\n", b"]\n", b"[1]\n", b'{"index":0}\n', b'{"index":0,"seen":"eaten","time":""}\n', b"\xff\n"]
)
def test_a_line_that_is_no_event_is_told_and_passed_over(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "events"
    path.write_bytes(lines_of(STARTED) + bad + lines_of(ENDED))
    lines = read_lines(path, 0, 1 << 20)
    assert lines.events == (STARTED, ENDED)
    assert [f"byte {len(lines_of(STARTED))}: no event" in problem for problem in lines.problems] == [True]


def test_a_file_that_became_shorter_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(lines_of(STARTED))
    lines = read_lines(path, 5000, 1 << 20)
    assert lines.events == (STARTED,)
    assert "shorter than when it was last read" in lines.problems[0]


@given(limit=st.integers(min_value=200, max_value=600), count=st.integers(min_value=0, max_value=20))
def test_reading_in_pieces_is_reading_at_once(tmp_path_factory: pytest.TempPathFactory, limit: int, count: int) -> None:
    path = tmp_path_factory.mktemp("events") / "events"
    written = [{**STARTED, "index": index} for index in range(count)]
    path.write_bytes(lines_of(*written))
    offset, found = 0, list[object]()
    while (lines := read_lines(path, offset, limit)).offset > offset:
        offset = lines.offset
        found += lines.events
    assert found == written
    assert list(read_all(path)) == written


def test_the_last_event_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.touch()
    assert last_event(path) == {}
    path.write_bytes(lines_of(*[STARTED] * 500, ENDED) + b'{"half')
    assert last_event(path) == ENDED


def test_a_new_runner_ends_the_half_line_of_the_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(lines_of(STARTED) + b'{"index": 0, "se')
    EventFile(path).append(ENDED, sync=True)
    assert read_lines(path, 0, 1 << 20).events == (STARTED, ENDED)


def test_what_an_event_says() -> None:
    seen = to_seen({**ENDED, "exit": 7}, "b" * 32)
    assert seen is not None
    assert (seen.batch_id, seen.index, seen.seen, seen.exit_code, seen.host) == ("b" * 32, 0, Seen.ENDED, 7, "node7")
    assert seen.time.isoformat() == TIME
    assert to_seen({"runner": 12, "time": TIME}, "b" * 32) is None


def test_a_batch_survives_its_file(tmp_path: Path) -> None:
    batch = RenderedBatch(
        "c" * 32, "n", tmp_path / "p", tmp_path / "w", tmp_path / "e", 5, {"slots": None, "retries": 2}
    )
    assert batch_from_text(batch_to_text(batch)) == batch


# --- the table


def test_what_events_add_up_to() -> None:
    table = Table(4)
    for event in (
        STARTED,
        {**STARTED, "index": 1},
        {**STARTED, "index": 1, "seen": "evicted", "failed": True},
        {**STARTED, "index": 1, "start": 2},
        {**STARTED, "index": 2, "seen": "held"},
        ENDED,
    ):
        table.apply(event)
    assert [table.state(index) for index in range(4)] == [OVER, RUNNING, HELD, WAITING]
    assert (table.starts, table.failures, table.over) == ({1: 2}, {1: 1}, False)
    assert [table.find(state) for state in (WAITING, RUNNING, HELD, OVER)] == [3, 1, 2, 0]


def test_a_batch_that_was_finished_and_goes_on_is_not_finished() -> None:
    table = Table(0)
    table.apply({"finished": True})
    assert (table.finished, table.over) == (True, True)
    table.apply({"runner": 5})
    assert not table.finished


# --- slots, scratch, settings


def test_slots_are_shared_by_all_who_use_the_folder(tmp_path: Path) -> None:
    one, other = Slots(tmp_path, 3), Slots(tmp_path, 3)
    first = one.take(2)
    assert first is not None
    assert (len(first), one.in_use(), other.take(2)) == (2, 2, None)
    assert other.in_use() == 2, "a vain attempt must keep nothing"
    one.give(first)
    everything = other.take(99)
    assert everything is not None
    assert len(everything) == 3
    other.give(everything)
    assert one.in_use() == 0


def test_a_slot_is_free_although_a_child_inherited_its_lock(tmp_path: Path) -> None:
    slots = Slots(tmp_path, 1)
    taken = slots.take(1)
    assert taken is not None
    inherited = os.dup(taken[0])  # as a keeper's copy after fork
    slots.give(taken)
    assert slots.in_use() == 0
    os.close(inherited)


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    held = try_lock(tmp_path / "lock")
    assert held is not None
    assert try_lock(tmp_path / "lock") is None
    os.close(held)
    again = try_lock(tmp_path / "lock")
    assert again is not None
    os.close(again)


def test_settings_that_are_not_given_have_defaults(tmp_path: Path) -> None:
    options = read_options({"scratch": str(tmp_path), "slots": None})
    assert (options.slots, options.retries, options.grace) == (len(os.sched_getaffinity(0)), 1, 20)
    assert options.scratch.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("name", "value"), [("slots", 0), ("slots", "4"), ("retries", -1), ("grace", 1.5), ("slots", True)]
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(SubmissionRefused, match=f"local: {name}: {value!r}"):
        read_options({"scratch": str(tmp_path), name: value})


def test_a_scratch_folder_that_others_can_reach_is_refused(tmp_path: Path) -> None:
    own = tmp_path / f"fermigrid-{os.getuid()}"
    own.mkdir(mode=0o755)
    with pytest.raises(SubmissionRefused, match="not a folder that belongs to you alone"):
        read_options({"scratch": str(tmp_path)})
    own.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    own.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SubmissionRefused, match="not a folder that belongs to you alone"):
        read_options({"scratch": str(tmp_path)})


def test_scratch_space_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubmissionRefused, match="no scratch space"):
        read_options({"scratch": str(tmp_path / "nowhere")})


def test_a_link_out_of_a_scratch_folder_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir(mode=0o500)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "link").symlink_to(precious)
    remove_tree(tmp_path / "job")
    assert not (tmp_path / "job").exists()
    assert precious.stat().st_mode & 0o777 == 0o500


def test_items_are_found_by_their_number(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text("".join(f"s.r{i} shard{i // 3} {i % 3 + 1}\n" for i in range(10)))
    items = Items(tmp_path / "items.txt")
    assert (items[7].index, items[7].name, items[7].shard, items[7].row) == (7, "s.r7", "shard2", "2")
    assert items[0].name == "s.r0"


# --- the Protocol, without a runner


def test_a_batch_on_another_machine_is_left_alone_and_said_to_be_there(tmp_path: Path) -> None:
    handle = landed(tmp_path, STARTED, host="elsewhere")
    observed = local.observe([handle], Cursor())
    assert [s.seen for s in observed.seen] == [Seen.STARTED]
    assert ["its jobs run on elsewhere" in problem for problem in observed.problems] == [True]
    with pytest.raises(BackendUnavailable, match="its jobs run on elsewhere"):
        local.remove([handle])


def test_a_finished_batch_gets_no_new_runner(tmp_path: Path) -> None:
    handle = landed(tmp_path, ENDED, {"finished": True, "time": TIME})
    assert local.observe([handle], Cursor()).problems == ()
    local.hold([handle])
    assert "runner" not in last_event(folder_of(handle.batch).events)


def test_a_folder_that_has_gone_is_told(tmp_path: Path) -> None:
    handle = Handle(batch_in(tmp_path), "", 0)
    assert "its events cannot be read" in local.observe([handle], Cursor()).problems[0]
    assert local.find(handle.batch) is None
    with pytest.raises(BackendUnavailable):
        local.remove([handle])


def test_another_batchs_events_are_not_taken_for_this_one(tmp_path: Path) -> None:
    handle = landed(tmp_path)
    folder_of(handle.batch).events.write_bytes(lines_of({"batch": "d" * 32, "time": TIME}))
    assert local.find(handle.batch) is None


def test_a_job_that_the_batch_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="has jobs 0 to 2, not 3"):
        local.hold([landed(tmp_path)], [3])
