"""`fermigrid status` of a million jobs in 57 blocks, 16,720 of them failed, beside its floor: the bare SQL count.

python -m benchmarks status          (102,600 jobs)
python -m benchmarks --full status   (28,500 runs of 35 clumps: 1,026,000 jobs)
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.figures import FERMIGRID, Cost, Figure, run, seconds
from tests.synthetic import synthetic

CLUMPS, LIMIT_S = 35, 1.0


def count_only(ledger: Path) -> None:
    """The states of all jobs counted."""
    with closing(sqlite3.connect(ledger)) as db:
        db.execute("SELECT batch, state, count(*) FROM job GROUP BY batch, state").fetchall()


def best(times: int, *command: str, env: dict[str, str]) -> Cost:
    """The fastest of some runs of a command."""
    return min((run(command, env=env) for _ in range(times)), key=lambda cost: cost.wall)


def figures(full: bool) -> Iterator[Figure]:
    """The whole command, as a person waits for it."""
    runs = 28_500 if full else 2_850
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "c"
        synthetic(folder, runs, CLUMPS, reports=False, done=0.8)
        env = {"FERMIGRID_STATE": str(folder / "state")}
        counting = min(seconds(lambda: count_only(folder / "run/ledger.sqlite")) for _ in range(5))
        imports = best(5, sys.executable, "-c", "import fermigrid.commands.following", env=env).wall
        status = best(5, *FERMIGRID, "status", str(folder / "run"), env=env)
        batches = best(3, *FERMIGRID, "status", str(folder / "run"), "--batches", env=env)
    what, floor = f"status, {runs * (CLUMPS + 1):,} jobs", counting + imports
    yield Figure(what, status.wall, "s", floor, "imports, and SQLite counts", LIMIT_S)
    yield Figure(f"{what}: --batches", batches.wall, "s", floor, "imports, and SQLite counts", LIMIT_S)
    yield Figure(f"{what}: memory", status.memory, "MB", limit=100)
