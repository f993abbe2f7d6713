"""The event log reader against HTCondor's own JobEventLog, event by event, on logs of real jobs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fermigrid.eventlog import EventCode, LogEvent, find_clusters, read_events

CAPTURED = sorted((Path(__file__).parents[1] / "unit/data").glob("*.eventlog"))
LIMIT_S = 120
SCRIPT = """#!/bin/sh
case $1 in ok) sleep 1 ;; rc) exit 7 ;; signal) kill -SEGV $$ ;; long) sleep 600 ;; esac
"""
BATCH = {name: f"{number:032x}" for number, name in enumerate(("ok", "rc", "signal", "long", "factory"), 1)}


def submit(folder: Path, name: str, count: int = 1, **commands: str) -> int:
    import htcondor2

    job = {
        "executable": f"{folder}/job.sh",
        "arguments": name,
        "initialdir": str(folder),
        "should_transfer_files": "YES",
        "requirements": 'TARGET.GLIDEIN_Site == "SITEA"',
        "log": f"{folder}/events.log",
    }
    job |= {"submit_event_notes": f"fermigrid batch={BATCH[name]}"} if name in BATCH else {}
    text = "".join(f"{command} = {value}\n" for command, value in (job | commands).items())
    return int(htcondor2.Schedd().submit(htcondor2.Submit(f"{text}queue {count}\n")).cluster())


def act(action: str, cluster: int, why: str) -> None:
    import htcondor2

    # htcondor2 25.14.1 drops a reason that is not a tuple with a code.
    htcondor2.Schedd().act(htcondor2.JobAction[action], f"ClusterId == {cluster}", reason=(why, 17))


def wait_for(log: Path, code: EventCode, cluster: int, count: int = 1) -> None:
    header = re.compile(rf"^{code:03d} \(0*{cluster}\.", re.MULTILINE)
    deadline = time.monotonic() + LIMIT_S
    while not log.exists() or len(header.findall(log.read_text())) < count:
        assert time.monotonic() < deadline, f"no event {code!r} of cluster {cluster} in\n{log.read_text()}"
        time.sleep(0.1)


def record_many_kinds(folder: Path) -> Path:
    """Run jobs that end in every way, and give back their common log."""
    (folder / "job.sh").write_text(SCRIPT)
    (folder / "job.sh").chmod(0o755)
    log = folder / "events.log"
    broken = submit(folder, "ok", **{"+SingularityImage": '"/cvmfs/no/image"', "submit_event_notes": "no image"})
    long = submit(folder, "long")
    well = submit(folder, "ok", 2)
    ends = [submit(folder, "rc"), submit(folder, "signal", job_ad_information_attrs="JobStatus,Owner")]
    factory = submit(folder, "factory", 3, max_materialize="1")
    held = submit(folder, "rc", on_exit_hold="ExitCode == 7", on_exit_hold_reason='"exit code: seven"')
    missing = submit(folder, "ok", transfer_input_files="/nonexistent/file")
    wait_for(log, EventCode.EXECUTE, long)
    act("Vacate", long, "make room (please)")
    wait_for(log, EventCode.EXECUTE, long, 2)
    act("Hold", long, "Code 5 Subcode 6: out for lunch, back at 13:30")
    wait_for(log, EventCode.HELD, long)
    act("Release", long, "lunch is over")
    wait_for(log, EventCode.EXECUTE, long, 3)
    act("Remove", long, "not needed any more, thanks")
    wait_for(log, EventCode.EVICTED, broken)
    for cluster in (held, missing, broken):
        act("Remove", cluster, "cleaning up")
    for cluster in (long, held, missing, broken):
        wait_for(log, EventCode.ABORTED, cluster)
    for cluster, count in ((well, 2), *((cluster, 1) for cluster in ends)):
        wait_for(log, EventCode.TERMINATED, cluster, count)
    wait_for(log, EventCode.CLUSTER_REMOVE, factory)
    return log


def ours(log: Path) -> list[LogEvent]:
    # JobEventLog takes stamps without a year for this year's, even when they lie ahead.
    end_of_year = datetime(datetime.now(UTC).year, 12, 31, 23, 59, tzinfo=UTC)
    items, offset = read_events(log, 0, end_of_year)
    assert offset == log.stat().st_size
    return [item for item in items if isinstance(item, LogEvent) or pytest.fail(str(item))]


def theirs(log: Path) -> list[Any]:
    import htcondor2

    with htcondor2.JobEventLog(str(log)) as events:
        return list(events.events(stop_after=0))


def compare(log: Path) -> set[int]:
    """Compare every event with JobEventLog's; the codes that were seen."""
    seen, expected = ours(log), theirs(log)
    assert len(seen) == len(expected)
    for event, oracle in zip(seen, expected, strict=True):
        assert (event.code, event.cluster, event.proc) == (int(oracle.type), oracle.cluster, oracle.proc)
        assert int(event.time.timestamp()) == oracle.timestamp
        compare_details(event, dict(oracle.items()))
    return {event.code for event in seen}


