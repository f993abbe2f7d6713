"""The big campaign: L1 processing of real LAT runs at two sites of a pool of its own, with what is wrong in it on purpose.

It is `examples/l1proc` with smaller pieces, so that many jobs come of few events, and with a wrapper round its `recon.py`
that fails for some crumbs in their first generation. Everything else that goes wrong is done to it from outside
(`chaos.py` and the story in `test_big_campaign.py`).
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.pool.conftest import Pool, call_pool, product_in, shared_pool
from tests.pool.l1 import events_file
from tests.pool.product import CHECKOUT, UID, Product

PIECE_EVENTS = 2  # of a chunk; its crumbs have one event each
NAME = "P402-BIG"
VERSION = "401"
EMIN, ZMAX = 300.0, 100.0

# A machine is larger than its four cores: a job waits more than it computes. The bad one stays small.
POOL_SETTINGS = """\
NUM_CPUS = {cpus}
MEMORY = 65536
SITED_ENVIRONMENT = "POOL_SITE=d _CONDOR_NUM_CPUS=4"
# The machines see the shared file system below /tmp, where this machine sees it, too
MOUNT_UNDER_SCRATCH =
# A daemon that is killed again and again is started again as quickly as the first time
MASTER_BACKOFF_FACTOR = 1
MASTER_BACKOFF_CEILING = 2
MASTER_RECOVER_FACTOR = 1
"""
SITES = {
    # outputs come back with the jobs; the schedd makes few jobs at a time
    "north": """\
site: north
title: good machines
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor:
  requirements: 'member(GLIDEIN_Site, {"SITEA", "SITEB", "SITEF"})'
  late_above: 30
  max_materialize: 200
  timeout: 20 s
  settle: 3 s
container: {launch: worker, binds_anywhere: false}
output: {kind: transfer}
""",
    # outputs go to a file system that all see; one machine in it has no runtime
    "south": """\
site: south
title: good machines, and one without a container runtime
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor:
  requirements: 'member(GLIDEIN_Site, {"SITEA", "SITEB", "SITEF", "SITED"})'
  timeout: 20 s
  settle: 3 s
container: {launch: worker, binds_anywhere: false, backoff: 3 s}
output: {kind: posix, root: STORE}
""",
}
# In place of recon.py: what is in broken.txt ends as a bug in a program would. Exit code 7 in the first generation, until a
# person mends it; 9 in the first start, and a rule of the campaign says that it is begun again. The release that it was
# given goes into the job's summary.
FLAKY = """\
#!/bin/sh
set -eu
echo "release: $RECON_RELEASE" >> "$FERMIGRID_SUMMARY"
while read -r job code; do
    [ "$job" = "$FERMIGRID_JOB" ] || continue
    case $code/$FERMIGRID_ATTEMPT in 7/g0.* | 9/g0.s1.*) echo "no calibration for this crumb"; exit "$code";; esac
