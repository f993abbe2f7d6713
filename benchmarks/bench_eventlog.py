"""The event log into the ledger, as `watch` takes it in: events a second, beside reading the text and updating rows.

    python -m benchmarks eventlog          (20,000 jobs)
    python -m benchmarks --full eventlog   (100,000 jobs)

The log is that of one job of the test pool, again and again, in waves of a thousand. It ends in the middle of an event,
which is written on after a first look: in the end HTCondor's own reader (JobEventLog) must have read the same events,
and the ledger must know the end of each job.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import htcondor2

from benchmarks.bench_submit import CAMPAIGN, CLUMPS, SITE, table
from benchmarks.figures import ROOT, Figure, seconds
from fermigrid.accept import Items
from fermigrid.advance import Work
from fermigrid.eventlog import LogEvent, read_events
from fermigrid.ledger import Ledger
from fermigrid.plan import plan_batch
from fermigrid.planfolder import write_plan
from fermigrid.records import BatchRecord
from fermigrid.runfolder import RunFolder
from fermigrid.states import State
from fermigrid.submit import Hand, begin, prepare
from fermigrid.watch import Following, take_in_events
from tests.campaigns import SITES, assemble

CAPTURED = ROOT / "tests/unit/data/many-kinds.eventlog"
JOB, CLUSTER, WAVE = b"(071.000.000)", 7, 1000
STAMP = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")
NOW = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC)
LEAST = 100_000  # events a second


def events_of_a_job() -> list[bytes]:
    """What the pool's schedd wrote of one good job, from its submission to its end."""
    records = CAPTURED.read_bytes().split(b"\n...\n")
    return [record + b"\n...\n" for record in records if record[4:17] == JOB]


def write_log(log: Path, jobs: int) -> int:
    """The log of so many jobs; returns the number of events."""
    events, count = events_of_a_job(), 0
    with log.open("wb") as file:
        for wave in range(0, jobs, WAVE):
            for step, event in enumerate(events):
                for job in range(wave, min(wave + WAVE, jobs)):
                    at = NOW + timedelta(seconds=step * 60 + job // 4)
                    named = event.replace(JOB, b"(%03d.%03d.000)" % (CLUSTER, job))
                    file.write(STAMP.sub(f"{at:%Y-%m-%d %H:%M:%S}".encode(), named, count=1))
                    count += 1
    return count


def follow(folder: Path, jobs: int) -> Following:
    """A campaign of so many jobs in one batch that was sent."""
    (folder / "sites").mkdir(parents=True)
    (folder / "sites/late.yaml").write_text(SITE.format(name="late", late_above=1000))
    a = assemble(folder, CAMPAIGN, table(jobs // CLUMPS, CLUMPS), site="late", own=[folder / "sites"])
    run, hand = RunFolder(folder / "run"), Hand("me@here", lambda: NOW, lambda _: None)
    prepare(run)
    ledger = begin(a, run, "late", [str(folder / "sites"), str(SITES)], hand)
    work = Work("b0000", "clump", "late", 0, a.runs)
    place = run.batch("b0000", "clump", 0)
    place.mkdir(parents=True)
    digest = write_plan(plan_batch(a, work), place / "plan")
    batch = BatchRecord(
        "f" * 32, "b0000", "clump", 0, "late", "htcondor", "bench.b0000.clump.g0", digest, jobs, {}
    )  # fmt: skip
    ledger.intend(batch, NOW, "me@here")
    ledger.record(batch.id, "schedd", CLUSTER, NOW, "me@here", "submitted")
    return Following(ledger, run, a, "late", hand)


def split_only(log: Path) -> int:
    """The floor of every reader: the text, cut into events."""
    return len(log.read_bytes().split(b"\n...\n"))


def read_with_htcondor(log: Path) -> list[tuple[int, int, int]]:
    """(code, cluster, proc) of each event, by HTCondor's own reader."""
    with htcondor2.JobEventLog(str(log)) as events:
        return [(int(event.type), event.cluster, event.proc) for event in events.events(stop_after=0)]


def read_with_ours(log: Path) -> list[tuple[int, int, int]]:
    """The same by fermigrid's reader."""
    items, _ = read_events(log, 0, NOW)
    return [(item.code, item.cluster, item.proc) for item in items if isinstance(item, LogEvent)]


def update_rows(jobs: int, times: int) -> None:
    """What SQLite needs for as many changes of rows, whatever they say."""
    with closing(sqlite3.connect(":memory:")) as db, db:
        db.execute("CREATE TABLE job (batch TEXT, idx INTEGER, state TEXT, PRIMARY KEY (batch, idx)) WITHOUT ROWID")
        change = "INSERT INTO job VALUES ('b', ?, ?) ON CONFLICT (batch, idx) DO UPDATE SET state = excluded.state"
        for number in range(times):
            db.executemany(change, ((job, str(number)) for job in range(jobs)))


def figures(full: bool) -> Iterator[Figure]:
    """Events a second."""
    jobs = 100_000 if full else 20_000
    with tempfile.TemporaryDirectory() as name:
        f = follow(Path(name) / "c", jobs)
        with closing(f.ledger):
            log = f.folder.event_log("b0000")
            events = write_log(log, jobs)
            took = _take_in(f, log)
            _agree(f.ledger, log, jobs, events)
        floor = events / min(seconds(lambda: split_only(log)) for _ in range(3))
        reader = events / min(seconds(lambda: read_with_ours(log)) for _ in range(2))
        oracle = events / seconds(lambda: read_with_htcondor(log))
        updates = 2 * jobs / seconds(lambda: update_rows(jobs, 2))
    yield Figure(f"event log to ledger, {events:,} events", events / took, "/s", floor, "the text cut", LEAST)
    yield Figure("the reader alone", reader, "/s", oracle, "HTCondor's JobEventLog", LEAST)
    yield Figure("SQLite: rows changed", updates, "/s")


def _take_in(f: Following, log: Path) -> float:
    """All events into the ledger, in two looks, the first of which finds the log half-written; wall s."""
    whole = log.read_bytes()
    half = len(whole) // 2 + 7
    log.write_bytes(whole[:half])
    took = seconds(lambda: take_in_events(f, Items(f.folder), []))
    with log.open("ab") as file:
        file.write(whole[half:])
    del whole
    return took + seconds(lambda: take_in_events(f, Items(f.folder), []))


def _agree(ledger: Ledger, log: Path, jobs: int, events: int) -> None:
    counts = ledger.counts()["f" * 32]
    if counts != {State.ENDED: jobs}:
        raise SystemExit(f"the ledger does not know the end of {jobs} jobs: {counts}")
    if not read_with_ours(log) == read_with_htcondor(log) or split_only(log) - 1 != events:
        raise SystemExit("fermigrid and HTCondor read other events in the same log")