def compare_details(event: LogEvent, oracle: dict[str, Any]) -> None:
    codes = (event.hold_code, event.hold_subcode)
    match event.code:
        case EventCode.SUBMIT:
            assert (event.notes or "").split("\n")[0] == oracle.get("LogNotes", "")
        case EventCode.EXECUTE:
            assert event.host == oracle.get("SlotName", oracle["ExecuteHost"])
        case EventCode.TERMINATED:
            assert event.normal == oracle["TerminatedNormally"]
            assert event.return_value == oracle.get("ReturnValue")
            assert event.signal == oracle.get("TerminatedBySignal")
        case EventCode.HELD:
            assert event.hold_reason == oracle.get("HoldReason")
            assert codes == (oracle["HoldReasonCode"], oracle["HoldReasonSubCode"])
        case EventCode.EVICTED:
            assert event.reason == oracle.get("Reason")
            assert codes == (oracle["ReasonCode"], oracle.get("ReasonSubCode", 0))
        case EventCode.ABORTED | EventCode.RELEASED:
            assert event.reason == oracle.get("Reason")
        case EventCode.REMOTE_ERROR:
            assert event.reason == oracle["ErrorMsg"].strip()
            assert codes == (oracle["HoldReasonCode"], oracle["HoldReasonSubCode"])
        case EventCode.DISCONNECTED:
            assert event.reason == oracle["DisconnectReason"]
        case _:
            pass


def only(events: Iterable[LogEvent], code: EventCode) -> list[LogEvent]:
    return [event for event in events if event.code == code]


@pytest.mark.pool
@pytest.mark.usefixtures("fermi")
def test_a_live_log_reads_as_joberventlog_reads_it(job_folder: Path) -> None:
    log = record_many_kinds(job_folder)
    assert compare(log) >= {0, 1, 4, 5, 9, 12, 13, 21, 28, 35, 36, 40}
    events = ours(log)
    assert {event.return_value for event in only(events, EventCode.TERMINATED)} == {0, 7, None}
    assert {event.signal for event in only(events, EventCode.TERMINATED)} == {None, 11}
    reasons = {event.hold_reason: (event.hold_code, event.hold_subcode) for event in events}
    assert reasons["exit code: seven"] == (3, 0)
    assert reasons["Code 5 Subcode 6: out for lunch, back at 13:30 (by user fermi)"] == (1, 17)
    (factory,) = only(events, EventCode.CLUSTER_SUBMIT)  # JobEventLog does not give its notes
    assert factory.notes == f"fermigrid batch={BATCH['factory']}"
    assert list(find_clusters(log, BATCH["factory"])) == [factory.cluster]
    assert list(find_clusters(log, "f" * 32)) == []


@pytest.mark.parametrize("log", CAPTURED, ids=lambda log: log.stem)
def test_captured_logs_read_as_joberventlog_reads_them(log: Path) -> None:
    assert compare(log)


def test_there_are_captured_logs() -> None:
    assert len(CAPTURED) >= 3
