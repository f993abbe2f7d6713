"""`kill -9` of fermigrid before, during and after a submission: the same command again loses and doubles nothing."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.pool.conftest import Pool
from tests.pool.product import AS_FERMI, Product

pytestmark = pytest.mark.pool

NOWHERE = """site: nowhere
title: no slot matches, so that jobs stay in the queue to be counted
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {requirements: 'GLIDEIN_Site == "SITEX"', late_above: LATE, settle: 1 s}
container: {launch: worker}
output: {kind: transfer}
"""
CAMPAIGN = "campaign: kill\nimage: light\nblock: 4\nruns: {count: 12}\nsteps: {s: {command: ['true']}}\n"
# Few, because 20 unmatchable jobs ahead keep HTCondor from looking at the other tests' jobs (docs/reference/hold-reasons.md).
BATCHES, JOBS = 3, 12


def clusters(product: Product, batches: list[str]) -> dict[str, list[str]]:
    """Batch id -> the clusters that carry it, factories without jobs included."""
    constraint = " || ".join(f'FermigridBatch == "{batch}"' for batch in batches)
    program = (
        "import htcondor2, sys\n"
        "ads = htcondor2.Schedd().query(sys.argv[1], ['FermigridBatch', 'ClusterId'],"
        " opts=htcondor2.QueryOpts.IncludeClusterAd)\n"
        "for pair in sorted({(a['FermigridBatch'], a['ClusterId']) for a in ads}): print(*pair)\n"
    )
    import sys

    done = subprocess.run(
        [*AS_FERMI, sys.executable, "-c", program, constraint],
        env=product.environment, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    found: dict[str, list[str]] = {batch: [] for batch in batches}
    for line in done.stdout.splitlines():
        batch, cluster = line.split()
        found[batch].append(cluster)
    return found


def batches_of(run: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True)) as db:
        return [row[0] for row in db.execute("SELECT id FROM batch")]


def kill_when(process: subprocess.Popen[str], run: Path, moment: float | str) -> None:
    """SIGKILL after `moment` seconds, or as soon as a file of the run folder named so appears."""
    deadline = time.monotonic() + 30
    began = time.monotonic()
    while process.poll() is None and time.monotonic() < deadline:
        if isinstance(moment, float):
            if time.monotonic() - began >= moment:
                break
        elif next(run.glob(moment), None) is not None:
            break
        time.sleep(0.001)
    process.kill()
    process.communicate()


def killed_and_resumed(product: Product, name: str, moments: list[float | str]) -> None:
    """Submit, kill at each moment in turn, submit to the end: each batch is in the queue exactly once."""
    run = product.folder / name
    for moment in moments:
        kill_when(
            product.start("submit", "kill.yaml", "--site", "nowhere", "--sites", "sites", "--run-dir", name),
            run,
            moment,
        )
    done = product.run("submit", "kill.yaml", "--site", "nowhere", "--sites", "sites", "--run-dir", name)
    assert f"{JOBS} jobs, {JOBS} waiting" in done.stdout
    batches = batches_of(run)
    assert len(batches) == BATCHES
    landed = clusters(product, batches)
    assert {batch: len(found) for batch, found in landed.items()} == dict.fromkeys(batches, 1), (moments, done.stderr)
    product.run("remove", name)


@pytest.fixture
def campaign(product: Product, late: int) -> Product:
    product.write("sites/nowhere.yaml", NOWHERE.replace("LATE", str(late)))
    product.write("kill.yaml", CAMPAIGN)
    return product


@pytest.mark.parametrize("late", [1000, 2])
def test_killed_at_the_instant_of_the_commit(campaign: Product) -> None:
    """The schedd has written the event log: it has the jobs, and fermigrid died before it heard so."""
    killed_and_resumed(
        campaign, "commit", ["blocks/b0000/events.log", "blocks/b0001/events.log", "blocks/b0002/events.log"]
    )


@pytest.mark.parametrize("late", [2])
def test_killed_at_any_time(campaign: Product) -> None:
    chance = random.Random(1)
    for number in range(3):
        killed_and_resumed(campaign, f"run{number}", [chance.uniform(0.2, 1.2), chance.uniform(0.2, 0.8)])


@pytest.mark.drill
@pytest.mark.parametrize("late", [1000, 2])
def test_killed_a_hundred_times(campaign: Product) -> None:
    """Seeded, so that a failure can be repeated; each round kills twice."""
    chance = random.Random(2)
    for number in range(50):
        killed_and_resumed(campaign, f"run{number}", [chance.uniform(0.1, 1.5), chance.uniform(0.1, 1.0)])


def test_two_submissions_at_once_are_one(product: Product, pool: Pool) -> None:
    """Somebody types the command twice: one does the work, the other says so, nothing is doubled."""
    product.write("sites/nowhere.yaml", NOWHERE.replace("LATE", "2"))
    product.write("kill.yaml", CAMPAIGN)
    command = ("submit", "kill.yaml", "--site", "nowhere", "--sites", "sites", "--run-dir", "twice")
    both = [product.start(*command), product.start(*command)]
    said = [process.communicate(timeout=60) for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 15]), said
    batches = batches_of(product.folder / "twice")
    assert {len(found) for found in clusters(product, batches).values()} == {1}
    product.run("remove", "twice")
