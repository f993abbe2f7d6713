"""Retries and holds on a real HTCondor: memory grows in the queue, held jobs are in nobody's way, a rule of a payload's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.pool.conftest import Pool, call_pool
from tests.pool.product import Product
from tests.pool.sites import wait_until

pytestmark = pytest.mark.pool

SITE = """site: mixed
title: nodes with a policy of their own
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {requirements: 'GLIDEIN_Site == "SITEA" || GLIDEIN_Site == "SITEF"', late_above: 1, max_materialize: 2}
container: {launch: worker}
output: {kind: transfer}
"""
# What administrators of real pools do: a job over its memory is held by the machine, with subcode 102. The campaign's name
# keeps it from the jobs of other tests. Subcode 7 stands for any policy that lets certain jobs not run.
POLICY = """
FERMI_HUNGRY = ((TARGET.FermigridCampaign ?: "") == "hungry" && (TARGET.MemoryUsage ?: 0) > Memory)
FERMI_UNWANTED = ((TARGET.FermigridCampaign ?: "") == "picky" && member(TARGET.FermigridJob ?: "", {"go.0000", "go.0001"}))
PREEMPT = $(FERMI_HUNGRY) || $(FERMI_UNWANTED)
WANT_HOLD = $(PREEMPT)
WANT_HOLD_REASON = ifThenElse($(FERMI_HUNGRY), "memory usage exceeded what was asked for", "this node does not want it")
WANT_HOLD_SUBCODE = ifThenElse($(FERMI_HUNGRY), 102, 7)
POLLING_INTERVAL = 1
"""
CAMPAIGN = """campaign: {name}
image: light
code: [go.sh]
runs: {{count: {jobs}}}
steps:
  go:
    command: [go.sh]
    outputs: {{out.txt: "{{run}}.txt"}}
    resources: {{memory: {memory}}}
retries:
  max: {most}
  rules: {rules}
"""


@pytest.fixture
def policy(pool: Pool) -> Iterator[Path]:
    """The nodes have a policy of their own, for the length of the test."""
    file = pool.directory / "etc/config.d/90-retries"
    file.write_text(POLICY)
    reconfigure(pool)
    yield file
    file.unlink(missing_ok=True)
    reconfigure(pool)


def reconfigure(pool: Pool) -> None:
    """A pool that has just begun does not know all its masters yet."""
    told = ("exec", "condor_reconfig", "-all")
    wait_until("all daemons read their settings", lambda: call_pool(pool.directory, *told).returncode == 0)


def submit(product: Product, name: str, script: str, code: int = 0, **values: Any) -> dict[str, Any]:
    """The campaign to its end; its standing."""
    product.write("sites/mixed.yaml", SITE)
    product.write("go.sh", f"#!/bin/bash\n{script}\necho good > out.txt\n").chmod(0o755)
    filled = {"jobs": 1, "memory": "2 GiB", "most": 3, "rules": "[]", **values}
    product.write("campaign.yaml", CAMPAIGN.format(name=name, **filled))
    product.run("submit", "campaign.yaml", "--site", "mixed", "--sites", "sites", "--wait", timeout=120, code=code)
    return standing(product, name)


def standing(product: Product, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(product.run("status", name, "--json").stdout)
    return found


HUNGRY = """s=$(head -c 300000000 /dev/zero | tr '\\0' x)
case $FERMIGRID_ATTEMPT in *.s1.*) sleep 60 ;; esac
echo ${#s}"""


SLOW = "case $FERMIGRID_JOB in go.0000 | go.0001) sleep 6 ;; esac"


def test_a_job_held_for_want_of_memory_gets_more_in_the_queue(product: Product, policy: Path) -> None:
    """It asks for 256 MiB and uses more: held by the machine, released with more by the schedd, good. One generation."""
    found = submit(product, "hungry", HUNGRY, memory="256 MiB")
    assert found["states"]["done"] == 1
    assert [batch["name"] for batch in found["batches"]] == ["hungry.b0000.go.g0"]
    (ledger,) = product.folder.rglob("ledger.sqlite")
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as db:
        ((tries, starts),) = db.execute("SELECT times, starts FROM tried JOIN job ON job = name").fetchall()
    assert (1 <= tries <= 3, starts) == (True, tries + 1), "each release counts"


def test_held_jobs_are_in_nobodys_way_and_a_person_decides(product: Product, policy: Path) -> None:
    """The queue has room for two jobs of the batch, and the first two are held: the rest flows all the same."""
    rules = "[{when: {hold: 21/7}, do: ask}]"
    found = submit(product, "picky", SLOW, code=1, jobs=6, rules=rules)
    assert (found["states"]["done"], found["states"]["held"]) == (4, 2)
    assert [(one["job"], one["why"]) for one in found["asked"]] == [("go.0000", "hold 21/7"), ("go.0001", "hold 21/7")]
    why = product.run("why", "picky", "go.0001").stdout
    assert "it left the queue, and waits for a person" in why and "this node does not want it" in why
    policy.unlink()
    reconfigure(product.pool)
    product.run("retry", "picky", "--job", "go.0000")
    assert "removed: 1 job" in product.run("remove", "picky", "--job", "go.0001").stdout
    product.run("watch", "picky", code=1)
    found = standing(product, "picky")
    assert (found["states"]["done"], found["states"]["removed"], found["states"]["held"]) == (5, 1, 0)


def test_rules_for_a_payloads_own_codes_and_a_kill(product: Product) -> None:
    """Exit 42 begins anew in the queue; a KILL is taken for want of memory, and gets more in a new generation."""
    script = """case $FERMIGRID_JOB.$FERMIGRID_ATTEMPT in
go.0000.g0.s1.*) exit 42 ;;
go.0001.g0.*) kill -KILL $$ ;;
go.0002.*) exit 3 ;;
esac"""
    found = submit(product, "own", script, code=1, jobs=3, rules="[{when: {exit: 42}, do: other-node}]")
    assert (found["states"]["done"], found["states"]["failed"]) == (2, 1)
    assert [batch["name"] for batch in found["batches"]] == ["own.b0000.go.g0", "own.b0000.go.g1"]
    (submit_file,) = product.folder.rglob("go.g1/plan/job.sub")
    assert "fg_memory      = 3072\n" in submit_file.read_text()
    assert "it was started 2 times" in product.run("why", "own", "go.0000").stdout
