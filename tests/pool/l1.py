"""The example campaign (examples/l1) at a site of the pool, and its audit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.pool.product import CHECKOUT, Product

REAL_EVENTS = CHECKOUT.parent / "shared/data/lat_events_2008_2011.fits.gz"
ON_NODE = "/cvmfs/fermi.test/data/lat_events.fits.gz"


def events_file(product: Product) -> Path:
    """The LAT events where every node sees them: on the pool's CVMFS."""
    target = product.pool.directory / ON_NODE[1:]
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{os.getpid()}")
        if REAL_EVENTS.is_file():
            shutil.copy(REAL_EVENTS, draft)
        else:
            make = CHECKOUT / "examples/l1/make_events.py"
            subprocess.run([sys.executable, make, "--runs", "200", "--output", draft], check=True)
        draft.chmod(0o644)
        draft.rename(target)
    return target


def copy_example(product: Product, runs: int) -> Path:
    """The example in the person's folder, with the table of the first `runs` runs of the events."""
    l1 = product.folder / "l1"
    shutil.copytree(CHECKOUT / "examples/l1", l1, ignore=shutil.ignore_patterns("__pycache__"))
    make = [sys.executable, l1 / "make_runs.py", "--events", events_file(product), "--output", l1 / "all.csv"]
    subprocess.run(make, check=True)
    lines = (l1 / "all.csv").read_text().splitlines()
    (l1 / "runs.csv").write_text("\n".join(lines[: runs + 1]) + "\n")
    for path in l1.rglob("*"):
        path.chmod(0o755)
    return l1


def submit_example(product: Product, site: str, timeout: float = 500, run: str = "run") -> str:
    """The campaign at `site`, to its end, and audited; nothing in it is changed but the site and where the events are.
    Without a site: at those that the campaign itself names."""
    at = ("l1/campaign.yaml", *(("--site", site) if site else ()), "--set", f"events_file={ON_NODE}")
    product.run("check", *at)
    said = product.run("submit", *at, "--run-dir", run, "--wait", timeout=timeout).stdout
    assert "P400-L1: clean: " in product.run("audit", run).stdout
    return said


def audit(product: Product, run: str = "run") -> subprocess.CompletedProcess[str]:
    """The example's own audit: every event of every run is in one output, once, or was cut."""
    l1, events = product.folder / "l1", events_file(product)
    command = [sys.executable, l1 / "audit.py", "--runs", l1 / "runs.csv", "--events", events,
               "--outputs", product.folder / run / "outputs", "--emin", "300", "--zmax", "100"]  # fmt: skip
    return subprocess.run(command, check=False, capture_output=True, text=True)
