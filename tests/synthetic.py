"""A ledger as large as one likes: a campaign of two steps at two sites, with reports and event logs as jobs write them.

Nothing ran: the reports are made up, but deterministic, and in the ledger by its own methods.
"""

from __future__ import annotations

import json
import math
import random
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fermigrid.advance import all_work
from fermigrid.backends import Cursor
from fermigrid.ledger import Ledger
from fermigrid.plan import Assembled
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.report import Report, cause_of, parse_report
from fermigrid.retry_book import RetryBook
from fermigrid.runfolder import RunFolder
from fermigrid.split import chosen_pieces
from fermigrid.states import State
from fermigrid.submit import Hand, begin, prepare, sites_of_blocks
from tests.campaigns import SITES, assemble

BEGIN = datetime(2025, 3, 4, 5, 6, 7, tzinfo=UTC)
CAMPAIGN = """\
campaign: {name}
image: light
runs: {{table: runs.csv}}
block: {block}
steps:
  clump:
    foreach: clump
    split: {{events: 20000}}
    command: [/bin/true, "{{run}}", "{{piece}}"]
    outputs: {{out.fit: "{{run}}_{{piece}}.fit"}}
    resources: {{memory: 2 GiB, walltime: 4 h}}
  merge:
    after: [clump]
    command: [/bin/true, "{{run}}"]
    outputs: {{out.fit: "{{run}}.fit"}}
    resources: {{memory: 3 GiB, walltime: 2 h}}
sites: {{east: 70, west: 30}}
"""
SITE = """\
site: {name}
title: a site of the tests
contact: nobody
manual: https://example.org/
backend: htcondor
container: {{launch: worker}}
output: {{kind: transfer}}
"""
CHUNK = 5000


def synthetic(
    folder: Path, runs: int, clumps: int, *, name: str = "P400", block: int = 500, reports: bool = True,
    states: bool = True, done: float = 1.0,
) -> RunFolder:  # fmt: skip
    """A run folder with so many runs of so many clumps. `done`: the share of the clumps' jobs that have ended; without
    `reports` these have none; without `states` nothing happened to any job yet."""
    sites = folder / "sites"
    sites.mkdir(parents=True)
    for site in ("east", "west"):
        (sites / f"{site}.yaml").write_text(SITE.format(name=site))
    table = "run,events\n" + "".join(f"r{number:010d},{clumps * 20000}\n" for number in range(runs))
    assembled = assemble(folder, CAMPAIGN.format(name=name, block=block), table, site=None, own=[sites])
    run, hand = RunFolder(folder / "run"), Hand("me@here", lambda: BEGIN, lambda _: None)
    prepare(run)
    with closing(begin(assembled, run, None, [str(sites), str(SITES)], hand)) as ledger:
        _Writer(assembled, run, ledger, reports, done, runs * clumps).write(states)
    return run


