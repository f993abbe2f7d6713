"""Retry and rollback on the real pool: new generations of failed jobs and of runs, killed at any moment."""

from __future__ import annotations

import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.pool.product import Product
from tests.pool.test_kill import NOWHERE, clusters, kill_when

pytestmark = pytest.mark.pool

CAMPAIGN = """\
campaign: again
version: '400'
image: light
code: [clump.sh, merge.sh]
parameters: {emin: '100'}
runs: {table: runs.csv}
steps:
  clump:
    foreach: clump
    split: {events: 10}
    command: [clump.sh, "{run}.{piece}", "{emin}"]
    outputs: {part.txt: "{run}_{piece}.txt"}
  merge:
    after: {clump: done}
    gather: {parts: {step: clump, output: part.txt}}
    command: [merge.sh, "v{version}"]
    outputs: {all.txt: "{run}_v{version}.txt"}
"""
CLUMP = """#!/bin/sh
case $1.$FERMIGRID_ATTEMPT in r2.c001.g0.*) exit 7;; esac
echo "$1 emin=$2" > part.txt
"""
MERGE = """#!/bin/sh
{ echo "$1"; cat parts/c*; } > all.txt
"""
LEFT = "campaign: left\nimage: light\nblock: 4\nruns: {list: [r1, r2, r3, r4]}\nsteps: {s: {command: ['true']}}\n"


def query(run: Path, text: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True)) as db:
        return db.execute(text).fetchall()


def test_a_failed_clump_then_a_run_with_another_parameter(product: Product) -> None:
    do_again(product, "pool-a")


def do_again(product: Product, site: str) -> None:
    """A campaign at a site, a clump of which fails; it is done again, and then a whole run is."""
    product.write("runs.csv", "run,events\nr1,15\nr2,25\n")
    product.write("c.yaml", CAMPAIGN)
    product.write("clump.sh", CLUMP).chmod(0o755)
    product.write("merge.sh", MERGE).chmod(0o755)
    done = product.run("submit", "c.yaml", "--site", site, "--wait", code=1)
    assert "6 done, 1 failed" in done.stdout
    product.run("retry", "again", "--yes")
    assert "7 jobs, 7 done" in product.run("watch", "again").stdout
    product.run("rollback", "again", "--run", "r2", "--set", "emin=30", "--yes")
    assert "7 jobs, 7 done" in product.run("watch", "again").stdout
    home = product.folder / "fermigrid-runs/again/outputs"
    texts = {str(path.relative_to(home)): path.read_text() for path in home.rglob("*.txt")}
    assert texts["r2_v402.txt"] == "v402\nr2.c000 emin=30\nr2.c001 emin=30\nr2.c002 emin=30\n"
    assert texts["retired/2/r2_v401.txt"] == texts["r2_v402.txt"].replace("30", "100").replace("402", "401")
    assert texts["retired/1/r2_v400.txt"] == "v400\nr2.c000 emin=100\nr2.c002 emin=100\n"
    batches = json.loads(product.run("status", "again", "--json").stdout)["batches"]
    assert [(batch["name"], batch["jobs"], batch["retired"]) for batch in batches] == [
        ("again.b0000.clump.g0", 2, 3), ("again.b0000.merge.g0", 1, 1), ("again.b0000.clump.g1", 0, 1),
        ("again.b0000.merge.g1", 0, 1), ("again.b0000.clump.g2", 3, 0), ("again.b0000.merge.g2", 1, 0),
    ]  # fmt: skip
    ran = query(product.folder / "fermigrid-runs/again", "SELECT count(*), count(DISTINCT job || batch) FROM attempt")
    assert ran == [(13, 13)]


def begin_left(product: Product, name: str, late: int) -> Path:
    """Four runs that wait for machines that there are none of."""
    product.write("sites/nowhere.yaml", NOWHERE.replace("LATE", f"{late}, max_materialize: {late}"))
    product.write("left.yaml", LEFT)
    product.run("submit", "left.yaml", "--site", "nowhere", "--sites", "sites", "--run-dir", name)
    return product.folder / name


def alive(product: Product, batches: dict[str, str]) -> dict[str, int]:
    """Batch name -> its clusters in the queue."""
    return {batches[batch]: len(found) for batch, found in clusters(product, list(batches)).items()}


MOMENTS: list[float | str] = ["blocks/b0000/s.g1/plan", "blocks/b0000/s.g1/work", 0.6]


@pytest.mark.parametrize("verb", ["retry", "rollback"])
def test_killed_at_any_moment_each_generation_is_in_the_queue_once(product: Product, verb: str) -> None:
    once_in_the_queue(product, verb, MOMENTS)


@pytest.mark.drill
@pytest.mark.parametrize("verb", ["retry", "rollback"])
@pytest.mark.parametrize("seed", range(15))
def test_killed_at_many_moments(product: Product, verb: str, seed: int) -> None:
    chance = random.Random(seed)
    once_in_the_queue(product, verb, [chance.uniform(0.2, 1.5) for _ in range(3)])


def once_in_the_queue(product: Product, verb: str, moments: list[float | str]) -> None:
    run = begin_left(product, "left", 1000)
    product.run("remove", "left", "--run", "r2")
    words = ("retry", "left") if verb == "retry" else ("rollback", "left", "--run", "r2", "--run", "r3", "--yes")
    for moment in moments:
        kill_when(product.start(*words) if not query(run, "SELECT id FROM decision") else
                  product.start("watch", "left"), run, moment)  # fmt: skip
    if not query(run, "SELECT id FROM decision"):
        product.run(*words)
    for _ in range(20):
        product.run("watch", "left", "--once", code=None)
        if (
            not query(run, "SELECT name FROM batch WHERE submitted IS NULL")
            and len(query(run, "SELECT id FROM batch")) == 2
        ):
            break
    batches = dict(query(run, "SELECT id, name FROM batch"))
    assert alive(product, batches) == {"left.b0000.s.g0": 1, "left.b0000.s.g1": 1}
    status = json.loads(product.run("status", "left", "--json").stdout)
    assert (status["jobs"], status["states"]["waiting"], status["again"]) == (4, 4, 0)
    assert len(query(run, "SELECT id FROM decision")) == 1
    product.run("remove", "left")


def test_jobs_that_are_not_made_yet_keep_nobody_waiting(product: Product) -> None:
    """Of four jobs HTCondor makes one at a time: those of a run that is rolled back are removed when they come."""
    run = begin_left(product, "late", 1)
    done = product.run("rollback", "late", "--run", "r4", "--yes")
    assert "not in the queue yet" in done.stderr
    batches = dict(query(run, "SELECT id, name FROM batch"))
    assert alive(product, batches) == {"left.b0000.s.g0": 1, "left.b0000.s.g1": 1}
    product.run("remove", "late", "--run", "r1", code=None)
    product.run("remove", "late")
    status = json.loads(product.run("status", "late", "--json").stdout)
    assert (status["jobs"], status["states"]["removed"]) == (4, 4)
