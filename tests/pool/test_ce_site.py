"""fermigrid through a second schedd that stands for an HTCondor-CE: the same campaigns, by HTCondor's grid universe.

The engine is `ci/pool start grid`, the site `pool-ce`, which that writes. What the gridmanager does by itself is shown by
test_grid_engines.py; a CE that is down or refuses by test_ce_faults.py.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.pool.conftest import START_LIMIT_S, Pool, call_pool, describe
from tests.pool.l1 import audit, copy_example, submit_example
from tests.pool.product import Product
from tests.pool.sites import finish, printed, report, send, site_like, state, wait_for, wait_for_words, wait_until, why

pytestmark = [pytest.mark.pool, pytest.mark.usefixtures("grid")]
CE = "ce@fermigrid.test"
SITE = "pool-ce"
STAY = ("sh", "-c", "trap 'exit 143' TERM; cat /etc/fermigrid-image; sleep 300 & wait")


@pytest.fixture(scope="module")
def grid(running_pool: Pool) -> Pool:
    """The pool of this test run, with a second schedd."""
    done = call_pool(running_pool.directory, "start", "grid", timeout=START_LIMIT_S)
    assert done.returncode == 0, done.stderr
    return describe(running_pool.directory)


def at_ce(product: Product, name: str, *attributes: str) -> list[str]:
    """Attributes of a campaign's jobs in the CE's queue, a job a line, its number there first."""
    log = (product.folder / name / "blocks/b0000/events.log").read_text()
    numbers = set(re.findall(rf"GridJobId: condor {CE} \S+ (\d+)\.\d+", log))
    done = product.pool.run(
        "fermi", "condor_q", "-name", CE, *sorted(numbers or {"0"}), "-af", "ClusterId", *attributes
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def change_at_ce(product: Product, name: str, command: str) -> None:
    """`condor_rm` or `condor_hold` at the CE itself, behind the back of the schedd here."""
    number = at_ce(product, name)[0].split()[0]
    done = product.pool.run("fermi", command, "-name", CE, number)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("runs", [24, pytest.param(200, marks=pytest.mark.drill)])
def test_the_example_campaign_through_a_ce_audits_clean(product: Product, runs: int) -> None:
    copy_example(product, runs)
    assert f"{runs} jobs, {runs} done" in submit_example(product, SITE)
    result = audit(product)
    assert result.returncode == 0, result.stdout + result.stderr
    next(path for path in (product.folder / "run/outputs").rglob("*.fit")).unlink()
    assert audit(product).returncode == 1


def test_a_ce_that_nobody_knows_is_waited_for_and_said(product: Product) -> None:
    (pool,) = re.findall(r'pool: "(.*)"', (product.pool.directory / f"sites/{SITE}.yaml").read_text())
    wrong = {
        "ce": (CE, "nosuch", f"the collector {pool} knows no schedd nosuch"),
        "pool": (pool, "127.0.0.1:9", "the collector 127.0.0.1:9 does not answer"),
    }
    for key, (old, new, said) in wrong.items():
        site = site_like(product, SITE, f"ce-wrong-{key}", (old, new))
        send(product, key, site, "true")
        assert "nothing is lost" in wait_for_words(product, key, "has not answered for")
        wait_for_words(product, key, f"{said} (htcondor.grid.{key}, {product.folder}/sites/{site}.yaml:7)")
        product.run("remove", key)
        wait_for(product, key, "removed")


@pytest.mark.parametrize("launch", ["site", pytest.param("worker", marks=pytest.mark.drill)])
def test_a_job_gets_all_that_it_asks_for_and_gives_all_back(product: Product, launch: str) -> None:
    changes = [("requirements: HasSingularity", 'requirements: GLIDEIN_Site == "SITEA"')]
    if launch == "worker":
        changes.append(("launch: site\n  dialect: self-healing", "launch: worker"))
    site = site_like(product, SITE, "ce-a", *changes)
    product.write("lib/words.txt", "from the bundle\n")
    product.write(
        "show.sh",
        """#!/bin/sh
