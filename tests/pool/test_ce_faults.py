"""A CE that is killed, stands still, refuses a job or a person: fermigrid's jobs there wait or are held, in words, and go on.

Each needs a CE of its own to break: a private pool with `start grid`.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.pool.conftest import START_LIMIT_S, Pool, call_pool, describe
from tests.pool.l1 import audit, copy_example
from tests.pool.product import UID, Product
from tests.pool.sites import finish, printed, report, send, site_like, state, wait_for, wait_for_words, wait_until, why

pytestmark = pytest.mark.pool
SITE = "pool-ce"


@pytest.fixture(scope="module")
def broken() -> Iterator[Pool]:
    """A pool of this module's own, with a second schedd."""
    folder = Path("/tmp") / f"fermigrid-ce-faults-{os.getpid()}"
    done = call_pool(folder, "start", "grid", timeout=START_LIMIT_S)
    assert done.returncode == 0, done.stderr
    yield describe(folder)
    call_pool(folder, "clean")


@pytest.fixture
def product(broken: Pool, request: pytest.FixtureRequest) -> Product:
    """fermigrid in a folder of its own, as the pool's user fermi."""
    folder = broken.work / request.node.name.partition("[")[0][-40:]
    shutil.copytree(broken.env["_CONDOR_SEC_TOKEN_DIRECTORY"], folder / "tokens")
    for path in (folder, folder / "tokens", *(folder / "tokens").iterdir()):
        os.chown(path, UID, UID)
    return Product(broken, folder, folder / "tokens")


def daemon(pool: Pool, name: str) -> int:
    """The process id, on this machine, of the pool's `ce` or `schedd` or `gridmanager`."""
    first = int((pool.directory / "pid").read_text().split()[0])
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            ours = (folder / "ns/pid").readlink() == Path(f"/proc/{first}/ns/pid").readlink()
        except OSError:
            continue
        program, is_ce = Path(words[0]).name, "scheddce" in words
        wanted = {"ce": ("condor_schedd", True), "schedd": ("condor_schedd", False)}
        if ours and (program, is_ce) == wanted.get(name, (f"condor_{name}", False)):
            return int(folder.name)
    raise ProcessLookupError(name)


def is_there(pool: Pool, name: str, other_than: int = 0) -> bool:
    """Whether the daemon runs, as another process than one that was known."""
    try:
        return daemon(pool, name) != other_than
    except ProcessLookupError:
        return False


def kill(pool: Pool, name: str) -> None:
    """SIGKILL to a daemon, which the pool's master starts again."""
    before = daemon(pool, name)
    os.kill(before, signal.SIGKILL)
    if name != "gridmanager":  # the schedd starts that one when it has jobs for it
        wait_until(f"{name} is back", lambda: is_there(pool, name, before))


def configure_ce(pool: Pool, *lines: str) -> None:
    """Settings of the CE's schedd in place of those that this set before, in force when it returns."""
    (pool.directory / "etc/config.d/grid-fault").write_text("".join(f"scheddce.{line}\n" for line in lines))
    done = call_pool(pool.directory, "exec", "condor_reconfig", "-name", "ce@fermigrid.test", "-schedd")
    assert done.returncode == 0, done.stderr


def switch_ce(pool: Pool, command: str) -> None:
    """`condor_off` ends the CE's schedd, `condor_on` starts it again."""
    fast = ("-fast",) if command == "condor_off" else ()
    done = call_pool(pool.directory, "exec", command, *fast, "-daemon", "SCHEDDCE")
    assert done.returncode == 0, done.stderr
    wait_until(f"{command} is done", lambda: is_there(pool, "ce") == (command == "condor_on"))


