"""Plan, render and submit to the real pool, beside what is hand-written for the same jobs.

    python -m benchmarks submit          (short: 100,000 jobs, and 10,000 without late materialization)
    python -m benchmarks --full submit   (1,000,000, and 100,000)

Floors: condor_submit of the finished files, which are what a person would have to write for the same jobs; of a file
with the same item data that says nothing of what is to happen when a job fails; rows into SQLite.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import FERMIGRID, ROOT, Cost, Figure, run, seconds
from tests.pool.conftest import Pool, pool_folder, shared_pool
from tests.pool.product import AS_FERMI, UID

CLUMPS = 100  # of a run
SITE = """site: {name}
title: no slot matches
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {{requirements: 'GLIDEIN_Site == "SITEX"', late_above: {late_above}, timeout: 10 min}}
container: {{launch: worker}}
output: {{kind: transfer}}
"""
CAMPAIGN = """campaign: bench
version: 400
image: light
software: [lat-python]
block: 100000
runs: {table: runs.csv}
steps:
  clump:
    foreach: clump
    split: {events: 20000}
    command: [reprocess.py, --run, "{run}", --first, "{first_event}", --count, "{event_count}"]
    inputs: {digi.root: "root://glast-rdr.slac.stanford.edu//glast/P300/{run}_v300_digi.root"}
    outputs: {out.fit: "ft1/{run}_{piece}_v{version}_ft1.fit"}
"""
# The least that a person can write who has the worker and its files: no policies, no attributes of the campaign's.
BARE = """executable = {plan}/worker.sh
arguments  = "run $(job) $(shard) $(row) none"
initialdir = {plan}
output     = $(job).log
error      = $(job).log
log        = {folder}/by-hand.log
should_transfer_files   = YES
when_to_transfer_output = ON_EXIT
transfer_input_files    = {plan}/job.env, {plan}/shards/$(shard)
transfer_output_files   = out
request_cpus   = 1
request_memory = 2048M
request_disk   = 10485760K
requirements   = GLIDEIN_Site == "SITEX"
queue job,shard,row from {plan}/items.txt
"""


def table(runs: int, clumps: int) -> str:
    """A run table; the runs have the same number of clumps, and no two the same number of events."""
    most = clumps * 20000
    return "run,events\n" + "".join(f"r{i:010d},{most - 7919 * i % 20000}\n" for i in range(runs))


@contextmanager
def bench_folder(pool: Pool) -> Iterator[Path]:
    """A folder of the pool's user, with sites and campaign."""
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=pool.work))
    try:
        (folder / "sites").mkdir()
        for name, late_above in (("late", 1000), ("at-once", 10**7)):
            (folder / f"sites/{name}.yaml").write_text(SITE.format(name=name, late_above=late_above))
        (folder / "c.yaml").write_text(CAMPAIGN)
        shutil.copytree(pool.env["_CONDOR_SEC_TOKEN_DIRECTORY"], folder / "tokens")
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, UID, UID)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Bench:
    """The pool's user at work in a folder."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        own = {"FERMIGRID_STATE": str(folder / "state"), "HOME": str(folder), "TMPDIR": str(folder)}
        own |= {"_CONDOR_SEC_TOKEN_DIRECTORY": str(folder / "tokens")}
        self.folder, self._env = folder, {**pool.env, **own}

    def run(self, *command: str, codes: Sequence[int] = (0,)) -> Cost:
        """What a command of the pool's user costs."""
        return run(command, cwd=self.folder, env=self._env, person=AS_FERMI, codes=codes)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """The same, running."""
        env = {**os.environ, **self._env, "PYTHONPATH": str(ROOT)}
        null = subprocess.DEVNULL
        return subprocess.Popen([*AS_FERMI, *command], cwd=self.folder, env=env, stdout=null, stderr=null)

    def submit(self, name: str, jobs: int, site: str) -> Cost:
        """`fermigrid submit`, and everything removed again."""
        (self.folder / "runs.csv").write_text(table(jobs // CLUMPS, CLUMPS))
        cost = self.run(*FERMIGRID, "submit", "c.yaml", "-s", site, "--sites", "sites", "--run-dir", name)
        self.clear()
        return cost

    def condor_submit(self, text: str) -> Cost:
        (self.folder / "floor.sub").write_text(text)
        cost = self.run("condor_submit", "floor.sub")
        self.clear()
        return cost

    def clear(self) -> None:
        """Nothing is left in the queue; a schedd that removes 100,000 jobs does not answer for a while. A cluster that
        makes its jobs late may have none at the moment, so it is looked twice."""
        empty = 0
        for _ in range(60):
            self.run("condor_rm", "-all", codes=(0, 1))
            done = subprocess.run(
                [*AS_FERMI, "condor_q", "-totals", "-format", "%d\n", "ClusterId"],
                env={**os.environ, **self._env}, capture_output=True, text=True, check=False,
            )  # fmt: skip
            empty = empty + 1 if done.returncode == 0 and not done.stdout.strip() else 0
            if empty == 2:
                return
            time.sleep(5)
        raise SystemExit("the queue does not get empty")

    def finished_files(self, name: str) -> str:
        """The submit file of a run folder, told where it is."""
        batch = self.folder / name / "blocks/b0000/clump.g0"
        macros = {"fg_plan": batch / "plan", "fg_work": batch / "work", "fg_log": self.folder / "floor.log"}
        lines = (batch / "plan/job.sub").read_text().split("\n")
        return "\n".join(
            next((f"{macro} = {value}" for macro, value in macros.items() if line.startswith(f"{macro} ")), line)
            for line in lines
        )

    def insert(self, jobs: int) -> None:
        """A row into SQLite for each job: what a ledger that knew all of them would need."""
        with sqlite3.connect(":memory:") as db:
            db.execute("CREATE TABLE job (name TEXT PRIMARY KEY, state TEXT)")
            db.executemany("INSERT INTO job VALUES (?, 'waiting')", ((f"clump.r{i:010d}.c000",) for i in range(jobs)))


def figures(full: bool) -> Iterator[Figure]:
    """Late materialization, and all jobs at once."""
    late, at_once = (1_000_000, 100_000) if full else (100_000, 10_000)
    with shared_pool(pool_folder()) as pool, bench_folder(pool) as folder:
        bench = Bench(pool, folder)
        cost = bench.submit("late", late, "late")
        floor = bench.condor_submit(bench.finished_files("late")).wall
        inserts = seconds(lambda: bench.insert(late))
        what = f"submit, {late:,} jobs"
        limit = 8.0 * late / 1_000_000
        yield Figure(what, cost.wall, "s", floor, "condor_submit of the files", max(limit, 2.0))
        yield Figure(f"{what}: CPU", cost.cpu, "s", inserts, "as many inserts into SQLite")
        yield Figure(f"{what}: largest process", cost.memory, "MB", limit=300)
        ours = bench.submit("at-once", at_once, "at-once")
        plan = folder / "at-once/blocks/b0000/clump.g0/plan"
        by_hand = bench.condor_submit(bench.finished_files("at-once"))
        bare = bench.condor_submit(BARE.format(plan=plan, folder=folder))
        what = f"submit, {at_once:,} jobs at once"  # of few jobs the start is a part of its own
        yield Figure(what, ours.wall, "s", by_hand.wall, "by hand, the same ads", 1.2 * by_hand.wall + (not full))
        yield Figure(f"{what}, beside bare jobs", ours.wall, "s", bare.wall, "by hand, no policies")
        yield Figure(f"{what}: largest process", ours.memory, "MB", by_hand.memory, "condor_submit", 300)