class _Writer:
    def __init__(
        self, assembled: Assembled, run: RunFolder, ledger: Ledger, reports: bool, done: float, jobs: int
    ) -> None:
        self._assembled, self._run, self._ledger = assembled, run, ledger
        self._reports, self._done, self._jobs = reports, done, jobs
        self._random = random.Random(42)
        self._count = 0

    def write(self, states: bool) -> None:
        a = self._assembled
        for number, work in enumerate(all_work(a.campaign, a.runs, sites_of_blocks(a, None)), 1):
            step = a.campaign.steps[work.step]
            names = [
                f"{work.step}.{run.name}" + f".{piece.name}" * bool(piece.name)
                for run in work.runs
                for piece in chosen_pieces(step, run)
            ]
            batch = BatchRecord(
                f"{number:032x}", work.block, work.step, 0, work.site, "htcondor",
                f"{a.campaign.campaign}.{work.block}.{work.step}.g0", "0" * 64, len(names), {},
            )  # fmt: skip
            self._ledger.intend(batch, BEGIN, "me@here")
            self._ledger.record(batch.id, "schedd", number, BEGIN, "me@here", "submitted")
            if states:
                self._fill(replace(batch, cluster=number), names)

    def _fill(self, batch: BatchRecord, names: list[str]) -> None:
        log = self._run.event_log(batch.block)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as events:
            for start in range(0, len(names), CHUNK):
                part = [self._job(batch, start + i, name) for i, name in enumerate(names[start : start + CHUNK])]
                some = [one for one in part if one is not None]
                judged = [one for one in some if one[0].state in (State.DONE, State.FAILED)]
                self._ledger.apply((job for job, _ in some if not job.state.final), Cursor())
                if self._reports:
                    self._ledger.take_in(judged)
                    RetryBook(self._ledger).judged(job for job, _ in judged if job.state is State.FAILED)
                    events.writelines(_event(batch, job, self._random) for job, _ in judged)
                else:
                    self._ledger.apply((job for job, _ in judged), Cursor())
        self._ledger.published(self._ledger.unpublished("", 10**9))

    def _job(self, batch: BatchRecord, index: int, name: str) -> tuple[JobRecord, Report | None] | None:
        r, clump = self._random, batch.step == "clump"
        self._count += clump
        place = self._count / self._jobs
        if place > self._done:
            if place > self._done + 0.03 or not clump:
                return None
            state = State.HELD if r.random() < 0.1 else State.RUNNING
            reason = f"Error from slot1@node{r.randrange(40):03d}: no space left" if state is State.HELD else ""
            return JobRecord(batch.id, index, name, state, _text(0), 1, "slot1@node001", reason), None
        code = 0
        if r.random() < 0.02:
            code = r.choice([82, 86, 86, 3, 3, 3, 139, 91])
        node = r.randrange(12) if code in (82, 91) else r.randrange(200)
        state = State.FAILED if code else State.DONE
        begin = int(place * 9 * 86400 + 3600 * (2 + math.sin(place * 50)) + 7200 * (not clump)) + r.randrange(900)
        wall = int(r.lognormvariate(7.4 if clump else 6.2, 0.45))
        host = f"node{node:03d}.{batch.site}.example.org"
        since = _text(begin + wall)
        why = cause_of(code) if code else ""
        job = JobRecord(batch.id, index, name, state, since, 1, f"slot1@{host}", why, str(code))
        return job, self._report(batch, name, host, begin, wall, code) if self._reports else None

    def _report(self, batch: BatchRecord, name: str, host: str, begin: int, wall: int, code: int) -> Report:
        r, at = self._random, int(BEGIN.timestamp())
        rung = r.choices(["path", "cache", "http"], [90, 8, 2] if batch.site == "east" else [40, 45, 15])[0]
        image = {"path": 0.4, "cache": 3.0, "http": 45.0}[rung] * r.lognormvariate(0, 0.5)
        stage = r.lognormvariate(2.5, 0.6)
        events = 20000 if batch.step == "clump" else 2000
        data = {
            "format": 1, "job": name, "batch": batch.id, "attempt": f"g0.s1.{r.getrandbits(32):08x}", "start": 1,
            "site": batch.site, "host": host, "where": "image", "container": "worker", "rehearsal": False,
            "order": "wrapper-inside", "started_payload": code != 82,
            "image": {"name": "light", "rung": rung if code != 82 else "none", "source": "/cvmfs/fermi.test/light",
                      "sha256": f"{r.getrandbits(256):064x}", "bytes": 300_000_000 * (rung == "http"),
                      "seconds": round(image, 2), "tried": []},
            "runtime": {"name": "apptainer", "version": "1.4.5", "userns": True, "overlay": "yes", "unsquash": "no"},
            "binds": [], "cvmfs": [],
            "phases": {"setup": 0.3, "secrets": 0.1, "image": round(image, 2), "stage_in": round(stage, 2),
                       "payload": round(max(0.0, wall - image - 1.5 * stage), 2), "stage_out": round(stage / 2, 2),
                       "total": float(wall)},
            "user": round(wall * r.uniform(0.8, 0.97), 2), "system": round(wall * 0.01, 2),
            "exit": code, "payload_exit": code if code < 80 else None, "signal": None, "signals": [], "message": "",
            "inputs": [], "cores": [], "messages": [],
            "outputs": [] if code else [{"name": "out.fit", "to": f"{name}.fit", "file": f"{name}.0.x",
                        "bytes": int(r.lognormvariate(15, 0.5)), "sha256": f"{r.getrandbits(256):064x}", "result": "ours"}],
            "summary": {"events_read": str(events), "events_kept": str(events // 7)},
            "begin": at + begin, "end": at + begin + wall,
        }  # fmt: skip
        text = json.dumps(data).encode()
        return parse_report(b"@@FERMIGRID 1 %d %s\n" % (len(text), text), name, batch.id)


def _event(batch: BatchRecord, job: JobRecord, r: random.Random) -> str:
    used = int(r.lognormvariate(7.0 if batch.step == "clump" else 7.6, 0.25))
    stamp = job.since[:19].replace("T", " ")
    return f"""\
005 ({batch.cluster:03d}.{job.index:03d}.000) {stamp} Job terminated.
\t(1) Normal termination (return value {job.code})
\tPartitionable Resources :    Usage  Request Allocated
\t   Cpus                 :     0.95        1         1
\t   Disk (KB)            :   120440  4194304   4194304
\t   Memory (MB)          :  {used:7d}     2048      2048
...
"""


def _text(seconds: int) -> str:
    return (BEGIN + timedelta(seconds=seconds)).isoformat(timespec="seconds")
