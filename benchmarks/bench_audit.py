"""How fast a campaign is audited: `fermigrid audit` of a ledger with so many reports, sizes only and with all outputs
read, and its floor: the same reports from SQLite, and one `stat` for each output.

    python -m benchmarks audit          (20,000 reports)
    python -m benchmarks --full audit   (100,000 reports)
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.figures import ROOT, Figure
from fermigrid.audit_campaign import CampaignAudit, Subject
from fermigrid.ledger import open_ledger
from tests.audited import Ran, ran

CLUMPS = 100  # of a run
REQUIRED_S = 30.0  # for 100,000 reports
GROWTH = 1.5  # the most that memory may grow when the jobs are ten times as many
CAMPAIGN = """\
campaign: bench
version: 400
image: light
runs: {table: runs.csv}
steps:
  clump:
    foreach: clump
    split: {events: 20000}
    command: [/bin/true, "{run}", "{piece}"]
    inputs: {digi.root: "/data/{run}_digi.root"}
    outputs: {out.fit: "ft1/{run}/{run}_{piece}_v{version}_ft1.fit"}
"""
# What a report has besides what the audit looks at: it is as long as the worker's own.
REST = {
    "runtime": {"name": "apptainer", "version": "1.4.5", "userns": True, "overlay": "yes", "unsquash": "no"},
    "binds": [{"from": f"/sdf/group/fermi/{n}", "to": f"/afs/slac/{n}", "mode": "ro", "required": True, "result": "kept"}
              for n in range(6)],
    "phases": dict.fromkeys(("setup", "secrets", "image", "stage_in", "payload", "stage_out", "total"), 0.123),
}  # fmt: skip


def make(folder: Path, reports: int) -> None:
    """A campaign that has run, with outputs of 3 kB."""
    table = "run,events\n" + "".join(f"r{n:010d},{20000 * CLUMPS}\n" for n in range(reports // CLUMPS))
    Ran.content = lambda _, __, values: values["job"].encode().ljust(2880)  # type: ignore[assignment, method-assign]
    with ran(folder, CAMPAIGN, table, leave=frozenset(f"b{n:04d}" for n in range(10_000))) as campaign:
        db = campaign.ledger._db
        db.execute("PRAGMA synchronous = OFF")
        for block, step, runs in blocks(campaign):
            campaign.run_step(block, step, runs)
        rows = db.execute("SELECT job, attempt, report FROM attempt").fetchall()
        longer = [(json.dumps({**json.loads(report), **REST}), job, attempt) for job, attempt, report in rows]
        db.execute("BEGIN")
        db.executemany("UPDATE attempt SET report = ? WHERE job = ? AND attempt = ?", longer)
        db.execute("COMMIT")


def blocks(campaign: Ran) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    runs = campaign.assembled.runs
    for number, first in enumerate(range(0, len(runs), 500)):
        yield f"b{number:04d}", "clump", tuple(run.name for run in runs[first : first + 500])


def floor(folder: Path) -> int:
    """Every report from the database, and a `stat` of its output."""
    count = 0
    with sqlite3.connect(folder / "run/ledger.sqlite") as db:
        for (report,) in db.execute("SELECT report FROM attempt WHERE accepted = 1 ORDER BY job"):
            for output in json.loads(report)["outputs"]:
                count += Path(f"{folder}/run/outputs/{output['to']}").stat().st_size > 0
    return count


def audit(folder: Path, quick: bool) -> int:
    from fermigrid.assemble import assemble_kept
    from fermigrid.runfolder import RunFolder

    run = RunFolder(folder / "run")
    ledger = open_ledger(run.ledger)
    work = CampaignAudit(Subject(ledger, assemble_kept(run, ledger.campaign()), run.outputs), quick)
    for audited in work.runs():
        assert not audited.findings, audited.findings[0]
    ledger.close()
    return work.totals.outputs


WAYS: dict[str, Callable[[Path], int]] = {
    "floor": floor,
    "quick": lambda folder: audit(folder, True),
    "whole": lambda folder: audit(folder, False),
}
NAMES = {"quick": "audit --quick", "whole": "audit, all outputs read"}


def measure(way: str, folder: Path) -> tuple[float, float]:
    """(s, MB) in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_audit", way, str(folder)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    seconds, megabytes = said.split()
    return float(seconds), float(megabytes)


def one(way: str, folder: Path) -> None:
    begin = time.perf_counter()
    WAYS[way](folder)
    seconds = time.perf_counter() - begin
    status = Path("/proc/self/status").read_text()  # what getrusage tells begins with the memory of the parent
    print(seconds, int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024)


def figures(full: bool) -> Iterator[Figure]:
    """The audit, and its memory beside that of a tenth of the jobs."""
    reports = 100_000 if full else 20_000
    limit = REQUIRED_S * reports / 100_000
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as scratch:
        few, many = Path(scratch, "few"), Path(scratch, "many")
        make(few, reports // 10)
        make(many, reports)
        bare, _ = measure("floor", many)
        for way, name in NAMES.items():
            _, small = measure(way, few)
            took, memory = measure(way, many)
            what = f"{name}, {reports:,} reports"
            yield Figure(what, took, "s", bare, "SQLite, JSON and a stat each", limit)
            yield Figure(f"{what}: memory", memory, "MB", small, "a tenth of them", GROWTH * small)


if __name__ == "__main__":
    one(sys.argv[1], Path(sys.argv[2]))