done < broken.txt
exec python3 ./recon.py "$@"
"""


@dataclass(frozen=True)
class Big:
    """The campaign in a person's folder: `runs`, name -> events."""

    product: Product
    runs: dict[str, int]

    @property
    def run_dir(self) -> Path:
        """Its run folder."""
        return self.product.folder / "run"

    @property
    def store(self) -> Path:
        """The shared file system of the site `south`."""
        return self.product.folder / "store"

    @property
    def jobs(self) -> int:
        """How many jobs it has, by what DOMAIN says of chunks and crumbs: counted without fermigrid."""
        return sum(2 * -(-events // PIECE_EVENTS) + events + 2 for events in self.runs.values())

    def fermigrid(self, *arguments: str, timeout: float = 240, code: int | None = 0) -> str:
        """A command; what it printed."""
        done = self.product.run(*arguments, timeout=timeout, code=code)
        return done.stdout + done.stderr


@contextmanager
def big_pool(folder: Path, cpus: int) -> Iterator[Pool]:
    """A pool for it alone: its daemons are killed."""
    settings = folder / "etc/config.d/big"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(POOL_SETTINGS.format(cpus=cpus))
    try:
        with shared_pool(folder) as running:
            yield running
    finally:
        if not os.environ.get("KEEP_BIG_POOL"):
            call_pool(folder, "clean")


def largest_runs(product: Product, jobs: int) -> dict[str, int]:
    """The runs with the most events, as many as give so many jobs, in the order of time."""
    (product.folder / "all.csv").unlink(missing_ok=True)
    make = [sys.executable, CHECKOUT / "examples/l1/make_runs.py", "--events", events_file(product)]
    subprocess.run([*make, "--output", product.folder / "all.csv"], check=True, capture_output=True)
    with (product.folder / "all.csv").open(newline="") as stream:
        every = sorted(csv.DictReader(stream), key=lambda row: (-int(row["events"]), row["run"]))
    chosen: dict[str, int] = {}
    for row in every:
        if Big(product, chosen).jobs >= jobs:
            break
        chosen[row["run"]] = int(row["events"])
    return dict(sorted(chosen.items()))


def write_big(pool: Pool, folder: Path, jobs: int, block: int, broken_share: int) -> Big:
    """The campaign in `folder`, with at least so many jobs. One crumb of `broken_share` fails at first: the first for good."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    product = product_in(pool, folder)
    runs = largest_runs(product, jobs)
    crumbs = [f"recon.{run}.k{k:03d}u{u:03d}" for run, events in runs.items() for k, u in crumbs_of(events)]
    broken = crumbs[broken_share // 2 :: broken_share]
    big = Big(product, runs)
    for name in ("l1", "l1proc"):
        shutil.copytree(CHECKOUT / "examples" / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    product.write("l1proc/runs.csv", "run,events\n" + "".join(f"{run},{events}\n" for run, events in runs.items()))
    product.write("l1proc/flaky.sh", FLAKY).chmod(0o755)
    product.write("l1proc/broken.txt", "".join(f"{job} {(7, 9)[k % 2]}\n" for k, job in enumerate(broken)))
    product.write("l1proc/campaign.yaml", campaign_text(block, str(shared_events(product))))
    for name, text in SITES.items():
        product.write(f"sites/{name}.yaml", text.replace("STORE", str(big.store)))
    big.store.mkdir()
    for path in (folder / "l1", folder / "l1proc", *folder.glob("l1*/*")):
        path.chmod(0o755)
    os.chown(big.store, UID, UID)
    return big


def crumbs_of(events: int) -> Iterator[tuple[int, int]]:
    """The numbers of chunk and crumb of a run with so many events: chunks as equal as can be, a crumb an event."""
    chunks = -(-events // PIECE_EVENTS)
    for chunk in range(chunks):
        for crumb in range(events // chunks + (chunk < events % chunks)):
            yield chunk, crumb


def shared_events(product: Product) -> Path:
    """The events on the file system that nodes, containers and this machine see alike."""
    target = product.folder / "lat_events.fits.gz"
    shutil.copy(events_file(product), target)
    return target


def campaign_text(block: int, events: str) -> str:
    """The campaign file of the example, with the changes that make it big."""
    campaign = yaml.safe_load((CHECKOUT / "examples/l1proc/campaign.yaml").read_text())
    campaign |= {"campaign": NAME, "block": block, "sites": {"north": 50, "south": 50}}
    campaign["code"] += ["flaky.sh", "broken.txt"]
    campaign["parameters"] |= {"events_file": events, "release": "R1"}
    campaign["retries"] = {"max": 3, "rules": [{"when": {"exit": 9}, "do": "wait", "after": "1 s"}]}
    campaign["environment"] = {"OPENBLAS_NUM_THREADS": "1"}
    for step in campaign["steps"].values():
        step["resources"] |= {"memory": "256 MiB", "disk": "256 MiB"}
        if "split" in step:
            step["split"] = {"events": PIECE_EVENTS}
    recon = campaign["steps"]["recon"]
    recon["split"] |= {"crumbs": PIECE_EVENTS, "crumb_events": 1}
    recon["command"][0] = "flaky.sh"
    recon["environment"] = {"RECON_RELEASE": "{release}"}
    text: str = yaml.safe_dump(campaign, sort_keys=False)
    return text
