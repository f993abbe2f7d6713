"""Pieces and merges on the real pool: what a job is given of the steps before it, by every way to a site."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pool.conftest import START_LIMIT_S, Pool, call_pool, describe
from tests.pool.l1 import ON_NODE, events_file
from tests.pool.product import CHECKOUT, UID, Product
from tests.pool.sites import site_like
from tests.worker.node import running_node
from tests.worker.storage import Storage, start_xrootd

pytestmark = pytest.mark.pool

CAMPAIGN = """\
campaign: pieces
image: light
code: [piece.sh, merge.sh]
runs: {table: runs.csv}
steps:
  digi:
    foreach: chunk
    split: {events: 6}
    command: [sh, -c, 'seq {first_event} $(({first_event} + {event_count} - 1)) > digi']
    outputs: {digi: "digi/{run}-{chunk}"}
  piece:
    foreach: crumb
    split: {events: 6, crumbs: 3, crumb_events: 1}
    after: [digi]
    gather: {digi: {step: digi, output: digi}}
    command: [piece.sh, "digi/{chunk}", "{first_event}", "{event_count}", "{run}.{piece}"]
    outputs: {out.txt: "pieces/{run}_{piece}.txt"}
  merge:
    after: {piece: done}
    gather: {pieces: {step: piece, output: out.txt}}
    command: [merge.sh, "{run}"]
    outputs: {out.txt: "{run}.txt"}
"""
TABLE = "run,events\nr1,13\nr2,0\nr3,4\n"
PIECE = """\
#!/bin/sh
[ "$4" != r1.k001u001 ] || exit 3
awk -v f=$2 -v n=$3 '$1 >= f && $1 < f + n {print $1, $1 * $1}' "$1" > out.txt
"""
MERGE = """\
#!/bin/sh
set -eu
tail -n +2 pieces.csv | while IFS=, read -r piece file first events; do cat "$file"; done > out.txt
tail -n +2 pieces.missing.csv >> out.txt
ls pieces | wc -l
"""
INSIDE = ("container:\n  launch: worker\n", "container:\n  launch: worker\n  order: wrapper-inside\n")
LATE = ("htcondor:\n", "htcondor:\n  late_above: 1\n  max_materialize: 2\n")


@pytest.fixture(scope="module")
def grid(running_pool: Pool) -> Pool:
    """The pool of this test run, with a Slurm and a second schedd."""
    done = call_pool(running_pool.directory, "start", "grid", timeout=START_LIMIT_S)
    assert done.returncode == 0, done.stderr
    return describe(running_pool.directory)


@pytest.fixture
def server() -> Iterator[Storage]:
    """A server on the loopback address, which is the pool's as well."""
    with running_node() as node:
        yield start_xrootd(node, "xrootd.chksum adler32")


def squares(first: int, last: int) -> list[str]:
    return [f"{event} {event * event}" for event in range(first, last)]


# r1: chunks of 5, 4 and 4 events; of k001 (events 5 to 8) the crumbs have 1, 1 and 2
MERGED = {"r1.txt": [*squares(0, 6), *squares(7, 13), "k001u001,6,1"], "r2.txt": [], "r3.txt": squares(0, 4)}


def process(product: Product, site: str, *, timeout: float = 300) -> None:
    """The small campaign at a site, to its end: one crumb of its fails, and its run is merged without."""
    for name, text in (("c.yaml", CAMPAIGN), ("runs.csv", TABLE), ("piece.sh", PIECE), ("merge.sh", MERGE)):
        product.write(name, text)
    (product.folder / "sites").mkdir(exist_ok=True)
    where = ("--site", site, "--sites", "sites")
    product.run("check", "c.yaml", *where)
    told = product.run("submit", "c.yaml", *where, "--run-dir", "run", "--wait", code=1, timeout=timeout).stdout
    assert "19 jobs, 18 done, 1 failed" in told


def check_lineage(product: Product, pieces: dict[str, str]) -> None:
    """The merge's report has the digest of the list of what it read, which are the pieces' accepted outputs."""
    (report,) = product.reports("run", "merge.r3")
    (read,) = report["inputs"]
    sums = [
        f"{hashlib.sha256(text.encode()).hexdigest()}  pieces/{name.removeprefix('pieces/r3_')}\n"
        for name, text in sorted(pieces.items()) if name.startswith("pieces/r3_")
    ]  # fmt: skip
    assert (read["name"], read["files"], read["lost"]) == ("pieces", 3, 0)
    assert read["sha256"] == hashlib.sha256("".join(sums).encode()).hexdigest()
    (report,) = product.reports("run", "merge.r1")
    assert (report["inputs"][0]["files"], report["inputs"][0]["lost"]) == (8, 1)