def test_a_killed_ce_loses_no_job(broken: Pool, product: Product) -> None:
    site = site_like(product, SITE, "ce-a", ("requirements: HasSingularity", 'requirements: GLIDEIN_Site == "SITEA"'))
    send(product, "killed", site, "sh", "-c", "sleep 15; cat /etc/fermigrid-image")
    wait_for(product, "killed", "running")
    kill(broken, "ce")
    finish(product, "killed")
    assert printed(product, "killed") == ["light-1"]
    assert report(product, "killed")["start"] == 1


def test_a_ce_that_is_down_is_said_and_its_jobs_go_on_when_it_is_back(broken: Pool, product: Product) -> None:
    switch_ce(broken, "condor_off")
    try:
        send(product, "down", SITE, "cat", "/etc/fermigrid-image")
        told = wait_for_words(product, "down", "has not answered for")
        assert "nothing is lost" in told
        assert state(product, "down") == "waiting"
    finally:
        switch_ce(broken, "condor_on")
    finish(product, "down")
    assert printed(product, "down") == ["light-1"]


def test_a_ce_that_refuses_a_job_holds_it_with_its_own_words(broken: Pool, product: Product) -> None:
    configure_ce(
        broken,
        "SUBMIT_REQUIREMENT_NAMES = Small",
        "SUBMIT_REQUIREMENT_Small = RequestMemory < 5000",
        'SUBMIT_REQUIREMENT_Small_REASON = "no jobs above 5 GB here"',
    )
    try:
        send(product, "big", SITE, "cat", "/etc/fermigrid-image", options=("--memory", "6GiB"))
        wait_for(product, "big", "held")
        assert "no jobs above 5 GB here" in wait_for_words(product, "big", "the CE refused the job")
    finally:
        configure_ce(broken)
    product.run("release", "big")
    finish(product, "big")
    assert printed(product, "big") == ["light-1"]


@pytest.mark.drill
def test_a_ce_that_does_not_let_us_in_is_tried_until_it_does(broken: Pool, product: Product) -> None:
    """No release by a person: fermigrid's policy goes on, and nothing leaves the queue meanwhile."""
    configure_ce(broken, "DENY_WRITE = *")
    try:
        send(product, "denied", SITE, "cat", "/etc/fermigrid-image")
        wait_for(product, "denied", "held")
        wait_for_words(product, "denied", "the CE does not let you in")
    finally:
        configure_ce(broken)
    finish(product, "denied")
    assert printed(product, "denied") == ["light-1"]


@pytest.mark.drill
def test_a_refused_job_leaves_the_queue_with_the_ces_words(broken: Pool, product: Product) -> None:
    configure_ce(
        broken,
        "SUBMIT_REQUIREMENT_NAMES = None_",
        "SUBMIT_REQUIREMENT_None_ = false",
        'SUBMIT_REQUIREMENT_None__REASON = "closed for good"',
    )
    try:
        send(product, "refused", SITE, "true")
        wait_for(product, "refused", "removed", 2400)
        assert "closed for good" in why(product, "refused")
    finally:
        configure_ce(broken)


@pytest.mark.drill
def test_everything_is_killed_in_turn_and_the_campaign_audits_clean(broken: Pool, product: Product) -> None:
    """fermigrid, both schedds and the gridmanager, again and again: nothing is lost, nothing is there twice."""
    runs = 60
    copy_example(product, runs)
    arguments = ("l1/campaign.yaml", "--site", SITE, "--set", "events_file=/cvmfs/fermi.test/data/lat_events.fits.gz")
    for turn in range(6):
        process = product.start("submit", *arguments, "--run-dir", "run", "--wait")
        for name in ("gridmanager", "ce", "schedd")[: 1 + turn % 3]:
            wait_until(f"there is a {name}", partial(is_there, broken, name))
            kill(broken, name)
        process.kill()
        process.communicate()
    done = product.run("submit", *arguments, "--run-dir", "run", "--wait", timeout=900)
    assert f"{runs} jobs, {runs} done" in done.stdout
    result = audit(product)
    assert result.returncode == 0, result.stdout + result.stderr
