"""The summary of a campaign, read from its ledger and event logs, one attempt after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import groupby
from pathlib import Path

from fermigrid.attempt import PHASES, Attempt, attempt_of, gist
from fermigrid.eventlog import EventCode, LogEvent, read_events
from fermigrid.histogram import Histogram
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.retrying import coming_back
from fermigrid.split import count_jobs, run_of
from fermigrid.standing import standing_of
from fermigrid.states import State
from fermigrid.submit import rendered
from fermigrid.summary import Failure, Summary, Tally
from fermigrid.watch import Following

_DAY = 86400
_AT_ONCE = 20_000  # events
MEMORY = "memory.json"  # in an archive
_WHAT = {State.FAILED: "no result", State.REMOVED: "removed", State.HELD: "held"}


def summarize(f: Following) -> Summary:
    """Read all reports of a campaign; memory does not grow with them. Raises LedgerError, RunFolderError."""
    record, now = f.ledger.campaign(), f.hand.now()
    created = datetime.fromisoformat(record.created)
    tally = Tally(int(created.timestamp()) - _DAY, int(now.timestamp()) + _DAY)
    batches = {batch.id: batch for batch in f.ledger.batches()}
    for attempt in attempts_of(f, batches):
        tally.add(attempt)
    for what, batch, reason, times, example in f.ledger.troubles():
        of = batches[batch]
        tally.fail(Failure(_WHAT[what], of.site, of.step, gist(reason)), example, times)
    for node in f.ledger.node_failures():
        tally.fail_node(node.host, node.code, node.times)
    for (step, site), memory in _memory(f, batches).items():
        tally.measure(step, site, memory)
    standing, steps = standing_of(f), f.assembled.campaign.steps
    jobs = {name: count_jobs(step, f.assembled.runs) for name, step in steps.items()}
    folder = str(f.folder.home or f.folder.path)
    words, *notes = standing.headline.splitlines()
    counts = tuple(standing.by_step)
    return Summary(f.assembled.campaign, folder, created, now, jobs, counts, words, standing.pace, tally, notes)


def attempts_of(f: Following, batches: Mapping[str, BatchRecord]) -> Iterator[Attempt]:
    """Each report that came back, by job."""
    steps = f.assembled.campaign.steps
    for job, batch_id, accepted, text in f.ledger.reports():
        batch = batches[batch_id]
        run = run_of(job, batch.step, steps[batch.step])
        yield attempt_of(job, batch.step, batch.site, run, accepted, json.loads(text))


def _memory(f: Following, batches: Mapping[str, BatchRecord]) -> dict[tuple[str, str], Histogram]:
    """By step and site, the most memory of each job that ended, in bytes."""
    kept = f.folder.path / MEMORY
    if f.folder.archive is None:
        return _measured_memory(f, batches)
    if not kept.is_file():
        return {}
    return {(step, site): Histogram.load(values) for step, site, values in json.loads(kept.read_bytes())}


def memory_to_keep(f: Following) -> str:
    """The same as JSON, for an archive, which has no event logs."""
    found = _measured_memory(f, {batch.id: batch for batch in f.ledger.batches()})
    return json.dumps([[step, site, memory.dump()] for (step, site), memory in sorted(found.items())])


def _measured_memory(f: Following, batches: Mapping[str, BatchRecord]) -> dict[tuple[str, str], Histogram]:
    """HTCondor writes it into the event log, and nobody else measures it."""
    found: dict[tuple[str, str], Histogram] = {}
    clusters: dict[Path, dict[int | None, BatchRecord]] = {}
    for batch in batches.values():
        if batch.backend == "htcondor":
            clusters.setdefault(rendered(f.folder, batch).event_log, {})[batch.cluster] = batch
    for log, known in clusters.items():
        for event in _terminations(f, log):
            megabytes = event.measured.get("Memory (MB)")
            if event.cluster in known and megabytes is not None:
                batch = known[event.cluster]
                found.setdefault((batch.step, batch.site), Histogram()).add(megabytes * 2**20)
    return found


def _terminations(f: Following, log: Path) -> Iterator[LogEvent]:
    offset = 0
    while True:
        items, offset = read_events(log, offset, f.hand.now(), _AT_ONCE)
        if not items:
            return
        yield from (e for e in items if isinstance(e, LogEvent) and e.code == EventCode.TERMINATED)


_TIMED = tuple(phase for phase in PHASES if phase != "image")
COLUMNS = (
    "job", "step", "run", "site", "block", "generation", "state", "since", "starts", "attempts", "host", "exit",
    "cause", "begin", "end", "wall_s", "cpu_s", "image", "image_s", *(f"{phase}_s" for phase in _TIMED),
    "output_bytes", "events_read", "events_kept",
)  # fmt: skip


def lines_of_jobs(f: Following) -> Iterator[list[object]]:
    """A line for each job to which something happened, by name; its times are those of the attempt that counts, else
    of the last."""
    batches = {batch.id: batch for batch in f.ledger.batches()}
    steps = f.assembled.campaign.steps
    back = {(one.job.batch, one.job.index) for one in coming_back(f)}
    for _, some in groupby(f.ledger.jobs_with_reports(), key=lambda row: row[0].name):
        rows = list(some)
        job = rows[-1][0]
        batch = batches[job.batch]
        run = run_of(job.name, batch.step, steps[batch.step])
        reports = [
            attempt_of(job.name, batch.step, batch.site, run, accepted, json.loads(text))
            for _, accepted, text in rows
            if text is not None
        ]
        last = max(reports, key=lambda one: (one.accepted, one.begin), default=None)
        words = [job.name, batch.step, run, batch.site, batch.block, batch.generation, str(job.state), job.since]
        if (job.batch, job.index) in back:
            words[6] = str(State.WAITING)
        cause = gist(job.reason) if job.state is not State.DONE and job.reason else ""
        yield [*words, job.starts, len(reports), *_of_report(job, last, _tame(cause))]


def _of_report(job: JobRecord, one: Attempt | None, cause: str) -> list[object]:
    if one is None:
        return [_tame(job.host), job.code, cause, *[""] * (len(COLUMNS) - 13)]
    phases = (one.phases.get(phase, 0.0) for phase in _TIMED)
    times = [one.begin, one.end, one.wall, _or_empty(one.cpu), one.rung, one.image_seconds, *phases]
    return [_tame(one.host), one.exit, cause, *times, one.output, _or_empty(one.read), _or_empty(one.kept)]


def _or_empty(value: float | None) -> object:
    return "" if value is None else value


def _tame(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@" and text else text