def files_in(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", ["site", "worker", "inside", "late"])
def test_outputs_that_came_back_travel_with_the_jobs_that_gather_them(product: Product, how: str) -> None:
    site = {"site": "pool-a", "worker": "pool-f"}.get(how)
    site = site or site_like(
        product, "pool-f" if how == "inside" else "pool-a", "own", INSIDE if how == "inside" else LATE
    )
    process(product, site)
    found = files_in(product.folder / "run/outputs")
    assert {name: found[name].splitlines() for name in MERGED} == MERGED
    check_lineage(product, found)
    (report,) = product.reports("run", "merge.r1")
    assert report["container"] == ("site" if "pool-a" in (site, how) or how in ("site", "late") else "worker")
    assert list((product.folder / "run/blocks").glob("*/*/work/*/in/*")) == [], "what jobs were given is gone with them"
    for text in (path.read_text() for path in (product.folder / "run/blocks").glob("*/*/plan/items.txt")):
        assert "pieces/" not in text, "no name of a person's is item data"


def test_outputs_on_a_server_are_fetched_from_there(product: Product, server: Storage) -> None:
    output = ("output: {kind: transfer}", f'output: {{kind: xrootd, root: "{server.url}"}}')
    process(product, site_like(product, "pool-f", "stored", output))
    found = server.files()
    assert {name: found[name].splitlines() for name in MERGED} == MERGED
    check_lineage(product, found)
    assert not (product.folder / "run/outputs").exists()


@pytest.mark.usefixtures("grid")
@pytest.mark.parametrize("site", ["pool-ce", "pool-slurm"])
def test_gathered_files_go_through_the_grid_universe(product: Product, site: str) -> None:
    process(product, site, timeout=600)
    found = files_in(product.folder / "run/outputs")
    assert {name: found[name].splitlines() for name in MERGED} == MERGED
    check_lineage(product, found)


@pytest.mark.usefixtures("grid")
def test_a_folder_of_the_site_is_read_in_place(product: Product) -> None:
    """Through Slurm to a file system that all nodes see: nothing comes back, and nothing is sent along."""
    root = f"/sps/pieces-{os.getpid()}"
    output = ("output: {kind: transfer}", f"output: {{kind: posix, root: {root}}}")
    here = product.pool.directory / root[1:]
    here.mkdir()
    os.chown(here, UID, UID)
    try:
        process(product, site_like(product, "pool-slurm", "farm", output), timeout=600)
        found = files_in(here)
        assert {name: found[name].splitlines() for name in MERGED} == MERGED
        check_lineage(product, found)
        assert not (product.folder / "run/outputs").exists()
    finally:
        shutil.rmtree(here)


@pytest.mark.parametrize("runs", [3, pytest.param(60, marks=pytest.mark.drill)])
def test_l1_processing_of_real_events_audits_clean(product: Product, runs: int) -> None:
    """Digitization, crumbs, merges, FT1 in the container, of the runs with the most events; the audit by EVENT_ID."""
    for name in ("l1", "l1proc"):
        shutil.copytree(
            CHECKOUT / "examples" / name, product.folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    example, events = product.folder / "l1proc", events_file(product)
    make = [
        sys.executable,
        product.folder / "l1/make_runs.py",
        "--events",
        events,
        "--output",
        product.folder / "all.csv",
    ]
    subprocess.run(make, check=True)
    head, *lines = (product.folder / "all.csv").read_text().splitlines()
    chosen = sorted(lines, key=lambda line: -int(line.split(",")[1]))[:runs]
    (example / "runs.csv").write_text("\n".join([head, *sorted(chosen), ""]))
    for path in (product.folder / name for name in ("l1", "l1proc")):
        for file in (path, *path.rglob("*")):
            file.chmod(0o755)
    at = ("l1proc/campaign.yaml", "--site", "pool", "--set", f"events_file={ON_NODE}")
    product.run("check", *at)
    told = product.run("submit", *at, "--run-dir", "run", "--wait", timeout=900).stdout
    assert told.splitlines()[0].split(":")[1].split(",")[1].strip().endswith("done"), told
    audit = [sys.executable, example / "audit_pieces.py", "--runs", example / "runs.csv", "--events", events,
             "--outputs", product.folder / "run/outputs", "--emin", "300", "--zmax", "100"]  # fmt: skip
    done = subprocess.run(audit, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count(f"{runs} audited: all agree")) == (0, 2), done.stdout + done.stderr