echo to-stdout; echo to-stderr >&2
cat lib/words.txt /etc/fermigrid-image > out.txt; printf '%s|' "$@" "$ODD" >> out.txt
exit 0
""",
    )
    product.write(
        "c.yaml",
        """campaign: full
image: light
code: [show.sh, lib]
runs: {count: 3}
steps:
  go:
    command: [./show.sh, "a b", "$HOME", "&(x)", "`id`"]
    outputs: {out.txt: "{run}/out.txt"}
    environment: {ODD: "`id` \\\\"}
    resources: {cpus: 2, memory: 1500 MiB, disk: 256 MiB, walltime: 90 min}
""",
    )
    product.run("submit", "c.yaml", "--site", site, "--sites", "sites", "--run-dir", "full", "--wait")
    assert {"to-stdout", "to-stderr"} <= set(product.log("full", "go.0001"))
    expected = "from the bundle\nlight-1\na b|$HOME|&(x)|`id`|`id` \\|"
    texts = [path.read_text() for path in (product.folder / "full/outputs").rglob("out.txt")]
    assert texts == [expected] * 3
    found = product.reports("full", "go.0001")[-1]
    assert (found["container"], found["exit"], found["start"]) == (launch, 0, 1)


def test_the_ce_is_told_time_memory_and_cpus(product: Product) -> None:
    """In the words of an HTCondor-CE's routes: minutes and seconds of the walltime and five minutes' patience."""
    site = site_like(product, SITE, "ce-told", ("pool: ", "attributes: {queue: '\"long\"'}, pool: "))
    asked = ("--cpus", "2", "--memory", "1500MiB", "--walltime", "90min")
    send(product, "told", site, *STAY, options=asked)
    wait_for(product, "told", "running")
    names = ("maxWallTime", "BatchRuntime", "AllowedExecuteDuration", "RequestCpus", "RequestMemory", "queue")
    assert at_ce(product, "told", *names)[0].split()[1:] == ["95", "5700", "5700", "2", "1500", "long"]
    product.run("remove", "told")
    wait_until("the CE has it no more", lambda: not at_ce(product, "told"))
    assert state(product, "told") == "removed"


def test_a_failure_of_the_machine_is_tried_again_there(product: Product) -> None:
    """The policy travels: the CE's own schedd starts the job again, on another machine."""
    place = product.pool.directory / "sps" / product.folder.name
    product.write(
        "c.yaml",
        f"""campaign: again
image: light
runs: {{count: 1}}
steps:
  command:
    command: [cat, in.txt]
    inputs: {{in.txt: /sps/{place.name}}}
retries: {{max: 3}}
""",
    )
    site = site_like(
        product, SITE, "ce-f", ("launch: site\n  dialect: self-healing", "launch: worker\n  limits: {path: 5 s}"),
    )  # fmt: skip
    product.run("submit", "c.yaml", "--site", site, "--sites", "sites", "--run-dir", "again")
    wait_until(
        "it failed once", lambda: [n for n in at_ce(product, "again", "NumJobCompletions") if n.split()[1] == "1"]
    )
    place.write_text("there it is\n")
    place.chmod(0o644)
    finish(product, "again")
    assert printed(product, "again") == ["there it is"]
    assert report(product, "again")["start"] > 1


def test_a_broken_image_heals_itself_behind_a_ce(product: Product) -> None:
    site = site_like(
        product, SITE, "ce-heal", ("requirements: HasSingularity", 'requirements: GLIDEIN_Site == "SITEA"')
    )
    send(product, "heal", site, "cat", "/etc/fermigrid-image", image="light-broken")
    finish(product, "heal")
    assert printed(product, "heal") == ["light-1"]
    found = report(product, "heal")
    assert (found["container"], found["start"]) == ("worker", 2)


def test_people_hold_release_and_remove_jobs_there(product: Product) -> None:
    send(product, "people", SITE, *STAY)
    wait_for(product, "people", "running")
    assert "there it runs on slot1" in wait_for_words(product, "people", "there it runs")
    product.run("hold", "people")
    wait_for(product, "people", "held")
    wait_until("it is held there", lambda: [n for n in at_ce(product, "people", "JobStatus") if n.split()[1] == "5"])
    product.run("release", "people")
    wait_until("it runs there", lambda: [n for n in at_ce(product, "people", "JobStatus") if n.split()[1] == "2"])
    assert "removed: 1 job" in product.run("remove", "people").stdout
    wait_until("the CE has it no more", lambda: not at_ce(product, "people"))


