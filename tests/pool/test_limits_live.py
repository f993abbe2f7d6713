"""Limits, drains and bans on the real pool: what the schedd holds, live, and when nobody watches."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bench_rates import read_logs
from fermigrid.backends import Allowed, Handle
from fermigrid.backends import htcondor as backend
from fermigrid.states import Seen, State, next_state
from tests.pool.batches import events, submitted, wait_for, wait_until_seen, write_batch
from tests.pool.conftest import Pool
from tests.pool.product import Product

pytestmark = pytest.mark.pool
GOOD = 'GLIDEIN_Site == "SITEA" || GLIDEIN_Site == "SITEF"'
SITE = f"""\
site: mine
extends: pool
htcondor: {{requirements: '{GOOD}', timeout: 30 s, settle: 1 s}}
"""
CAMPAIGN = """\
campaign: rates
image: light
runs: {count: 12}
limits: {running: 4}
steps:
  go:
    command: [sleep, "1"]
    resources: {memory: 64 MiB, disk: 10 MiB}
"""


def _left(pool: Pool, handle: Handle) -> list[str]:
    """HTCondor's states of the jobs in the queue: 4 has ended."""
    return pool.run("fermi", "condor_q", str(handle.cluster), "-autoformat", "JobStatus").stdout.split()


def test_a_place_is_kept_until_its_time_is_over_and_nobody_watches(fermi: Pool, job_folder: Path) -> None:
    """Two places, and none is used anew within 8 s: the schedd alone holds it. What ended so has ended, though it is removed."""
    options: dict[str, object] = {"places": 2, "stay": 8}
    batch = write_batch(job_folder, jobs=12, options=options, max_materialize=5, max_idle=4, requirements=GOOD)
    with submitted(batch) as handle:
        wait_until_seen(handle, Seen.ENDED, 6, limit=60)
        began: dict[int, float] = {}  # a job that is tried again in its place is no new one
        for one in events(handle):
            if one.seen is Seen.STARTED:
                began.setdefault(one.index, one.time.timestamp())
        times = sorted(began.values())
        assert all(later - first >= 7 for first, later in zip(times, times[2:], strict=False)), times
        wait_for(lambda: _left(fermi, handle) == ["4", "4"], "two that ended keep their places", 10)
        backend.remove([handle])
        wait_for(lambda: any(one.seen is Seen.REMOVED and one.index == 11 for one in events(handle)), "it is gone", 40)
        for index in began:  # HTCondor says of these, too, that they were removed: they had ended
            state = State.WAITING
            for one in events(handle):
                state = next_state(state, one.seen) if one.index == index else state
            assert state is State.ENDED


def test_limits_bans_and_priority_reach_jobs_that_are_made_and_those_to_come(fermi: Pool, job_folder: Path) -> None:
    batch = write_batch(
        job_folder,
        "sleep 2; mkdir out",
        jobs=10,
        options={"places": 1},
        max_materialize=5,
        max_idle=4,
        requirements=GOOD,
    )
    with submitted(batch) as handle:
        bad = "sitef@127-0-0-1.fermigrid.test"
        backend.adjust([(handle, Allowed(4, 0, 4, 7, (bad,)))])
        backend.adjust([(handle, Allowed(4, 0, 4, 7, (bad,)))])  # again is harmless
        told = fermi.run(
            "fermi", "condor_q", str(handle.cluster), "-autoformat", "JobPrio", "JobMaterializeLimit"
        ).stdout
        assert set(told.split("\n")) - {""} == {"7 4"}
        wait_until_seen(handle, Seen.ENDED, 10, limit=120)
        started = [one for one in events(handle) if one.seen is Seen.STARTED]
        late = [one for one in started if one.index >= 5]  # made after the ban; of the others some were matched before
        assert late and all(bad not in one.host for one in late)
    backend.adjust([(handle, Allowed(1, 0, 1))])  # it has left the queue


def test_a_campaign_is_changed_while_it_goes_on(product: Product) -> None:
    product.write("sites/mine.yaml", SITE)
    product.write("c.yaml", CAMPAIGN)
    product.run("submit", "c.yaml", "--site", "mine", "--sites", "sites", "--run-dir", "run")
    said = product.run("set", "run", "limits.running=2", "sites.mine=drain").stderr
    assert "limits.running = 2 (was 4)" in said
    assert "mine is drained: no new work goes there" in said
    assert "drained: mine" in product.run("status", "run").stdout
    first, *rest = product.run("why", "run", "go.0011").stdout.splitlines()
    assert first.startswith("go.0011: ") and [line.split(":")[0] for line in rest] == ["  mine is drained"]
    product.run("set", "run", "sites.mine=undrain")
    node = "sitef@127-0-0-1.fermigrid.test"
    assert f"no more jobs to {node} of mine" in product.run("ban", "run", node, "--why", "a test").stdout
    product.run("watch", "run", timeout=150)
    seen = read_logs(product.folder / "run")
    assert (len(seen.starts), seen.running <= 4) == (12, True)
    history = product.run("status", "run", "--history").stdout
    assert "set limits.running = 2 (was 4); mine is drained" in history
    assert "banned sitef" in history
