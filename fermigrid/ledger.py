"""The ledger: what was intended, submitted and seen of one campaign.

Every public method is one transaction: after a crash it happened or it did not. One writer at a time holds the lock
beside the file (`writing`); readers need none. Intents are on disk before they are acted upon (`synchronous = FULL`).
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fermigrid.advance import Care
from fermigrid.backends import Cursor
from fermigrid.breaker import Result
from fermigrid.campaign import WINDOW_MOST
from fermigrid.errors import LedgerError
from fermigrid.ledger_file import connect, fault, migrate, settle, transaction
from fermigrid.pace import Ended
from fermigrid.records import (
    AttemptRecord,
    BatchRecord,
    CampaignRecord,
    Decision,
    Halt,
    JobRecord,
    MessageRecord,
    NodeEnds,
    NodeFailures,
    Told,
    Watching,
    WatchJob,
)
from fermigrid.report import Report
from fermigrid.retry_book import count_nodes, count_tries, settle_retired
from fermigrid.states import State
from fermigrid.units import show_count

_ACCEPTED = "accepted = 1 AND retired IS NULL"
_NO_ENDS = NodeEnds()
_NONE_BEGUN: Mapping[tuple[str, int], int] = {}
PACE_KEPT = timedelta(days=2)
STARTS_KEPT_S = 600
_PAGE = 2000  # rows that are read at once of what may be millions

_STATES = {str(state): state for state in State}  # a million rows: an enumeration takes its time


class Ledger:
    """A campaign's ledger, open. Use `open_ledger` and `create_ledger`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db, self.path = connection, path
        self._counted: tuple[tuple[int, ...], dict[str, dict[State, int]]] = (), {}

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def settle_file(self) -> None:
        """Bring all that was written into the one file. Raises LedgerError when it is damaged, or being read."""
        settle(self._db, self.path)

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._db, self.path)

    def changing(self) -> AbstractContextManager[sqlite3.Connection]:
        """A transaction, for the modules that keep tables of their own in this file."""
        return self._transaction()

    def select(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Rows of such a table."""
        return self._rows(query, values)

    def select_jobs(self, where: str, values: Sequence[object] = ()) -> list[JobRecord]:
        """Jobs by a condition on such tables."""
        return self._jobs(where, values)

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise fault(self.path, "read", error) from error

    # --- campaign and journal

    def campaign(self) -> CampaignRecord:
        """What this ledger is about."""
        names = [field.name for field in fields(CampaignRecord)]
        rows = self._rows(f"SELECT {', '.join(names)} FROM campaign")
        if not rows:
            raise LedgerError(f"the ledger {self.path} is empty: its campaign was never begun")
        values = dict(zip(names, rows[0], strict=True))
        values.update(parameters=json.loads(values["parameters"]), search=tuple(json.loads(values["search"])))
        return CampaignRecord(**values)

    def note(self, time: datetime, who: str, what: str) -> None:
        """Write a line of the campaign's history."""
        with self._transaction() as db:
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, what))

    def journal(self) -> list[tuple[str, str, str]]:
        """The campaign's history: (time, who, what)."""
        return [
            (time, who, what) for time, who, what in self._rows("SELECT time, who, what FROM journal ORDER BY rowid")
        ]

    # --- batches

    def intend(self, batch: BatchRecord, time: datetime, who: str, again: Iterable[str] = ()) -> None:
        """Record that a batch is about to be sent. From here on it may be in the queue, whatever happens.

        `again`: the names of its jobs, where they may do again what was retired.
        """
        b = batch
        columns = "id, block, step, generation, site, backend, name, digest, jobs, options, intended"
        with self._transaction() as db:
            db.execute(
                f"INSERT INTO batch ({columns}, runs, pieces, parameters) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    b.id,
                    b.block,
                    b.step,
                    b.generation,
                    b.site,
                    b.backend,
                    b.name,
                    b.digest,
                    b.jobs,
                    json.dumps(b.options),
                    _text(time),
                    None if b.runs is None else json.dumps(b.runs),
                    json.dumps({run: sorted(pieces) for run, pieces in b.pieces.items()}),
                    json.dumps(dict(b.parameters)),
                ),
            )
            db.executemany(
                "UPDATE job SET successor = ? WHERE name = ? AND retired IS NOT NULL AND successor IS NULL",
                ((b.id, name) for name in again),
            )
            db.execute(
                "INSERT INTO journal VALUES (?, ?, ?)",
                (_text(time), who, f"intends {b.name}: {show_count(b.jobs, 'job')} to {b.site}"),
            )

    def record(self, batch_id: str, place: str, cluster: int, time: datetime, who: str, how: str) -> None:
        """Record that the batch system has the batch; `how` is `submitted` or `adopted`."""
        with self._transaction() as db:
            db.execute(
                "UPDATE batch SET submitted = ?, place = ?, cluster = ? WHERE id = ? AND submitted IS NULL",
                (_text(time), place, cluster, batch_id),
            )
            what = f"{how} batch {batch_id} as cluster {cluster}" + (f" at {place}" if place else "")
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, what))

    def withdraw(self, batch_id: str, time: datetime, who: str, why: str) -> None:
        """Forget an intent that is known not to have landed: the batch system said no."""
        with self._transaction() as db:
            if db.execute("DELETE FROM batch WHERE id = ? AND submitted IS NULL", (batch_id,)).rowcount:
                db.execute("UPDATE job SET successor = NULL WHERE successor = ?", (batch_id,))
            db.execute(
                "INSERT INTO journal VALUES (?, ?, ?)",
                (_text(time), who, f"withdrew batch {batch_id}: {why}"),
            )

    def remove(self, batch_id: str, time: datetime, who: str) -> None:
        """A person removed what is left of a batch: its jobs without a row will never have one."""
        with self._transaction() as db:
            db.execute("UPDATE batch SET removed = ? WHERE id = ?", (_text(time), batch_id))
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"removed batch {batch_id}"))

    def stop(self, time: datetime, who: str) -> None:
        """A person removed the campaign as a whole: nothing more of it is to be submitted."""
        with self._transaction() as db:
            db.execute("UPDATE campaign SET stopped = ? WHERE stopped IS NULL", (_text(time),))
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, "removed the campaign"))

    def go_on(self, time: datetime, who: str, why: str) -> None:
        """Take a removal of the campaign back: the batch system refused it."""
        with self._transaction() as db:
            db.execute("UPDATE campaign SET stopped = NULL")
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"the campaign goes on: {why}"))

    def batches(self) -> list[BatchRecord]:
        """All batches, in the order in which they were intended."""
        names = [field.name for field in fields(BatchRecord)][:-1]
        retired = dict(self._rows("SELECT batch, count(*) FROM job WHERE retired IS NOT NULL GROUP BY batch"))
        rows = self._rows(f"SELECT {', '.join(names)} FROM batch ORDER BY rowid")
        return [_batch(dict(zip(names, row, strict=True)), retired.get(row[0], 0)) for row in rows]

    def first_options(self, block: str) -> dict[str, Any]:
        """The backend's settings of the first batch of a block; none before there is one."""
        rows = self._rows("SELECT options FROM batch WHERE block = ? ORDER BY rowid LIMIT 1", (block,))
        return dict(json.loads(rows[0][0])) if rows else {}

    # --- jobs

    def apply(
        self,
        jobs: Iterable[JobRecord],
        cursor: Cursor,
        failures: Iterable[tuple[str, int]] = (),
        results: Sequence[Result] = (),
        again: Iterable[str] = (),
        nodes: NodeEnds = _NO_ENDS,
        begun: Mapping[tuple[str, int], int] = _NONE_BEGUN,
    ) -> None:
        """Take in what was seen, and how far it was read: all or nothing. `failures`: (host, exit code) of nodes that
        failed; `results`: jobs that the batch system gave up; `again`: jobs that it began again; `nodes`: how jobs
        ended on nodes."""
        with self._transaction() as db:
            _upsert(db, jobs)
            count_tries(db, again)
            count_nodes(db, nodes)
            _add_starts(db, begun)
            _add_results(db, results)
            once_more = "INSERT INTO node_failure VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1"
            db.executemany(once_more, failures)
            db.executemany(
                "INSERT INTO cursor VALUES (?, ?) ON CONFLICT (file) DO UPDATE SET bytes = excluded.bytes",
                cursor.offsets.items(),
            )

    def cursor(self) -> Cursor:
        """How far the event logs were read."""
        return Cursor(dict(self._rows("SELECT file, bytes FROM cursor")))

    def node_failures(self) -> list[NodeFailures]:
        """The machines on which starts failed for a reason of theirs, the worst first."""
        return [NodeFailures(*row) for row in self._rows("SELECT * FROM node_failure ORDER BY times DESC, host, code")]

    def ban(self, site: str, node: str, why: str, time: datetime, who: str) -> None:
        """Send no more jobs to a node."""
        with self._transaction() as db:
            row = (site, node, why, _text(time), who)
            if db.execute("INSERT OR IGNORE INTO banned VALUES (?, ?, ?, ?, ?)", row).rowcount:
                what = f"banned {node} of {site}: {why}"
                db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, what))

    def allow(self, site: str, node: str, time: datetime, who: str) -> None:
        """A banned node gets jobs again."""
        with self._transaction() as db:
            if db.execute("DELETE FROM banned WHERE site = ? AND node = ?", (site, node)).rowcount:
                db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"allowed {node} of {site}"))

    def banned(self, site: str) -> tuple[str, ...]:
        """The nodes of a site that get no more jobs."""
        return tuple(row[0] for row in self._rows("SELECT node FROM banned WHERE site = ? ORDER BY node", (site,)))

    def bans(self) -> list[tuple[str, str, str, str]]:
        """All of them: (site, node, why, since)."""
        return [(row[0], row[1], row[2], row[3]) for row in self._rows("SELECT * FROM banned ORDER BY site, node")]

    def job(self, batch: str, index: int) -> JobRecord | None:
        """One job, or None when nothing happened to it yet."""
        rows = self._jobs("WHERE batch = ? AND idx = ?", (batch, index))
        return rows[0] if rows else None

    def jobs_at(self, batch: str, indices: Iterable[int]) -> list[JobRecord]:
        """Those of these jobs of a batch to which something happened."""
        where = "WHERE batch = ? AND idx IN (SELECT value FROM json_each(?))"
        return self._jobs(where, (batch, json.dumps(list(indices))))

    def jobs_in(self, state: State) -> list[JobRecord]:
        """The jobs in one state that count, by batch and index."""
        return self._jobs("WHERE state = ? AND retired IS NULL ORDER BY batch, idx", (state,))

    def ended(self, limit: int, after: tuple[str, int] = ("", -1)) -> list[JobRecord]:
        """The jobs whose reports are still to be read, retired ones too, those after the job (batch, index)."""
        where = "WHERE state = 'ended' AND (batch, idx) > (?, ?) ORDER BY batch, idx LIMIT ?"
        return self._jobs(where, (*after, limit))

    def holds(self) -> list[tuple[str, int, str]]:
        """Why jobs are held now: (reason, number of jobs, the first of them)."""
        held = "FROM job WHERE state = 'held' AND retired IS NULL GROUP BY reason"
        query = f"SELECT reason, count(*), min(name) {held} ORDER BY min(name)"
        return [(reason, count, first) for reason, count, first in self._rows(query)]

    def jobs_named(self, name: str) -> list[JobRecord]:
        """A job in each batch in which something happened to it."""
        return self._jobs("WHERE name = ?", (name,))

    def jobs_not_done(self, batch: str) -> list[JobRecord]:
        """The jobs of a batch that have a row, count, and are not done."""
        others = ", ".join(f"'{state}'" for state in State if state is not State.DONE)
        where = f"WHERE batch = ? AND state IN ({others}) AND retired IS NULL ORDER BY idx"
        return self._jobs(f"INDEXED BY job_state {where}", (batch,))

    def not_done(self, batch: str) -> list[tuple[str, State]]:
        """The names and states of the same jobs."""
        others = ", ".join(f"'{state}'" for state in State if state is not State.DONE)
        where = f"INDEXED BY job_state WHERE batch = ? AND state IN ({others}) AND retired IS NULL"
        return [(name, _STATES[state]) for name, state in self._rows(f"SELECT name, state FROM job {where}", (batch,))]

    def jobs_of(self, batch: str) -> list[JobRecord]:
        """The jobs of a batch that have a row, retired ones too."""
        return self._jobs("WHERE batch = ? ORDER BY idx", (batch,))

    def _jobs(self, where: str, values: Sequence[object]) -> list[JobRecord]:
        columns = "batch, idx, name, state, since, starts, host, reason, code, retired, successor"
        rows = self._rows(f"SELECT {columns} FROM job {where}", values)
        return [JobRecord(r[0], r[1], r[2], _STATES[r[3]], *r[4:]) for r in rows]

    def counts(self) -> dict[str, dict[State, int]]:
        """Batch id -> state -> number of jobs that count; those without a row are not in it.

        Millions of jobs are counted in some tenths of a second: once for each change of the ledger.
        """
        change = (*self._rows("PRAGMA data_version")[0], self._db.total_changes)  # by others, and by this connection
        if self._counted[0] != change:
            self._counted = change, self._count()
        return self._counted[1]

    def _count(self) -> dict[str, dict[State, int]]:
        found: dict[str, dict[State, int]] = {}
        for batch, state, count in self._rows("SELECT batch, state, count(*) FROM job GROUP BY batch, state"):
            found.setdefault(batch, {})[State(state)] = count
        for batch, state, count in self._retired_counts():  # fewer, and so the query above needs nothing but an index
            found[batch][State(state)] -= count
        return found

    def _retired_counts(self) -> list[tuple[Any, ...]]:
        return self._rows("SELECT batch, state, count(*) FROM job WHERE retired IS NOT NULL GROUP BY batch, state")

    # --- generations

    def decide(
        self,
        kind: str,
        why: str,
        jobs: Iterable[JobRecord],
        overrides: Mapping[tuple[str, str], Mapping[str, str]],
        time: datetime,
        who: str,
        care: Mapping[tuple[str, str], Care] | None = None,
    ) -> int:
        """Record that these jobs do not count any more and are done again; returns the decision's number.

        `overrides`: (step, run) -> what replaces the campaign's parameters from now on; `care`: by a rule, with what
        those of which it says more need now. The decision is to be finished.
        """
        jobs = list(jobs)
        with self._transaction() as db:
            insert = "INSERT INTO decision (time, who, kind, why) VALUES (?, ?, ?, ?)"
            number = int(db.execute(insert, (_text(time), who, kind, why)).lastrowid or 0)
            for job in jobs:
                _upsert(db, (job,))
                key = (number, job.batch, job.index)
                db.execute("UPDATE job SET retired = ?, successor = NULL WHERE batch = ? AND idx = ?", key)
                change = "UPDATE attempt SET retired = ? WHERE batch = ? AND job = ? AND retired IS NULL"
                db.execute(change, (number, job.batch, job.name))
            settle_retired(db, jobs, care)
            db.executemany(
                "INSERT OR REPLACE INTO override VALUES (?, ?, ?, ?)",
                [(step, run, json.dumps(dict(values)), number) for (step, run), values in overrides.items()],
            )
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"{kind} {number}: {why}"))
            return number

    def decisions(self) -> list[Decision]:
        """What was done again, the oldest first."""
        rows = self._rows("SELECT id, time, who, kind, why, finished FROM decision ORDER BY id")
        return [Decision(*row) for row in rows]

    def finish(self, decision: int, time: datetime, who: str, what: str) -> None:
        """Nothing of what a decision retired is in the way any more."""
        with self._transaction() as db:
            db.execute("UPDATE decision SET finished = ? WHERE id = ?", (_text(time), decision))
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"finished {decision}: {what}"))

    def overrides(self) -> dict[tuple[str, str], dict[str, str]]:
        """(step, run) -> what replaces the campaign's parameters."""
        return {(row[0], row[1]): json.loads(row[2]) for row in self._rows("SELECT * FROM override")}

    def again(self) -> list[tuple[str, str]]:
        """The jobs that are still to be sent again: (the batch that did them last, name)."""
        where = "INDEXED BY job_again WHERE retired IS NOT NULL AND successor IS NULL"
        return [(row[0], row[1]) for row in self._rows(f"SELECT batch, name FROM job {where}")]

    def retired_by(self, decision: int) -> list[JobRecord]:
        """The jobs that do not count any more by a decision."""
        return self._jobs("INDEXED BY job_retired WHERE retired = ? ORDER BY batch, idx", (decision,))

    def retired_alive(self) -> list[JobRecord]:
        """The jobs that do not count any more, and have not ended yet."""
        alive = ", ".join(f"'{state}'" for state in State if not state.final)
        return self._jobs(f"INDEXED BY job_retired WHERE retired IS NOT NULL AND state IN ({alive})", ())

    def attempts_retired_by(self, decision: int) -> list[AttemptRecord]:
        """The attempts that do not count any more by a decision."""
        return self._attempts("WHERE retired = ? ORDER BY job, attempt", (decision,))

    # --- attempts

    def take_in(self, judged: Sequence[tuple[JobRecord, Report | None]]) -> None:
        """Judged jobs with their reports: a job that is DONE has its attempt accepted if it has no accepted one yet."""
        with self._transaction() as db:
            for job, report in judged:
                if report is None:
                    continue
                good = job.state is State.DONE and job.retired is None
                published = not (good and any(output.came_back for output in report.outputs))
                values = {
                    "job": report.job,
                    "attempt": report.attempt,
                    "batch": report.batch,
                    "idx": job.index,
                    "exit": report.exit,
                    "rehearsal": report.rehearsal,
                    "good": good,
                    "published": published,
                    "report": report.data,
                    "retired": job.retired,
                }
                db.execute(
                    """INSERT INTO attempt
                       (job, attempt, batch, idx, exit, rehearsal, accepted, published, report, retired)
                       SELECT :job, :attempt, :batch, :idx, :exit, :rehearsal, :good AND NOT EXISTS
                       (SELECT 1 FROM attempt WHERE job = :job AND accepted = 1 AND retired IS NULL),
                       :published, :report, :retired
                       WHERE true ON CONFLICT DO NOTHING""",
                    values,
                )
                db.executemany(
                    "INSERT OR IGNORE INTO message VALUES (?,?,?,?,?,?,NULL,'',NULL)",
                    [(m.id, report.batch, report.job, m.kind, m.doubt, m.text) for m in report.messages],
                )
            _upsert(db, (job for job, _ in judged))
            counted = [(job.state is State.DONE, report) for job, report in judged if job.retired is None]
            _add_results(db, [Result(not good, report.rung if report else "") for good, report in counted])
            _add_produced(db, [report for good, report in counted if report and good])
            _add_pace(db, [job for job, _ in judged])

    def attempts(self, job: str) -> list[AttemptRecord]:
        """The reports of a job, in the order of its attempts."""
        return self._attempts("WHERE job = ? ORDER BY json_extract(report, '$.begin'), attempt", (job,))

    def unpublished(self, after: str, limit: int) -> list[AttemptRecord]:
        """Accepted attempts whose outputs do not have their final names yet, by job, those after the job `after`."""
        where = f"WHERE published = 0 AND {_ACCEPTED} AND job > ? ORDER BY job LIMIT ?"
        return self._attempts(where, (after, limit))

    def accepted(self) -> Iterator[AttemptRecord]:
        """The accepted attempts, by job."""
        yield from self._attempts(f"WHERE {_ACCEPTED} ORDER BY job", ())

    def accepted_of(self, step: str, run: str) -> list[AttemptRecord]:
        """The accepted attempts of a step's jobs of one run."""
        whole = f"{step}.{run}"
        found = self._attempts(f"WHERE {_ACCEPTED} AND job >= ? AND job < ? ORDER BY job", (whole, f"{whole}/"))
        return [a for a in found if a.job == whole or a.job.rpartition(".")[0] == whole]

    def rejected_of(self, step: str, run: str) -> list[AttemptRecord]:
        """The attempts of a step's jobs of one run that were good and are not accepted, or not any more."""
        whole = f"{step}.{run}"
        where = f"WHERE NOT ({_ACCEPTED}) AND exit = 0 AND job >= ? AND job < ?"
        found = self._attempts(where, (whole, f"{whole}/"))
        return [a for a in found if a.job == whole or a.job.rpartition(".")[0] == whole]

    def accepted_jobs(self) -> Iterator[str]:
        """The names of the jobs that have an accepted attempt, in their order, one by one."""
        try:
            yield from (job for (job,) in self._db.execute(f"SELECT job FROM attempt WHERE {_ACCEPTED} ORDER BY job"))
        except sqlite3.Error as error:
            raise fault(self.path, "read", error) from error

    def reports(self) -> Iterator[tuple[str, str, bool, str]]:
        """Every report that came back, by job, one by one: (job, batch, is it the job's result?, JSON)."""
        query = f"""SELECT job, attempt, batch, {_ACCEPTED}, report FROM attempt
                    WHERE (job, attempt) > (?, ?) ORDER BY job, attempt LIMIT {_PAGE}"""
        return ((job, batch, bool(ok), report) for job, _, batch, ok, report in self._paged(query, ("", "")))

    def jobs_with_reports(self) -> Iterator[tuple[JobRecord, bool, str | None]]:
        """Each job that has a row and counts, by name, once for each of its reports: (job, is it the job's result?,
        JSON); of a job without a report None."""
        query = f"""SELECT name, j.batch, idx, state, since, starts, host, reason, code, a.accepted, a.report FROM
                    (SELECT * FROM job INDEXED BY job_name WHERE retired IS NULL AND name > ?
                     ORDER BY name LIMIT {_PAGE}) j
                    LEFT JOIN (SELECT job, batch, {_ACCEPTED} AS accepted, report FROM attempt) a
                    ON a.job = j.name AND a.batch = j.batch ORDER BY name"""
        for name, batch, index, state, *rest, accepted, report in self._paged(query, ("",)):
            yield JobRecord(batch, index, name, State(state), *rest), bool(accepted), report

    def failure_reasons(self) -> Iterator[tuple[str, int, str]]:
        """Why jobs failed: (reason, number of jobs, the first of them), each reason once."""
        where = "state = 'failed' AND retired IS NULL"
        yield from self._rows(f"SELECT reason, count(*), min(name) FROM job WHERE {where} GROUP BY reason")

    def troubles(self) -> Iterator[tuple[State, str, str, int, str]]:
        """(state, batch, reason, number of jobs, one of them) of jobs that are held, removed, or failed without a
        report that says why."""
        query = """SELECT state, batch, reason, count(*), min(name) FROM job INDEXED BY job_state
                   WHERE state IN ('failed', 'removed', 'held') AND retired IS NULL AND (state <> 'failed' OR NOT EXISTS
                   (SELECT 1 FROM attempt a WHERE a.job = job.name AND a.batch = job.batch AND a.exit <> 0))
                   GROUP BY state, batch, reason"""
        return ((State(row[0]), *row[1:]) for row in self._rows(query))

    def _paged(self, query: str, key: tuple[object, ...]) -> Iterator[tuple[Any, ...]]:
        """Rows that come in the order of their first columns, from `key` on, page by page: where SQLite has no WAL, who
        reads one long answer keeps all others from writing."""
        while rows := self._rows(query, key):
            yield from rows
            key = rows[-1][: len(key)]

    def _attempts(self, where: str, values: Sequence[object]) -> list[AttemptRecord]:
        columns = "job, attempt, batch, idx, exit, accepted, published, report, retired"
        rows = self._rows(f"SELECT {columns} FROM attempt {where}", values)
        return [AttemptRecord(r[0], r[1], r[2], r[3], r[4], bool(r[5]), bool(r[6]), *r[7:]) for r in rows]

    def published(self, attempts: Iterable[AttemptRecord]) -> None:
        """Their outputs have their final names."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE attempt SET published = 1 WHERE job = ? AND attempt = ?",
                [(a.job, a.attempt) for a in attempts],
            )

    def waiting_to_publish(self) -> int:
        """How many accepted attempts have outputs without their final names."""
        return int(self._rows(f"SELECT count(*) FROM attempt WHERE published = 0 AND {_ACCEPTED}")[0][0])

    # --- messages

    def unsent_messages(self) -> list[MessageRecord]:
        """The start and end messages that are still to be sent, in the order in which they came."""
        columns = "id, batch, job, kind, doubt, text, due, reason"
        rows = self._rows(f"SELECT {columns} FROM message WHERE sent IS NULL ORDER BY rowid")
        return [MessageRecord(r[0], r[1], r[2], r[3], bool(r[4]), r[5], r[6], r[7]) for r in rows]

    def put_off(self, message: str, due: int, doubt: bool, reason: str) -> None:
        """A message is not to be sent before `due` (seconds since 1970): the last try failed, or may have succeeded."""
        with self._transaction() as db:
            db.execute("UPDATE message SET due = ?, doubt = ?, reason = ? WHERE id = ?", (due, doubt, reason, message))

    def message_sent(self, message: MessageRecord, route: str, time: datetime, who: str) -> None:
        """A message is on its way."""
        with self._transaction() as db:
            db.execute("UPDATE message SET sent = ? WHERE id = ?", (_text(time), message.id))
            what = f"sent the {message.kind} message of {message.job} by {route}"
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, what))

    # --- unattended

    def watching(self) -> Watching | None:
        """What `watch` saw last; None before it looked for the first time."""
        rows = self._rows("SELECT looked, changed, asked, silent, why, cared FROM watching")
        return Watching(*rows[0]) if rows else None

    def watched(self, now: Watching) -> None:
        """`watch` has looked."""
        with self._transaction() as db:
            values = (now.looked, now.changed, now.asked, now.silent, now.why, now.cared)
            db.execute("INSERT OR REPLACE INTO watching VALUES (1, ?, ?, ?, ?, ?, ?)", values)

    def watch_job(self) -> WatchJob | None:
        """The schedd's job that watches, or watched last; None where there never was one."""
        rows = self._rows("SELECT place, cluster, since, ended FROM watch_job")
        return WatchJob(*rows[0]) if rows else None

    def watch_begins(self, job: WatchJob, who: str) -> None:
        """This job watches from now on."""
        known = self.watch_job()
        if known and (known.place, known.cluster, known.ended) == (job.place, job.cluster, None):
            return
        with self._transaction() as db:
            values = (job.place, job.cluster, job.since)
            db.execute("INSERT OR REPLACE INTO watch_job VALUES (1, ?, ?, ?, NULL)", values)
            what = f"watched by job {job.cluster} of {job.place}"
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (job.since, who, what))

    def watch_ends(self, time: datetime, who: str) -> None:
        """The job that watched does so no more."""
        with self._transaction() as db:
            if db.execute("UPDATE watch_job SET ended = ? WHERE ended IS NULL", (_text(time),)).rowcount:
                db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, "the job that watched has ended"))

    def halts(self) -> list[Halt]:
        """Why nothing more is sent, the oldest reason first."""
        return [Halt(*row) for row in self._rows("SELECT kind, since, why FROM halt ORDER BY since, kind")]

    def halt(self, kind: str, why: str, time: datetime, who: str) -> None:
        """Send nothing more until `lift`. One that is there stays, with its time and its words."""
        with self._transaction() as db:
            if db.execute("INSERT OR IGNORE INTO halt VALUES (?, ?, ?)", (kind, _text(time), why)).rowcount:
                db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"stopped ({kind}): {why}"))

    def lift(self, kind: str, time: datetime, who: str, why: str) -> None:
        """Go on; the circuit breaker's window begins anew."""
        with self._transaction() as db:
            if db.execute("DELETE FROM halt WHERE kind = ?", (kind,)).rowcount:
                db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"goes on ({kind}): {why}"))
            if kind == "breaker":
                db.execute("DELETE FROM result")

    def paused(self) -> set[str]:
        """The batches whose waiting jobs were kept from starting."""
        return {batch for (batch,) in self._rows("SELECT batch FROM paused")}

    def pause(self, batch: str) -> None:
        """Its waiting jobs are about to be kept from starting."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO paused VALUES (?)", (batch,))

    def unpause(self, batch: str) -> None:
        """Its jobs may start again."""
        with self._transaction() as db:
            db.execute("DELETE FROM paused WHERE batch = ?", (batch,))

    def doubtful(self) -> list[tuple[str, str]]:
        """The batches of which nobody knows whether they landed: name, since when."""
        return [(row[0], row[1]) for row in self._rows("SELECT name, intended FROM batch WHERE submitted IS NULL")]

    def held_reasons(self) -> dict[str, int]:
        """Why jobs are held -> how many, the most frequent first."""
        held = "FROM job WHERE state = 'held' AND retired IS NULL GROUP BY reason"
        query = f"SELECT reason, count(*) {held} ORDER BY count(*) DESC, reason"
        return {reason: int(count) for reason, count in self._rows(query)}

    def results(self, most: int) -> list[Result]:
        """The last jobs that ended, the newest first."""
        rows = self._rows("SELECT failed, rung FROM result ORDER BY id DESC LIMIT ?", (most,))
        return [Result(bool(failed), rung) for failed, rung in rows]

    def pace(self, since: datetime) -> list[Ended]:
        """How many jobs came to their end since then, minute by minute; nothing is known of more than two days ago."""
        rows = self._rows("SELECT minute, step, site, good, failed FROM pace WHERE minute >= ?", (_text(since)[:16],))
        return [Ended(*row) for row in rows]

    def produced(self) -> dict[str, tuple[int, int]]:
        """Batch -> (good jobs, bytes that they published)."""
        rows = self._rows("SELECT batch, jobs, bytes FROM produced")
        return {batch: (jobs, count) for batch, jobs, count in rows}

    def trial(self) -> tuple[str, ...]:
        """The runs of the trial, which are the first block; none: there was no trial."""
        return tuple(run for (run,) in self._rows("SELECT run FROM trial ORDER BY place"))

    def begin_trial(self, runs: Sequence[str], time: datetime, who: str) -> None:
        """These runs first: the rest waits until a person has seen what became of them."""
        with self._transaction() as db:
            db.executemany("INSERT INTO trial VALUES (?, ?)", list(enumerate(runs)))
            why = f"a trial of {show_count(len(runs), 'run')} comes first"
            db.execute("INSERT INTO halt VALUES ('trial', ?, ?)", (_text(time), why))
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, f"stopped (trial): {why}"))

    def adjusted(self) -> dict[tuple[str, str], int]:
        """What was changed since the submission: (step or site, name of the resource) -> bytes or seconds."""
        return {(row[0], row[1]): int(row[2]) for row in self._rows("SELECT subject, name, value FROM adjusted")}

    def adjust(self, values: Mapping[tuple[str, str], int], time: datetime, who: str, what: str) -> None:
        """Change it, for the batches that are still to be sent."""
        with self._transaction() as db:
            rows = [(subject, name, value) for (subject, name), value in values.items()]
            db.executemany("INSERT OR REPLACE INTO adjusted VALUES (?, ?, ?)", rows)
            db.execute("INSERT INTO journal VALUES (?, ?, ?)", (_text(time), who, what))

    def told(self) -> list[Told]:
        """What a person was told, or could not be told."""
        rows = self._rows("SELECT kind, about, route, tried, told FROM alert")
        return [Told(kind, about, route, tried, bool(told)) for kind, about, route, tried, told in rows]

    def tell(self, told: Iterable[Told], over: Iterable[Told] = ()) -> None:
        """Remember what a person was told; `over` is forgotten."""
        with self._transaction() as db:
            db.executemany("DELETE FROM alert WHERE kind = ? AND about = ? AND route = ?",
                           [(t.kind, t.about, t.route) for t in over])  # fmt: skip
            rows = [(t.kind, t.about, t.route, t.tried, t.told) for t in told]
            db.executemany("INSERT OR REPLACE INTO alert VALUES (?, ?, ?, ?, ?)", rows)

    def rehearsed(self) -> int:
        """How many jobs ran without a container (site `local` on a machine without a runtime)."""
        query = "SELECT count(DISTINCT job) FROM attempt WHERE rehearsal = 1"
        return int(self._rows(query)[0][0])


def _text(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


def _batch(row: dict[str, Any], retired: int) -> BatchRecord:
    for name in ("options", "parameters"):
        row[name] = json.loads(row[name])
    row["pieces"] = {run: frozenset(pieces) for run, pieces in json.loads(row["pieces"]).items()}
    row["runs"] = None if row["runs"] is None else tuple(json.loads(row["runs"]))
    return BatchRecord(**row, retired=retired)


def _upsert(db: sqlite3.Connection, jobs: Iterable[JobRecord]) -> None:
    db.executemany(
        """INSERT INTO job (batch, idx, name, state, since, starts, host, reason, code)
           VALUES (?,?,?,?,?,?,?,?,?) ON CONFLICT (batch, idx) DO UPDATE SET state = excluded.state,
           since = excluded.since, starts = excluded.starts, host = excluded.host, reason = excluded.reason,
           code = excluded.code, ruled = ruled AND excluded.state <> 'held'""",
        ((j.batch, j.index, j.name, j.state, j.since, j.starts, j.host, j.reason, j.code) for j in jobs),
    )


def _add_results(db: sqlite3.Connection, results: Sequence[Result]) -> None:
    if results:
        rows = [(result.failed, result.rung) for result in results[-WINDOW_MOST:]]
        db.executemany("INSERT INTO result (failed, rung) VALUES (?, ?)", rows)
        db.execute("DELETE FROM result WHERE id <= (SELECT max(id) FROM result) - ?", (WINDOW_MOST,))


def _add_produced(db: sqlite3.Connection, reports: Iterable[Report]) -> None:
    total: dict[str, list[int]] = {}
    for report in reports:
        counted = total.setdefault(report.batch, [0, 0])
        counted[0] += 1
        counted[1] += sum(output.bytes for output in report.outputs)
    db.executemany(
        """INSERT INTO produced VALUES (?, ?, ?) ON CONFLICT (batch) DO UPDATE
           SET jobs = jobs + excluded.jobs, bytes = bytes + excluded.bytes""",
        [(batch, jobs, count) for batch, (jobs, count) in total.items()],
    )


def _add_starts(db: sqlite3.Connection, begun: Mapping[tuple[str, int], int]) -> None:
    """Jobs began: (batch, s since 1970) -> how many. What is older than some minutes is forgotten."""
    last = max((time for _, time in begun), default=0)
    rows = [(batch, time, times) for (batch, time), times in begun.items() if time > last - STARTS_KEPT_S]
    more = "INSERT INTO begun VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET times = times + excluded.times"
    db.executemany(more, rows)
    if rows:
        db.execute("DELETE FROM begun WHERE time <= ?", (last - STARTS_KEPT_S,))


def _add_pace(db: sqlite3.Connection, jobs: Sequence[JobRecord]) -> None:
    stamped = [job for job in jobs if job.since]
    if not stamped:
        return
    counted = Counter((job.since[:16], job.batch, job.state is State.DONE) for job in stamped)
    db.executemany(
        """INSERT INTO pace SELECT ?, step, site, ?, ? FROM batch WHERE id = ? ON CONFLICT (minute, step, site)
           DO UPDATE SET good = good + excluded.good, failed = failed + excluded.failed""",
        [(at, times * good, times * (not good), batch) for (at, batch, good), times in counted.items()],
    )
    before = datetime.fromisoformat(max(job.since for job in stamped)) - PACE_KEPT
    db.execute("DELETE FROM pace WHERE minute < ?", (_text(before)[:16],))


def create_ledger(path: Path, campaign: CampaignRecord, time: datetime, who: str) -> Ledger:
    """A new ledger for a campaign, whole in its one file when this returns, so that it can be renamed."""
    ledger = _open(path, wal=False)
    c = campaign
    with ledger._transaction() as db:
        db.execute(
            "INSERT INTO campaign VALUES (?,?,?,?,?,?,?,?,?,NULL,?)",
            (
                c.name,
                c.instance,
                c.digest,
                c.site,
                json.dumps(c.parameters),
                c.folder,
                json.dumps(c.search),
                c.created,
                c.version,
                c.team,
            ),
        )
        db.execute(
            "INSERT INTO journal VALUES (?, ?, ?)",
            (_text(time), who, f"began campaign {c.name} with fermigrid {c.version}"),
        )
    return ledger


def open_ledger(path: Path) -> Ledger:
    """The ledger of a run folder. Raises LedgerError when there is none, or it is of a newer version."""
    if not path.is_file():
        raise LedgerError(f"no ledger at {path}")
    return _open(path)


def _open(path: Path, wal: bool = True) -> Ledger:
    """The ledger in this file, made if there is none, its tables brought up to date."""
    db = connect(path, wal)
    try:
        migrate(db, path)
    except LedgerError:
        db.close()
        raise
    return Ledger(db, path)
