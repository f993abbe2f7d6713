"""A campaign of millions: submitted in two goes, looked at, and its failures done again, on the real pool.

    python -m benchmarks watch          (2,850 runs of 107 clumps, with their merges: 307,800 jobs)
    python -m benchmarks --full watch   (28,500 runs: 3.08 million jobs)

Plans, submissions and event logs are real. No slot matches, so what happened to the jobs is written into the ledger:
all clumps ended, 1 in 61 of them badly. Floors: the rendering alone; the states counted by SQLite.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from benchmarks.bench_submit import CAMPAIGN, Bench, bench_folder, table
from benchmarks.figures import FERMIGRID, Figure, seconds
from tests.pool.conftest import pool_folder, shared_pool
from tests.pool.product import UID

CLUMPS, BLOCK = 107, 500
MERGES = """  merge:
    after: [clump]
    command: [merge.py, "{run}"]
    outputs: {out.fit: "ft1/{run}_v{version}_ft1.fit"}
sites: {east: 70, west: 30}
"""
ROW = """INSERT INTO job (batch, idx, name, state, since, starts, host, reason, code)
         VALUES (?, ?, ?, ?, '2027-03-04T05:06:07+00:00', 1, 'slot1@node', ?, ?)"""


def write_campaign(folder: Path, runs: int) -> None:
    """The model campaign of reprocessing, at two sites; few of its jobs are in the queue at a time."""
    site = (folder / "sites/late.yaml").read_text()
    few = site.replace("late_above: 1000", "late_above: 1000, max_materialize: 10, max_idle: 1")
    for name in ("east", "west"):
        (folder / f"sites/{name}.yaml").write_text(few.replace("site: late", f"site: {name}"))
    (folder / "c.yaml").write_text(CAMPAIGN.replace("block: 100000", f"block: {BLOCK}") + MERGES)
    (folder / "runs.csv").write_text(table(runs, CLUMPS))


def ended(ledger: Path) -> int:
    """Every clump has ended, in each third run some badly; returns how many."""
    failed = 0
    with closing(sqlite3.connect(ledger)) as db, db:
        for batch, block in db.execute("SELECT id, block FROM batch WHERE step = 'clump'").fetchall():
            items = ledger.parent / "blocks" / block / "clump.g0/plan/items.txt"
            names = [line.partition(" ")[0] for line in items.read_text().splitlines()]
            bad = [index // CLUMPS % 3 == 0 and index % 20 == 0 for index in range(len(names))]
            failed += sum(bad)
            states = {False: ("done", "", "0"), True: ("failed", "the payload ended with 3", "3")}
            db.executemany(ROW, ((batch, i, name, *states[bad[i]]) for i, name in enumerate(names)))
    for path in ledger.parent.glob("ledger.sqlite*"):
        os.chown(path, UID, UID)
    return failed


def count(ledger: Path) -> int:
    """How many batches were sent."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM batch WHERE submitted IS NOT NULL").fetchone()[0])
    return 0


def cut(bench: Bench, words: list[str], ledger: Path, batches: int) -> None:
    """Begin a submission, and kill it once so many batches were sent."""
    process = bench.start(*words)
    try:
        while process.poll() is None and count(ledger) < batches:
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()


def figures(full: bool) -> Iterator[Figure]:
    """Each verb as a process: time, and the memory of the largest of its processes."""
    runs = 28_500 if full else 2_850
    blocks, scale = runs // BLOCK + (runs % BLOCK > 0), runs / 28_500
    with shared_pool(pool_folder()) as pool, bench_folder(pool) as folder:
        bench, jobs = Bench(pool, folder), f"{runs * (CLUMPS + 1):,} jobs"
        write_campaign(folder, runs)
        rendered = bench.run(*FERMIGRID, "render", "c.yaml", "-s", "east", "--sites", "sites", "-o", "out")
        shutil.rmtree(folder / "out")
        yield Figure(f"plan and render, {jobs}", rendered.wall, "s", limit=60)
        yield Figure(f"plan and render, {jobs}: largest process", rendered.memory, "MB", limit=500)

        submit = [*FERMIGRID, "submit", "c.yaml", "--sites", "sites", "--run-dir", "run"]
        ledger = folder / "run/ledger.sqlite"
        cut(bench, submit, ledger, blocks // 2)
        left = blocks - count(ledger)
        on = bench.run(*submit)
        share = rendered.wall * left / blocks
        yield Figure(f"submit goes on after a kill: {left} of {blocks} blocks", on.wall, "s", share, "their plans", 60)
        yield Figure("submit goes on after a kill: largest process", on.memory, "MB", limit=500)
        failed = ended(ledger)
        floor = seconds(lambda: _states(ledger))
        watch = [*FERMIGRID, "watch", "--once", "run"]
        for what, limit in (("sends the merges of all blocks", 60), ("nothing new", 10)):
            look = bench.run(*watch, codes=(0, 1))  # 1: jobs failed
            yield Figure(
                f"watch --once, {jobs}: {what}", look.wall, "s", floor, "SQLite counts", limit * max(scale, 0.5)
            )
            yield Figure(f"watch --once, {jobs}: {what}: largest process", look.memory, "MB", limit=300)
        again = bench.run(*FERMIGRID, "retry", "run", "--step", "clump", "--yes")
        yield Figure(f"retry --step of {failed:,} failed jobs", again.wall, "s", limit=60)
        yield Figure(f"retry --step of {failed:,} failed jobs: largest process", again.memory, "MB", limit=500)
        bench.clear()


def _states(ledger: Path) -> None:
    with closing(sqlite3.connect(ledger)) as db:
        db.execute("SELECT batch, state, count(*) FROM job GROUP BY batch, state").fetchall()