def test_a_job_that_the_ce_lost_is_held_in_words_and_handed_over_anew(product: Product) -> None:
    send(product, "lost", SITE, "sh", "-c", "cat /etc/fermigrid-image; [ -e /sps/go ] || sleep 20")
    wait_for(product, "lost", "running")
    change_at_ce(product, "lost", "condor_rm")
    wait_for(product, "lost", "held")  # by the event log, which is seconds before the queue
    assert "Job disappeared from remote schedd" in why(product, "lost")
    told = wait_for_words(product, "lost", "held: Job disappeared from remote schedd")
    assert "the CE does not know the job any more" in told
    assert "handed over anew" in told
    product.run("release", "lost")
    finish(product, "lost")
    assert printed(product, "lost") == ["light-1"]


def test_a_job_that_the_ce_holds_is_held_with_its_words(product: Product) -> None:
    send(product, "held", SITE, *STAY)
    wait_for(product, "held", "running")
    change_at_ce(product, "held", "condor_hold")
    wait_for(product, "held", "held")
    assert "via condor_hold (by user fermi)" in wait_for_words(product, "held", "a person held it")
    product.run("release", "held")
    wait_for(product, "held", "running")
    product.run("remove", "held")


def test_a_job_that_waits_there_is_explained_by_the_ces_own_machines(product: Product) -> None:
    site = site_like(
        product, SITE, "ce-none", ("requirements: HasSingularity", 'requirements: GLIDEIN_Site == "SITEX"')
    )
    send(product, "none", site, "true")
    told = wait_for_words(product, "none", "SITEX")
    assert f"{CE} " in told
    assert "there it waits, for" in told
    assert re.search(r"none of the pool's slots \(\d+\) can ever run it", told)
    product.run("remove", "none")


@pytest.mark.drill
def test_a_container_that_no_machine_there_can_start_is_given_up(product: Product) -> None:
    """Dialect plain does not heal itself: after five bad starts the CE's policy ends it, with its words."""
    site = site_like(
        product, SITE, "ce-plain",
        ("requirements: HasSingularity", 'requirements: GLIDEIN_Site == "SITEA"'), ("self-healing", "plain"),
    )  # fmt: skip
    send(product, "never", site, "true", image="light-broken")
    finish(product, "never", code=1)
    assert "no machine could start the container, 5 tried" in why(product, "never")


@pytest.mark.drill
def test_jobs_that_are_made_late_go_through_a_ce(product: Product) -> None:
    late = site_like(
        product, SITE, "ce-late", ("  requirements:", "  late_above: 2\n  max_materialize: 3\n  requirements:")
    )
    product.write("c.yaml", "campaign: late\nimage: light\nruns: {count: 9}\nsteps: {go: {command: ['true']}}\n")
    done = product.run("submit", "c.yaml", "--site", late, "--sites", "sites", "--run-dir", "late", "--wait")
    assert "9 jobs, 9 done" in done.stdout


def test_a_submission_that_was_cut_short_is_adopted_and_not_repeated(product: Product) -> None:
    """fermigrid ends between sending and writing down: the batch is found again, with its jobs at the CE."""
    site = site_like(product, SITE, "ce-cut")
    product.write("c.yaml", "campaign: cut\nimage: light\nruns: {count: 4}\nsteps: {go: {command: ['true']}}\n")
    process = product.start("submit", "c.yaml", "--site", site, "--sites", "sites", "--run-dir", "cut")
    ledger = product.folder / "cut/ledger.sqlite"
    wait_until("something was sent or intended", lambda: ledger.exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    product.run("submit", "c.yaml", "--site", site, "--sites", "sites", "--run-dir", "cut", "--wait")
    listed = json.loads(product.run("status", "cut", "--json").stdout)
    assert listed["states"]["done"] == 4
    submitted = (product.folder / "cut/blocks/b0000/events.log").read_text().count("Job submitted from host")
    assert submitted == 4
