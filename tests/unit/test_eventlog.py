"""The event log reader on captured and on damaged logs, whole and in pieces."""

from __future__ import annotations

import re
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fermigrid import eventlog
from fermigrid.errors import RunFolderError
from fermigrid.eventlog import EventCode, LogEvent, LogProblem, find_clusters, mark_of, read_events

DATA = Path(__file__).parent / "data"
CAPTURED = sorted(DATA.glob("*.eventlog"))
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
STARTED = b"""001 (007.000.000) 2026-11-22 13:00:00 Job executing on host: <10.0.0.1:9618?addrs=10.0.0.1-9618>
\tSlotName: slot1_1@node
...
"""
ENDED = b"""005 (007.000.000) 2026-11-22 13:01:02 Job terminated.
\t(1) Normal termination (return value 3)
\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Remote Usage
...
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.log"


def read(log: Path, content: bytes, offset: int = 0) -> tuple[list[LogEvent | LogProblem], int]:
    log.write_bytes(content)
    return read_events(log, offset, NOW)


def one(log: Path, content: str) -> LogEvent:
    items, _ = read(log, content.encode())
    (event,) = items
    assert isinstance(event, LogEvent)
    return event


@pytest.mark.parametrize("captured", CAPTURED, ids=lambda path: path.stem)
def test_a_captured_log_is_read_whole(captured: Path) -> None:
    content = captured.read_bytes()
    items, offset = read_events(captured, 0, NOW)
    assert len(items) == content.count(b"\n...\n") > 10
    assert all(isinstance(item, LogEvent) for item in items)
    assert offset == len(content)


def offsets(content: bytes) -> Iterator[int]:
    """Every 389th byte, and those around the ends of events."""
    yield from range(0, len(content), 389)
    for end in re.finditer(rb"\n\.\.\.\n", content):
        yield from range(end.start(), end.end() + 1)


@pytest.mark.parametrize("captured", CAPTURED, ids=lambda path: path.stem)
def test_a_log_read_in_two_pieces_gives_the_same_events(captured: Path, log: Path) -> None:
    content = captured.read_bytes()
    whole, end = read_events(captured, 0, NOW)
    for cut in offsets(content):
        first, offset = read(log, content[:cut])
        rest, last = read(log, content, offset)
        assert first + rest == whole
        assert (last, content[:offset].count(b"\n...\n")) == (end, len(first))


def test_a_log_that_grows_byte_by_byte_gives_each_event_once(log: Path) -> None:
    content = (DATA / "schedd-killed.eventlog").read_bytes()
    items: list[LogEvent | LogProblem] = []
    offset = 0
    with log.open("wb", buffering=0) as file:
        for byte in content:
            file.write(bytes([byte]))
            new, offset = read_events(log, offset, NOW)
            items += new
    assert (items, offset) == read_events(DATA / "schedd-killed.eventlog", 0, NOW)


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_chunks_do_not_show(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_events(DATA / "schedd-killed.eventlog", 0, NOW)
    monkeypatch.setattr(eventlog, "_CHUNK", chunk)
    assert read_events(DATA / "schedd-killed.eventlog", 0, NOW) == whole


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_a_limit_bounds_what_comes_at_once(limit: int) -> None:
    captured = DATA / "many-kinds.eventlog"
    whole, end = read_events(captured, 0, NOW)
    items: list[LogEvent | LogProblem] = []
    offset = 0
    while offset < end:
        some, offset = read_events(captured, offset, NOW, limit)
        assert 0 < len(some) <= limit
        items += some
    assert items == whole


@pytest.mark.parametrize("captured", CAPTURED, ids=lambda path: path.stem)
def test_of_events_that_are_not_asked_for_only_damage_is_told(captured: Path, log: Path) -> None:
    torn = captured.read_bytes().replace(b"006 (", b"006 [", 1) + b"no event\n...\n"
    everything, end = read(log, torn)
    some, same_end = read_events(log, 0, NOW, codes=(EventCode.EXECUTE, EventCode.TERMINATED))
    assert some == [item for item in everything if isinstance(item, LogProblem) or item.code in (1, 5)]
    assert any(isinstance(item, LogProblem) for item in some)
    assert end == same_end


def test_a_log_that_is_not_there_has_no_events(log: Path) -> None:
    assert read_events(log, 0, NOW) == ([], 0)
    assert read_events(log, 17, NOW) == ([], 17)
    assert list(find_clusters(log, "0" * 32)) == []


def test_a_log_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=str(tmp_path)):
        read_events(tmp_path, 0, NOW)
    with pytest.raises(RunFolderError, match=str(tmp_path)):
        list(find_clusters(tmp_path, "0" * 32))


def test_a_replaced_log_is_read_from_its_beginning(log: Path) -> None:
    _, offset = read(log, STARTED + ENDED)
    items, end = read(log, ENDED, offset)
    problem, event = items
    assert isinstance(problem, LogProblem)
    assert "replaced" in problem.what
    assert isinstance(event, LogEvent)
    assert (event.code, end) == (5, len(ENDED))


def test_what_an_execution_says(log: Path) -> None:
    event = one(log, STARTED.decode())
    assert (event.code, event.cluster, event.proc) == (1, 7, 0)
    assert event.text == "Job executing on host: <10.0.0.1:9618?addrs=10.0.0.1-9618>"
    assert event.lines == ("\tSlotName: slot1_1@node",)
    assert event.host == "slot1_1@node"
    assert (event.normal, event.return_value, event.signal, event.reason, event.notes) == (None,) * 5
    old = one(log, "001 (007.000.000) 11/22 13:00:00 Job executing on host: <10.0.0.1:9618>\n...\n")
    assert old.host == "<10.0.0.1:9618>"


@pytest.mark.parametrize(
    ("line", "normal", "return_value", "signal"),
    [
        ("(1) Normal termination (return value 0)", True, 0, None),
        ("(1) Normal termination (return value 137)", True, 137, None),
        ("(0) Abnormal termination (signal 9)", False, None, 9),
        ("(what is this)", None, None, None),
    ],
)
def test_how_a_job_ended(
    log: Path, line: str, normal: bool | None, return_value: int | None, signal: int | None
) -> None:
    event = one(log, f"005 (1.2.000) 2026-11-22 13:00:00 Job terminated.\n\t{line}\n...\n")
    assert (event.normal, event.return_value, event.signal) == (normal, return_value, signal)
    assert event.host is None


@pytest.mark.parametrize(
    ("record", "reason", "code", "subcode"),
    [
        (
            "012 {} Job was held.\n\tCode 5: all is lost (really)\n\tCode 21 Subcode -7",
            "Code 5: all is lost (really)",
            21,
            -7,
        ),
        ("012 {} Job was held.\n\tReason unspecified\n\tCode 1 Subcode 0", None, 1, 0),
        ("012 {} Job was held.", None, None, None),
        ("013 {} Job was released.\n\tlunch is over", "lunch is over", None, None),
        ("013 {} Job was released.", None, None, None),
        ("009 {} Job was aborted.\n\tvia condor_rm (by user fermi)", "via condor_rm (by user fermi)", None, None),
        ("004 {} Job was evicted. Code 1022 Subcode 0\n\t(0) CPU times\n\tReason: vacated", "vacated", 1022, 0),
        ("004 {} Job was evicted.\n\t(0) Job was not checkpointed.", None, None, None),
        ("021 {} Error from starter on slot1@node:\n\tno image\n\tCode 45 Subcode -1000", "no image", 45, -1000),
        ("022 {} Job disconnected, attempting to reconnect\n    Socket closed", "Socket closed", None, None),
        ("999 {} Something new\n\tin words", None, None, None),
    ],
)
def test_reasons_and_codes(log: Path, record: str, reason: str | None, code: int | None, subcode: int | None) -> None:
    event = one(log, record.format("(007.003.000) 2026-11-22 13:00:00") + "\n...\n")
    assert (event.reason, event.hold_code, event.hold_subcode) == (reason, code, subcode)
    assert event.hold_reason == (reason if event.code == EventCode.HELD else None)
    assert event.code == int(record[:3])


@pytest.mark.parametrize(
    ("line", "measured"),
    [
        ("Memory (MB)          :        5      128       128 ", {"Memory (MB)": 5}),
        ("Disk (KB)            :    17     1048576   1048576 ", {"Disk (KB)": 17}),
        ("Memory (MB)          :               128       128 ", {}),  # nobody measured it: what was asked for is no use
        ("Cpus                 :        0        1         1 ", {}),
    ],
)
def test_what_was_measured_of_a_job(log: Path, line: str, measured: dict[str, int]) -> None:
    head = "005 (012.000.000) 2027-03-04 05:06:07 Job terminated.\n\t(1) Normal termination (return value 0)\n"
    assert (
        one(log, f"{head}\tPartitionable Resources :    Usage  Request Allocated \n\t   {line}\n...\n").measured
        == measured
    )
    assert one(log, f"004 (012.000.000) 2027-03-04 05:06:07 Job was evicted.\n\t   {line}\n...\n").measured == {}


def test_notes_of_submissions() -> None:
    items, _ = read_events(DATA / "many-kinds.eventlog", 0, NOW)
    events = [item for item in items if isinstance(item, LogEvent)]
    notes = {event.notes for event in events if event.code in (0, 35)}
    assert f"fermigrid batch={5:032x}" in notes
    (cluster_event,) = [event for event in events if event.code == EventCode.CLUSTER_SUBMIT]
    assert cluster_event.proc == -1
    assert all(event.notes is None for event in events if event.code not in (0, 35))


@pytest.mark.parametrize(
    ("stamp", "now", "expected"),
    [
        ("2026-11-22 13:01:02", NOW, datetime(2026, 11, 22, 12, 1, 2, tzinfo=UTC)),
        ("2026-07-22 13:01:02", NOW, datetime(2026, 7, 22, 11, 1, 2, tzinfo=UTC)),
        ("2026-11-22 13:01:02Z", NOW, datetime(2026, 11, 22, 13, 1, 2, tzinfo=UTC)),
        ("2026-11-22 13:01:02.250Z", NOW, datetime(2026, 11, 22, 13, 1, 2, 250000, tzinfo=UTC)),
        ("11/22 13:01:02", NOW, datetime(2026, 11, 22, 12, 1, 2, tzinfo=UTC)),
        ("11/24 10:00:00", NOW, datetime(2026, 11, 24, 9, 0, 0, tzinfo=UTC)),
        ("12/31 23:59:59", NOW, datetime(2025, 12, 31, 22, 59, 59, tzinfo=UTC)),
        ("12/31 23:59:59", datetime(2027, 1, 1, tzinfo=UTC), datetime(2026, 12, 31, 22, 59, 59, tzinfo=UTC)),
        ("02/29 12:00:00", NOW, datetime(2024, 2, 29, 11, 0, 0, tzinfo=UTC)),
    ],
)
def test_stamps_are_local_time_unless_they_say_otherwise(
    log: Path, monkeypatch: pytest.MonkeyPatch, stamp: str, now: datetime, expected: datetime
) -> None:
    log.write_text(f"013 (007.003.000) {stamp} Job was released.\n...\n")
    with monkeypatch.context() as context:
        context.setenv("TZ", "Europe/Paris")
        time.tzset()
        eventlog._parse_stamp.cache_clear()
        (event,), _ = read_events(log, 0, now)
    time.tzset()
    eventlog._parse_stamp.cache_clear()
    assert isinstance(event, LogEvent)
    assert event.time == expected
    assert event.text == "Job was released."


@pytest.mark.parametrize("stamp", ["2026-13-01 00:00:00", "2026-02-30 00:00:00", "13/01 00:00:00", "11/22 25:00:00"])
def test_times_that_are_none_are_problems(log: Path, stamp: str) -> None:
    bad = f"013 (007.003.000) {stamp} Job was released.\n...\n".encode()
    items, offset = read(log, STARTED + bad + ENDED)
    assert [type(item) for item in items] == [LogEvent, LogProblem, LogEvent]
    assert items[1] == LogProblem(len(STARTED), len(STARTED + bad), f"no such time: {stamp}")
    assert offset == len(STARTED + bad + ENDED)


@pytest.mark.parametrize("stamp", [b"2026-11-22 13:00:00", b"2026-11-22 13:00:00.250Z", b"11/22 13:00:00"])
def test_a_record_torn_at_any_byte_costs_only_itself(log: Path, stamp: bytes) -> None:
    torn = STARTED.replace(b"2026-11-22 13:00:00", stamp)
    for cut in range(1, len(torn)):
        items, offset = read(log, ENDED + torn[:cut] + ENDED)
        first, problem, last = items
        assert isinstance(first, LogEvent)
        assert isinstance(problem, LogProblem)
        assert (problem.start, problem.end) == (len(ENDED), len(ENDED) + cut)
        assert first == last
        assert offset == 2 * len(ENDED) + cut


@pytest.mark.parametrize("nuls", [1, 512, 3 << 20])
def test_nuls_of_a_crash_are_skipped(log: Path, nuls: int) -> None:
    items, offset = read(log, STARTED + bytes(nuls) + ENDED + STARTED)
    events = [item.code for item in items if isinstance(item, LogEvent)]
    problems = [item for item in items if isinstance(item, LogProblem)]
    assert events == [1, 5, 1]
    assert problems[0].start == len(STARTED)
    assert problems[-1].end == len(STARTED) + nuls
    assert len(problems) <= 2
    assert offset == 2 * len(STARTED) + nuls + len(ENDED)


def test_nuls_within_an_event_are_a_problem(log: Path) -> None:
    items, _ = read(log, ENDED.replace(b"Remote", bytes(6)) + STARTED)
    assert [type(item) for item in items] == [LogProblem, LogEvent]


def test_a_damaged_end_waits_for_more(log: Path) -> None:
    items, offset = read(log, STARTED + bytes(100))
    assert (len(items), offset) == (1, len(STARTED))


def test_a_second_terminator_is_a_problem_not_an_event(log: Path) -> None:
    items, _ = read(log, STARTED + b"...\n" + ENDED)
    assert [type(item) for item in items] == [LogEvent, LogProblem, LogEvent]


def test_bytes_that_are_no_utf8_do_not_stop_it(log: Path) -> None:
    items, _ = read(
        log, b"012 (007.000.000) 2026-11-22 13:00:00 Job was held.\n\tbad \xff byte\n\tCode 1 Subcode 0\n...\n"
    )
    (event,) = items
    assert isinstance(event, LogEvent)
    assert event.hold_reason == "bad \ufffd byte"


pieces = st.one_of(
    st.sampled_from([STARTED, ENDED, b"...\n", b"\n...\n", STARTED[:40], ENDED[:60], bytes(9), b"(.000) "]),
    st.binary(max_size=60),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(parts=st.lists(pieces, max_size=12), cut=st.integers(0, 400))
def test_no_content_makes_it_raise_or_loop(log: Path, parts: list[bytes], cut: int) -> None:
    content = b"".join(parts) + b"\n...\n" + ENDED
    items, offset = read(log, content)
    assert offset == len(content)
    last = items[-1]
    assert isinstance(last, LogEvent)
    assert last.return_value == 3
    for item in items:
        if isinstance(item, LogProblem):
            assert 0 <= item.start <= item.end <= len(content)
        else:
            assert (item.host, item.reason, item.signal, item.hold_code) is not None
    first, middle = read(log, content[:cut])
    rest, _ = read(log, content, middle)
    assert [item for item in first + rest if isinstance(item, LogEvent)] == [
        item for item in items if isinstance(item, LogEvent)
    ]


def test_memory_is_bounded_by_the_limit_not_by_the_file(log: Path) -> None:
    with log.open("wb") as file:
        for _ in range(20):
            file.write((STARTED + ENDED) * 1000)  # 20 times 0.3 MB
        file.truncate(file.tell() + (16 << 20))
        file.seek(0, 2)
        file.write(ENDED)
    tracemalloc.start()
    offset, events = 0, 0
    while True:
        items, offset = read_events(log, offset, NOW, limit=5000)
        events += sum(isinstance(item, LogEvent) for item in items)
        if not items:
            break
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert events == 40_001
    assert peak < 12 << 20


def test_find_clusters(log: Path) -> None:
    wanted, other = f"{1:032x}", f"{2:032x}"
    record = (
        "{code:03d} ({cluster:03d}.{proc}.000) 2026-11-22 13:00:00 submitted from host: <10.0.0.1:9618>\n"
        "    {notes}\n...\n"
    )
    held = f"012 (005.000.000) 2026-11-22 13:00:00 Job was held.\n\tfermigrid batch={wanted}\n\tCode 1 Subcode 0\n...\n"
    text = (
        record.format(code=0, cluster=4, proc="000", notes=f"fermigrid batch={other}")
        + held
        + record.format(code=0, cluster=5, proc="000", notes=f"fermigrid batch={wanted}0")
        + record.format(code=35, cluster=6, proc="-01", notes=f"fermigrid batch={wanted}")
        + record.format(code=0, cluster=6, proc="000", notes=f"fermigrid batch={wanted}")
        + record.format(code=0, cluster=8, proc="000", notes=f"fermigrid batch={wanted}")
        + record.format(code=0, cluster=8, proc="001", notes=f"fermigrid batch={wanted}")
    )
    log.write_text(text)
    assert list(find_clusters(log, wanted)) == [6, 8]
    assert list(find_clusters(log, other)) == [4]
    assert list(find_clusters(log, f"{3:032x}")) == []


def test_find_clusters_believes_an_event_that_is_still_being_written(log: Path) -> None:
    log.write_bytes(
        STARTED
        + f"000 (009.000.000) 11/22 13:00:00 Job submitted from host: <x>\n    fermigrid batch={7:032x}\n".encode()
    )
    assert list(find_clusters(log, f"{7:032x}")) == [9]


@pytest.mark.parametrize("captured", CAPTURED, ids=lambda path: path.stem)
def test_find_clusters_in_captured_logs(captured: Path) -> None:
    found = re.findall(r"^0(?:00|35) \((\d+)\..*\n    fermigrid batch=(\w+)", captured.read_text(), re.MULTILINE)
    assert len(found) > 1
    first = {batch: int(cluster) for cluster, batch in reversed(found)}
    assert {batch: next(find_clusters(captured, batch)) for batch in first} == first


def test_a_log_is_told_from_another_in_its_place(log: Path) -> None:
    assert mark_of(log) == 0
    log.write_bytes(STARTED[:10])
    assert mark_of(log) == 0, "its first line is being written"
    log.write_bytes(STARTED)
    mark = mark_of(log)
    assert mark
    log.write_bytes(STARTED + ENDED)
    assert mark_of(log) == mark
    log.write_bytes(ENDED + STARTED)
    assert mark_of(log) not in (0, mark)
