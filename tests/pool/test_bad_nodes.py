"""One node without a container runtime among good ones: it takes few jobs, all jobs get done, and it is named."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.pool.product import Product

pytestmark = pytest.mark.pool

SITE = """site: mixed
title: good nodes, and one without a runtime
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {requirements: 'GLIDEIN_Site == "SITEA" || GLIDEIN_Site == "SITED" || GLIDEIN_Site == "SITEF"'}
container: {launch: worker%s}
output: {kind: transfer}
"""
JOBS, SLOTS = 40, 4  # short jobs; how many the bad node takes at once
BACKOFF_S = 8


def run(product: Product, backoff: str) -> tuple[str, dict[str, Any]]:
    """The campaign to its end: what the person reads, and its standing."""
    product.write("sites/mixed.yaml", SITE % backoff)
    done = product.command("mixed", "light", ["sleep", "1"], "--sites", "sites", "--jobs", str(JOBS), timeout=300)
    return done.stdout, json.loads(product.run("status", "one", "--json").stdout)


@pytest.mark.fault(
    fault="one node of several has no runtime",
    mode="worker",
    does="waits before it ends, so that the node takes few jobs",
    code=81,
)
def test_a_bad_node_does_not_drain_the_queue(product: Product) -> None:
    began = time.monotonic()
    said, standing = run(product, f", backoff: {BACKOFF_S} s")
    rounds = 1 + (time.monotonic() - began) / BACKOFF_S  # for as long as there were jobs
    assert standing["states"]["done"] == JOBS
    ((bad, code, times),) = [(node["host"], node["code"], node["times"]) for node in standing["nodes"]]
    assert bad.startswith("sited@") and code == 81
    assert 1 <= times <= min(SLOTS * rounds, JOBS / 2), "it took job after job"
    if times >= 3:
        assert f"nodes that keep failing: {bad} (81 no container runtime: {times} times)" in said
    whys = [product.run("why", "one", f"command.{number:04}").stdout for number in range(12)]
    assert all("accepted" in words for words in whys)
    assert any("it was started 2 times" in words for words in whys)


@pytest.mark.drill
def test_without_a_back_off_it_takes_many(product: Product) -> None:
    """What the back-off is for; the job's own way out (elsewhere) still gets all of them done."""
    said, standing = run(product, "")
    (bad,) = standing["nodes"]
    assert standing["states"]["done"] == JOBS
    assert bad["times"] > 2 * SLOTS
    assert "nodes that keep failing: sited@" in said
