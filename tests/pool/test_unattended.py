"""Campaigns that nobody looks at, on a pool of their own: pauses of the circuit breaker, a schedd that is silent."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fermigrid.backends import PAUSED, Handle
from fermigrid.backends import htcondor as backend
from fermigrid.states import Seen
from tests.pool.batches import events, states, submitted, wait_for, wait_until_seen, write_batch
from tests.pool.conftest import Pool, call_pool, pool_folder, product_in, shared_pool
from tests.pool.product import Product
from tests.pool.test_backend_htcondor_faults import schedd_of, stopped

pytestmark = pytest.mark.pool


@pytest.fixture(scope="module")
def own_pool() -> Iterator[Pool]:
    """A pool whose schedd may be stopped, one for each process of pytest-xdist."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    folder = pool_folder().with_name(f"{pool_folder().name}-unattended-{worker}")
    try:
        with shared_pool(folder) as running:
            yield running
    finally:
        call_pool(folder, "clean")


def in_queue(pool: Pool, handle: Handle) -> Counter[str]:
    """Jobs of the cluster in the queue by HTCondor's JobStatus: 1 waits, 2 runs, 5 is held."""
    told = pool.run("fermi", "condor_q", str(handle.cluster), "-autoformat", "JobStatus")
    return Counter(told.stdout.split())


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
def test_a_pause_lets_running_jobs_end_and_no_other_start(fermi: Pool, job_folder: Path, late: bool) -> None:
    limits = {"max_materialize": 10} if late else {}
    with submitted(write_batch(job_folder, "sleep 3; mkdir out", jobs=24, **limits)) as handle:
        wait_until_seen(handle, Seen.STARTED, 2)
        if not late:
            backend.hold([handle], [23])  # a person's own hold
        backend.pause([handle])
        running = in_queue(fermi, handle)["2"]
        assert running
        wait_for(lambda: not in_queue(fermi, handle)["2"], "the running jobs ended")
        assert in_queue(fermi, handle)["1"] == 0, "none waits for a machine"
        ended = sum(one.seen is Seen.ENDED for one in events(handle))
        assert running <= ended < 23
        ours = [one.index for one in events(handle) if one.seen is Seen.HELD and one.reason.startswith(PAUSED)]
        assert (23 in ours, bool(ours) or late) == (False, True)
        backend.pause([handle])  # again is harmless
        backend.resume([handle])
        wait_until_seen(handle, Seen.ENDED, 24 if late else 23, limit=180)
        if not late:
            assert states(handle, 23) == [Seen.SUBMITTED, Seen.HELD]


SITE = """\
site: mine
extends: pool
htcondor: {timeout: 3 s, settle: 1 s}
"""
CAMPAIGN = """\
campaign: silent
image: light
runs: {count: 6}
steps:
  go:
    command: [sleep, "3"]
alerts: {silence: 1 s, metrics: METRICS}
"""


def test_a_schedd_that_is_silent_is_told_and_nothing_is_lost(own_pool: Pool) -> None:
    folder = own_pool.work / "silent"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    product = product_in(own_pool, folder)
    product.write("sites/mine.yaml", SITE)
    (metrics := folder / "metrics").mkdir()
    os.chown(metrics, product.uid, product.uid)
    product.write("c.yaml", CAMPAIGN.replace("METRICS", str(metrics)))
    product.run("submit", "c.yaml", "--site", "mine", "--sites", "sites", "--run-dir", "run")

    def silence() -> bool:
        (file,) = metrics.glob("*.prom")
        return 'kind="silence"} 1' in file.read_text()

    product.run("watch", "run", "--once", code=None)
    assert not silence()
    with stopped(schedd_of(own_pool)):
        wait_for(lambda: look(product) and silence(), "it is told that the schedd is silent")
        status = product.run("status", "run", timeout=30).stdout
        assert "silent: 6 jobs" in status
    product.run("watch", "run")
    assert not silence()
    assert "6 done" in product.run("status", "run").stdout


def look(product: Product) -> bool:
    """One look of a timer; the campaign is looked at again although the last time is not long ago."""
    product.run("watch", "run", "--once", code=None)
    return True
