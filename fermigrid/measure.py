"""What the jobs of a trial took: from their reports, and from what HTCondor measured (its event log)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fermigrid.advance import block_name, parts_of
from fermigrid.eventlog import EventCode, LogEvent, read_events
from fermigrid.gate import TRIAL, is_halted
from fermigrid.plan import Assembled
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.split import count_jobs, run_of
from fermigrid.states import State
from fermigrid.submit import begun_blocks, rendered, sites_of_blocks
from fermigrid.trial import Measured, Usage, measure
from fermigrid.watch import Following, is_finished


def measure_trial(f: Following) -> list[Measured]:
    """What the trial's jobs took, step by step."""
    usages = list(_usages(f))
    jobs = Counter[str]()
    for batch in _batches(f):
        jobs[batch.step] += batch.counted
    return list(measure(f.assembled.campaign, jobs, usages, _rest(f.assembled)))


def has_trial_ended(f: Following) -> bool:
    """Has every job of the trial come to its end, also of its later steps? True when there is none, or it is over."""
    return not is_halted(f.ledger, TRIAL) or is_finished(f)


def trial_failures(f: Following) -> list[JobRecord]:
    """The trial's jobs that failed, or that the batch system gave up."""
    ours = {batch.id for batch in _batches(f)}
    states = (State.FAILED, State.REMOVED)
    return [job for state in states for job in f.ledger.jobs_in(state) if job.batch in ours]


def shares_of_sites(f: Following) -> dict[str, float]:
    """What each site gets of the rest: 0 to 1."""
    a, found = f.assembled, dict[str, float]()
    parts = list(parts_of(a.campaign, a.runs, a.trial))[1:]
    weights = [sum(run.events if run.events is not None else 1 for run in part) for part in parts]
    for site, weight in zip(sites_of_blocks(a, f.site, begun_blocks(f.ledger))[1:], weights, strict=True):
        found[site] = found.get(site, 0.0) + weight / (sum(weights) or 1)
    return found


def output_by_site(f: Following, measured: list[Measured]) -> dict[str, float]:
    """Bytes that the rest is expected to publish, by site."""
    total = sum(one.rest_output for one in measured)
    return {site: total * share for site, share in shares_of_sites(f).items()}


def _batches(f: Following) -> list[BatchRecord]:
    return [batch for batch in f.ledger.batches() if batch.block == block_name(0)]


def _rest(a: Assembled) -> dict[str, float]:
    """Step -> the weight of all its jobs that are not of the trial: events, else runs."""
    rest = a.runs[a.trial :]
    runs = float(sum(run.events if run.events is not None else 1 for run in rest))
    return dict.fromkeys(a.campaign.steps, runs)


def _usages(f: Following) -> Iterator[Usage]:
    """The good jobs of the trial. Jobs of a later generation are asked for by their attempts: there is one accepted."""
    a = f.assembled
    runs = {run.name: run for run in a.runs[: a.trial]}
    batches = {batch.id: batch for batch in _batches(f)}
    machine = _machine(f, list(batches.values()))
    for attempt in f.ledger.accepted():
        if (batch := batches.get(attempt.batch)) is None:
            continue
        report, step = json.loads(attempt.report), a.campaign.steps[batch.step]
        run = runs[run_of(attempt.job, batch.step, step)]
        seen = machine.get((attempt.batch, attempt.index), {})
        whole = 1.0 if run.events is None else float(run.events)
        yield Usage(
            step=batch.step,
            wall=float(report["phases"]["total"]),
            cpu=float(report["user"]) + float(report["system"]),
            memory=_times(seen.get("Memory (MB)"), 2**20),
            disk=_times(seen.get("Disk (KB)"), 2**10),
            output=sum(int(output["bytes"]) for output in report["outputs"]),
            weight=whole / max(1, count_jobs(step, [run])),
        )


def _times(value: int | None, unit: int) -> int | None:
    return None if value is None else value * unit


def _machine(f: Following, batches: list[BatchRecord]) -> dict[tuple[str, int], dict[str, int]]:
    """(batch, index) -> what HTCondor measured of the job, in its own units."""
    found: dict[tuple[str, int], dict[str, int]] = {}
    logs: dict[Path, dict[int | None, str]] = {}
    for batch in batches:
        if batch.backend == "htcondor":
            logs.setdefault(rendered(f.folder, batch).event_log, {})[batch.cluster] = batch.id
    for log, clusters in logs.items():
        items, _ = read_events(log, 0, f.hand.now())
        for event in items:
            if isinstance(event, LogEvent) and event.code == EventCode.TERMINATED and event.cluster in clusters:
                found[clusters[event.cluster], event.proc] = event.measured
    return found
