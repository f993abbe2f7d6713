"""Plan, render and submit 100,000 jobs by late materialization to the real pool, beside its floors in the same run.

Floors: condor_submit of the finished files; 100,000 inserts into SQLite. Target: under 2 s and 200 MB; twice the jobs,
about twice the time.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.pool.conftest import Pool, pool_folder, shared_pool
from tests.pool.product import AS_FERMI, UID

SITE = """site: nowhere
title: no slot matches
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {requirements: 'GLIDEIN_Site == "SITEX"'}
container: {launch: worker}
output: {kind: transfer}
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


@contextmanager
def bench_folder(pool: Pool) -> Iterator[Path]:
    """A folder of the pool's user, with site and campaign."""
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=pool.work))
    try:
        (folder / "sites").mkdir()
        (folder / "sites/nowhere.yaml").write_text(SITE)
        (folder / "c.yaml").write_text(CAMPAIGN)
        shutil.copytree(pool.env["_CONDOR_SEC_TOKEN_DIRECTORY"], folder / "tokens")
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, UID, UID)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(pool: Pool, folder: Path) -> dict[str, str]:
    """The pool user's shell."""
    own = {"FERMIGRID_STATE": str(folder / "state"), "HOME": str(folder), "TMPDIR": str(folder)}
    return {**os.environ, **pool.env, **own, "_CONDOR_SEC_TOKEN_DIRECTORY": str(folder / "tokens")}


def timed(command: list[str], folder: Path, env: dict[str, str]) -> tuple[float, float]:
    """(wall s, largest process in MB) of a command as the pool's user."""
    program = "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=2).returncode; "
    program += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, code)"
    began = time.perf_counter()
    done = subprocess.run(
        [*AS_FERMI, sys.executable, "-c", program, *command],
        cwd=folder,
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )
    wall = time.perf_counter() - began
    kilobytes, code = done.stdout.split()
    if code != "0":
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return wall, int(kilobytes) / 1024


def insert_floor(folder: Path, jobs: int) -> float:
    """100,000 rows into SQLite, in s."""
    began = time.perf_counter()
    with sqlite3.connect(folder / "floor.sqlite") as db:
        db.execute("CREATE TABLE job (name TEXT PRIMARY KEY, state TEXT)")
        db.executemany("INSERT INTO job VALUES (?, 'waiting')", ((f"clump.r{i:010d}.c000",) for i in range(jobs)))
    return time.perf_counter() - began


def submit(folder: Path, env: dict[str, str], runs: int, name: str) -> tuple[float, float]:
    """`fermigrid submit` of `runs` runs with 100 clumps each: (s, MB)."""
    (folder / "runs.csv").write_text("run,events\n" + "".join(f"r{i:010d},2000000\n" for i in range(runs)))
    words = [sys.executable, "-m", "fermigrid"]
    cost = timed([*words, "submit", "c.yaml", "-s", "nowhere", "--sites", "sites", "--run-dir", name], folder, env)
    timed([*words, "remove", name], folder, env)
    return cost


def main() -> None:
    with shared_pool(pool_folder()) as pool, bench_folder(pool) as folder:
        env = environment(pool, folder)
        wall, memory = submit(folder, env, 1000, "run1")
        double, double_memory = submit(folder, env, 2000, "run2")
        plan = folder / "run1/blocks/b0000/clump.g0"
        macros = {"fg_plan": plan / "plan", "fg_work": plan / "work", "fg_log": folder / "floor.log"}
        text = (plan / "plan/job.sub").read_text()
        for macro, value in macros.items():
            text = "\n".join(
                f"{macro} = {value}" if line.startswith(f"{macro} ") else line for line in text.split("\n")
            )
        (folder / "floor.sub").write_text(text)
        floor, _ = timed(["condor_submit", "floor.sub"], folder, env)
        timed(["condor_rm", "-constraint", 'FermigridBatch == "none"'], folder, env)
        inserts = insert_floor(folder, 100_000)
    print(f"fermigrid submit, 100,000 jobs              {wall:6.2f} s  {memory:5.0f} MB")
    print(f"fermigrid submit, 200,000 jobs              {double:6.2f} s  {double_memory:5.0f} MB")
    print(f"floor: condor_submit of the finished files  {floor:6.2f} s")
    print(f"floor: 100,000 rows into SQLite             {inserts:6.2f} s")
    print(f"ratio to both floors together               {wall / (floor + inserts):6.1f}")


if __name__ == "__main__":
    main()
