"""What the ledger keeps of retries: ends that were judged, how often jobs were begun again, what they need, stuck jobs.

The one user of these tables beside `ledger.py`, which calls the functions below inside its own transactions.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from fermigrid.advance import Care
from fermigrid.records import Asked, JobRecord, NodeEnds, StuckJob
from fermigrid.states import State

if TYPE_CHECKING:
    from fermigrid.ledger import Ledger

KEPT = timedelta(days=1)  # ends on nodes, before the last of them
_SAMPLE = 500
_UNJUDGED = "INDEXED BY job_unruled WHERE ruled = 0 AND state IN ('failed', 'removed', 'held') AND retired IS NULL"
_ENDED = " AND state <> 'held'"


@dataclass(frozen=True)
class Trouble:
    """A node with failures of its own within some time: how many, and how many of its jobs were good meanwhile."""

    site: str
    node: str
    bad: int
    good: int


class RetryBook:
    """The tables of retries of an open ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    # --- ends

    def unjudged(self, held: bool = True) -> list[JobRecord]:
        """The jobs that count, ended badly or are `held`, and of which it was not decided yet what becomes of them."""
        return self._ledger.select_jobs(f"{_UNJUDGED}{'' if held else _ENDED} ORDER BY batch, idx")

    def undecided(self) -> dict[str, set[str]]:
        """The names of those that ended, by batch."""
        found = defaultdict[str, set[str]](set)
        for batch, name in self._ledger.select(f"SELECT batch, name FROM job {_UNJUDGED}{_ENDED}"):
            found[batch].add(name)
        return found

    def judged(self, jobs: Iterable[JobRecord], tries: Iterable[str] = ()) -> None:
        """It is decided what becomes of these; `tries`: those of them that go on in their queue, once more."""
        with self._ledger.changing() as db:
            db.executemany("UPDATE job SET ruled = 1 WHERE batch = ? AND idx = ?", [(j.batch, j.index) for j in jobs])
            count_tries(db, tries)

    def tries(self, jobs: Sequence[str]) -> dict[str, int]:
        """How often jobs were begun again without a person's word; those that were not are left out."""
        if not jobs:
            return {}
        found: dict[str, int] = {}
        for start in range(0, len(jobs), 500):
            part = jobs[start : start + 500]
            marks = ", ".join("?" * len(part))
            found.update(self._ledger.select(f"SELECT job, times FROM tried WHERE job IN ({marks})", part))
        return found

    def care(self) -> dict[tuple[str, str], Care]:
        """(step, run) -> what its next batches need."""
        rows = self._ledger.select("SELECT step, run, memory, site FROM care")
        return {(step, run): Care(memory, site) for step, run, memory, site in rows}

    # --- people

    def ask(self, jobs: Iterable[tuple[JobRecord, str]], time: datetime, who: str) -> None:
        """These have left the queue and wait for a person, for the reason given: they are held, not failed."""
        stamp = time.isoformat(timespec="seconds")
        with self._ledger.changing() as db:
            for job, why in jobs:
                key = (job.batch, job.index)
                db.execute("UPDATE job SET state = ?, ruled = 1 WHERE batch = ? AND idx = ?", (State.HELD, *key))
                if db.execute("INSERT OR IGNORE INTO asked VALUES (?, ?, ?, ?)", (*key, stamp, why)).rowcount:
                    what = f"asks a person about {job.name}: {why}"
                    db.execute("INSERT INTO journal VALUES (?, ?, ?)", (stamp, who, what))

    def asked(self) -> list[Asked]:
        """The jobs that wait for a person outside the queue."""
        query = """SELECT a.batch, a.idx, j.name, a.since, a.why, j.reason FROM asked a JOIN job j
                   ON j.batch = a.batch AND j.idx = a.idx WHERE j.state = 'held' AND j.retired IS NULL
                   ORDER BY a.batch, a.idx"""
        return [Asked(*row) for row in self._ledger.select(query)]

    def give_up(self, jobs: Iterable[Asked], time: datetime, who: str) -> None:
        """A person does not want these any more."""
        stamp = time.isoformat(timespec="seconds")
        with self._ledger.changing() as db:
            for job in jobs:
                key = (job.batch, job.index)
                db.execute("UPDATE job SET state = 'removed', since = ? WHERE batch = ? AND idx = ?", (stamp, *key))
                db.execute("DELETE FROM asked WHERE batch = ? AND idx = ?", key)
                db.execute("INSERT INTO journal VALUES (?, ?, ?)", (stamp, who, f"gave up {job.name}: {job.why}"))

    # --- stuck jobs

    def running_before(self, since: str) -> list[JobRecord]:
        """The jobs that count, and have been running since before this time."""
        return self._ledger.select_jobs("WHERE state = 'running' AND retired IS NULL AND since < ?", (since,))

    def wall_times(self, step: str) -> list[float]:
        """How long some of the good jobs of a step took, s."""
        where = "accepted = 1 AND retired IS NULL AND job >= ? AND job < ? LIMIT ?"
        query = f"SELECT json_extract(report, '$.phases.total') FROM attempt WHERE {where}"
        rows = self._ledger.select(query, (f"{step}.", f"{step}/", _SAMPLE))
        return [float(wall) for (wall,) in rows if wall is not None]

    def looked_for_stuck(self) -> str | None:
        """When it was last looked for stuck jobs."""
        rows = self._ledger.select("SELECT looked FROM stuck_look")
        return str(rows[0][0]) if rows else None

    def keep_stuck(self, jobs: Iterable[StuckJob], time: datetime, who: str) -> None:
        """These, and no others, are stuck now."""
        stamp, found = time.isoformat(timespec="seconds"), {(job.batch, job.index): job for job in jobs}
        with self._ledger.changing() as db:
            known = {(batch, index) for batch, index in db.execute("SELECT batch, idx FROM stuck")}
            for key in known - set(found):
                db.execute("DELETE FROM stuck WHERE batch = ? AND idx = ?", key)
            for key, job in found.items():
                if key not in known:
                    what = f"{job.name} is stuck: {job.why}"
                    db.execute("INSERT INTO journal VALUES (?, ?, ?)", (stamp, who, what))
                db.execute("INSERT OR REPLACE INTO stuck VALUES (?, ?, ?)", (*key, job.why))
            db.execute("INSERT OR REPLACE INTO stuck_look VALUES (1, ?)", (stamp,))

    def stuck(self) -> list[StuckJob]:
        """The jobs that run, and do nothing."""
        query = """SELECT s.batch, s.idx, j.name, s.why, j.host FROM stuck s JOIN job j ON j.batch = s.batch
                   AND j.idx = s.idx WHERE j.state = 'running' AND j.retired IS NULL ORDER BY s.batch, s.idx"""
        return [StuckJob(*row) for row in self._ledger.select(query)]

    # --- nodes

    def troubles(self, since: datetime) -> list[Trouble]:
        """The nodes that failed since then, and since they were last banned so, the worst first."""
        query = """SELECT b.site, b.node, count(*), coalesce((SELECT sum(g.times) FROM node_good g
                   WHERE g.site = b.site AND g.node = b.node AND g.hour >= ?), 0)
                   FROM node_bad b LEFT JOIN node_banned n ON n.site = b.site AND n.node = b.node
                   WHERE b.time >= ? AND (n.time IS NULL OR b.time > n.time)
                   GROUP BY b.site, b.node ORDER BY count(*) DESC, b.site, b.node"""
        stamp = since.isoformat(timespec="seconds")
        return [Trouble(*row) for row in self._ledger.select(query, (stamp[:13], stamp))]

    def has_banned(self, trouble: Trouble, time: datetime) -> None:
        """It is banned for these failures: when a person lets it go on, it has to fail anew before it is once more."""
        with self._ledger.changing() as db:
            row = (trouble.site, trouble.node, time.isoformat(timespec="seconds"))
            db.execute("INSERT OR REPLACE INTO node_banned VALUES (?, ?, ?)", row)

    def good_nodes(self, site: str) -> int:
        """How many nodes of a site had a good job within a day."""
        return int(self._ledger.select("SELECT count(DISTINCT node) FROM node_good WHERE site = ?", (site,))[0][0])


