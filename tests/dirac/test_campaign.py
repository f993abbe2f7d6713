"""Whole campaigns by DIRAC as at any site, with a real DiracX server and a pilot with real Apptainer: nothing of the
campaign is changed but `--site`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.dirac.pilot import Pilot
from tests.dirac.server import Server
from tests.pool.l1 import audit, copy_example, submit_example
from tests.pool.product import Product
from tests.pool.test_pieces import MERGED, check_lineage, files_in, process
from tests.pool.test_redo import do_again, query

pytestmark = [pytest.mark.dirac, pytest.mark.pool]

RUNS = 4
SMALL = """\
campaign: small
image: light
runs: {count: 3}
steps:
  first: {command: [sh, -c, "echo $FERMIGRID_RUN > out.txt; sleep 1"], outputs: {out.txt: "first/{run}.txt"}}
  second:
    after: [first]
    gather: {before: {step: first, output: out.txt}}
    command: [sh, -c, "cat before/* before/* > out.txt"]
    outputs: {out.txt: "second/{run}.txt"}
"""


def digests(folder: Path) -> dict[str, str]:
    """Outputs and what is in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_example_at_the_pool_by_dirac_and_at_both(grid: Product, pilot: Pilot) -> None:
    """The same files come out, byte by byte, and both audits are clean: fermigrid's and the example's own."""
    l1 = copy_example(grid, RUNS)
    with pilot:
        for site in ("pool", "grid"):
            assert f"{RUNS} jobs, {RUNS} done" in submit_example(grid, site, run=site)
        with (l1 / "campaign.yaml").open("a") as file:
            file.write("sites: {pool: 1, grid: 1}\nblock: 1\n")
        assert f"{RUNS} jobs, {RUNS} done" in submit_example(grid, "", run="both")
    for run in ("pool", "grid", "both"):
        assert audit(grid, run).returncode == 0
    made = [digests(grid.folder / run / "outputs") for run in ("pool", "grid", "both")]
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == RUNS
    assert sum(len(codes) for codes in pilot.codes.values()) == RUNS + 2
    assert {code for codes in pilot.codes.values() for code in codes} == {0}
    by_site = Counter(batch["site"] for batch in json.loads(grid.run("status", "both", "--json").stdout)["batches"])
    assert by_site == {"pool": 2, "grid": 2}
    # and the audit is one that can fail
    next(path for path in (grid.folder / "both/outputs").rglob("*.fit")).unlink()
    assert audit(grid, "both").returncode == 1
    assert "is not there" in grid.run("audit", "both", code=1).stdout


def test_pieces_and_merges(grid: Product, pilot: Pilot) -> None:
    """Three steps that wait for each other and give each other files, and a crumb that fails for good."""
    with pilot:
        process(grid, "grid", timeout=400)
    found = files_in(grid.folder / "run/outputs")
    assert {name: found[name].splitlines() for name in MERGED} == MERGED
    check_lineage(grid, found)
    assert grid.run("audit", "run", code=1).stdout.count("r1.k001u001") >= 1  # it failed, and nothing else is wrong


def test_retry_and_rollback(grid: Product, pilot: Pilot) -> None:
    with pilot:
        do_again(grid, "grid")
    assert pilot.codes["clump.r2.c001"] == [7, 0, 0]


def test_two_watches_at_once(grid: Product, pilot: Pilot, server: Server) -> None:
    """They send the second step once, and take each result in once."""
    grid.write("c.yaml", SMALL)
    grid.run("submit", "c.yaml", "--site", "grid", "--run-dir", "run")
    with pilot:
        watches = [grid.start("watch", "run") for _ in range(2)]
        said = [watch.communicate(timeout=240) for watch in watches]
    codes = sorted(watch.returncode for watch in watches)
    assert codes[0] == 0, said  # the other one may have found the ledger busy, and says so
    assert any("6 jobs, 6 done" in out for out, _ in said), said
    assert pilot.codes == {f"{step}.{run:04d}": [0] for step in ("first", "second") for run in range(3)}
    batches = [batch for (batch,) in query(grid.folder / "run", "SELECT id FROM batch")]
    assert sorted(server.confirmed(batch).total() for batch in batches) == [3, 3]
    assert "clean: " in grid.run("audit", "run").stdout


def test_a_job_whose_node_was_lost_is_done_again(grid: Product, pilot: Pilot) -> None:
    grid.write("c.yaml", SMALL)
    pilot.lost = {"first.0001"}
    with pilot:
        assert "6 jobs, 6 done" in grid.run("submit", "c.yaml", "--site", "grid", "--run-dir", "run", "--wait").stdout
    assert "pilot not running" in grid.run("why", "run", "first.0001").stdout
    assert "clean: " in grid.run("audit", "run").stdout
    report = json.loads(grid.run("report", "run", "--json").stdout)
    assert [(one["step"], one["site"], one["states"]["done"]) for one in report["jobs"]] == [
        ("first", "grid", 3), ("second", "grid", 3),
    ]  # fmt: skip


def test_what_waits_at_dirac_is_told_and_removed(grid: Product, server: Server) -> None:
    grid.write("c.yaml", SMALL)
    grid.run("submit", "c.yaml", "--site", "grid", "--run-dir", "run")
    assert "DIRAC has it and has not looked at it yet" in grid.run("why", "run", "first.0001").stdout
    assert "DIRAC cannot hold a job" in grid.run("hold", "run", code=None).stderr
    grid.run("remove", "run", "--run", "0001")
    states = json.loads(grid.run("status", "run", "--json").stdout)["states"]
    assert (states["waiting"], states["removed"]) == (2, 1)
    assert server.may_run() == 2
    grid.run("remove", "run")
    assert server.may_run() == 0
    grid.run("status", "run", "--check", code=1)