# --- inside other transactions


def count_tries(db: sqlite3.Connection, jobs: Iterable[str]) -> None:
    """These were begun again, once more each."""
    once_more = "INSERT INTO tried VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1"
    db.executemany(once_more, [(job,) for job in jobs])


def count_nodes(db: sqlite3.Connection, ends: NodeEnds) -> None:
    """How jobs ended on nodes, good ones by the hour; what is older than a day is forgotten."""
    if not ends.good and not ends.bad:
        return
    more = "INSERT INTO node_good VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET times = times + excluded.times"
    db.executemany(more, [(*key, times) for key, times in ends.good.items()])
    db.executemany("INSERT INTO node_bad VALUES (?, ?, ?)", ends.bad)
    last = max([*(hour for hour, _, _ in ends.good), *(time[:13] for time, _, _ in ends.bad)])
    before = (datetime.fromisoformat(f"{last}:00") - KEPT).isoformat()[:13]
    db.execute("DELETE FROM node_good WHERE hour < ?", (before,))
    db.execute("DELETE FROM node_bad WHERE time < ?", (before,))


def settle_retired(
    db: sqlite3.Connection, jobs: Sequence[JobRecord], care: Mapping[tuple[str, str], Care] | None
) -> None:
    """Jobs are done again. `care`: by a rule, with what their runs need now; None: by a person, and so their tries are
    counted anew. One that waited for a person is in no queue."""
    for job in jobs:
        key = (job.batch, job.index)
        if db.execute("DELETE FROM asked WHERE batch = ? AND idx = ?", key).rowcount:
            db.execute("UPDATE job SET state = 'removed' WHERE batch = ? AND idx = ? AND state = 'held'", key)
    if care is None:
        db.executemany("DELETE FROM tried WHERE job = ?", [(job.name,) for job in jobs])
        return
    count_tries(db, (job.name for job in jobs))
    rows = [(step, run, needs.memory, needs.site) for (step, run), needs in care.items()]
    db.executemany("INSERT OR REPLACE INTO care VALUES (?, ?, ?, ?)", rows)
