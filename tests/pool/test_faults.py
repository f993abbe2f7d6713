"""Faults of the batch system under a campaign of several blocks and steps (docs/reference/faults.md), on a pool of their
own: the schedd goes, event logs are emptied, moved and incomplete, history is purged, a removal keeps the schedd silent."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.pool.batches import wait_for
from tests.pool.conftest import Pool, call_pool, pool_folder, product_in, shared_pool
from tests.pool.product import Product
from tests.pool.test_backend_htcondor_faults import schedd_of, settings, stopped

pytestmark = pytest.mark.pool
RUNS, JOBS = 4, 8
SITE = """\
site: mine
extends: pool
htcondor: {requirements: 'GLIDEIN_Site == "SITEA" || GLIDEIN_Site == "SITEB"', timeout: 3 s, settle: 1 s}
"""
CAMPAIGN = """\
campaign: faults
image: light
code: [go.sh]
runs: {count: 4}
block: 2
steps:
  go:
    command: [go.sh, "{run}"]
    outputs: {out.txt: "{run}.txt"}
  on:
    command: [go.sh, "{run}", "on"]
    after: [go]
    outputs: {out.txt: "{run}.on.txt"}
alerts: {silence: 1 s, metrics: METRICS}
"""


@pytest.fixture(scope="module")
def own_pool() -> Iterator[Pool]:
    """A pool whose schedd may be harmed, one for each process of pytest-xdist."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    folder = pool_folder().with_name(f"{pool_folder().name}-faults-{worker}")
    try:
        with shared_pool(folder) as running:
            yield running
    finally:
        call_pool(folder, "clean")


@pytest.fixture
def product(own_pool: Pool, request: pytest.FixtureRequest) -> Product:
    folder = own_pool.work / re.sub("[^a-z0-9]+", "-", request.node.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    made = product_in(own_pool, folder)
    made.write("sites/mine.yaml", SITE)
    return made


def begin(product: Product, seconds: int) -> Path:
    """The campaign, sent; its jobs run so long."""
    product.write("go.sh", f'#!/bin/bash\nsleep {seconds}\necho "$*" > out.txt\n').chmod(0o755)
    (metrics := product.folder / "metrics").mkdir()
    os.chown(metrics, product.uid, product.uid)
    product.write("c.yaml", CAMPAIGN.replace("METRICS", str(metrics)))
    product.run("submit", "c.yaml", "--site", "mine", "--sites", "sites", "--run-dir", "run")
    return product.folder / "run"


def rows(run: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


def states(product: Product) -> dict[str, int]:
    product.run("watch", "run", "--once", code=None)
    return Counter(
        str(state) for (state,) in rows(product.folder / "run", "SELECT state FROM job WHERE retired IS NULL")
    )


def check(product: Product, run: Path, batches: int = 4) -> None:
    """Every job has one result, each batch was sent once, and the outputs are those of their jobs."""
    accepted = Counter(name for (name,) in rows(run, "SELECT job FROM attempt WHERE accepted = 1 AND retired IS NULL"))
    assert (len(accepted), set(accepted.values())) == (JOBS, {1})
    history = [what for (what,) in rows(run, "SELECT what FROM journal WHERE what LIKE 'submitted batch%'")]
    assert len(history) == len(set(history)) == batches
    found = {file.name: file.read_text() for file in (run / "outputs").iterdir() if file.is_file()}
    names = [str(name) for (name,) in rows(run, "SELECT job FROM attempt WHERE job LIKE 'go.%' AND accepted = 1")]
    runs = {name.removeprefix("go.") for name in names}
    assert found == {f"{r}.txt": f"{r}\n" for r in runs} | {f"{r}.on.txt": f"{r} on\n" for r in runs}
    product.run("status", "run", "--check")
    product.run("audit", "run")


@contextmanager
def without_schedd(pool: Pool) -> Iterator[None]:
    """The schedd is dead and does not come back: the one who would start it is stopped."""
    master = int((pool.directory / "pid").read_text().split()[0])
    schedd = schedd_of(pool)
    with stopped(master):
        os.kill(schedd, signal.SIGKILL)
        yield
    wait_for(lambda: schedd_of(pool) not in (0, schedd), "a new schedd")
    wait_for(lambda: call_pool(pool.directory, "as", "fermi", "condor_q").returncode == 0, "it answers")


def test_a_schedd_that_is_gone_for_long(own_pool: Pool, product: Product) -> None:
    away(own_pool, product, 6)


@pytest.mark.drill
def test_a_schedd_that_is_gone_for_longer_than_its_jobs_wait_for_it(own_pool: Pool, product: Product) -> None:
    """As an hour is with the 40 minutes that HTCondor's jobs wait by default: the nodes give up, jobs start again."""
    with settings(own_pool, "JOB_DEFAULT_LEASE_DURATION = 20\n"):
        away(own_pool, product, 60, seconds=30)


def away(pool: Pool, product: Product, gone: float, seconds: int = 6) -> None:
    run = begin(product, seconds)
    wait_for(lambda: states(product)["running"], "the first step runs")
    (metrics,) = (product.folder / "metrics").glob("*.prom")
    with without_schedd(pool):
        end, told = time.monotonic() + gone, False
        while time.monotonic() < end or not told:
            product.run("watch", "run", "--once", code=None, timeout=60)
            told = 'kind="silence"} 1' in metrics.read_text()
            assert f"{2 * RUNS} jobs" in product.run("status", "run", timeout=60).stdout
            time.sleep(0.5)
    product.run("watch", "run", timeout=150)
    assert 'kind="silence"} 1' not in metrics.read_text()
    check(product, run)


@pytest.mark.parametrize("fault", ["emptied", pytest.param("moved", marks=pytest.mark.drill)])
def test_event_logs_that_are_emptied_or_moved_while_they_are_followed(product: Product, fault: str) -> None:
    run = begin(product, 3)
    wait_for(lambda: states(product)["running"], "the first step runs")
    logs = [run / f"blocks/b000{number}/events.log" for number in range(2)]
    sizes = [log.stat().st_size for log in logs]
    for number, log in enumerate(logs):
        if fault == "emptied":
            os.truncate(log, number * sizes[number] // 2)
        else:
            log.rename(log.with_name("events.log.old"))
    wait_for(lambda: clusters_left(product, run) == 0, "the first step has left the queue")
    log = logs[0]  # what came since is as long as what was there: a rest that begins in the middle of nowhere
    if log.exists():
        text = log.read_bytes()
        log.write_bytes(text * (2 * sizes[0] // max(1, len(text)) + 1))
    said = product.run("watch", "run").stderr
    assert "another log is in its place" in said, said
    check(product, run)


def running(run: Path, block: str) -> int:
    query = f"SELECT count(*) FROM job JOIN batch b ON b.id = batch WHERE state = 'running' AND block = '{block}'"
    return int(str(rows(run, query)[0][0]))


def clusters_left(product: Product, run: Path) -> int:
    wanted = " ".join(str(cluster) for (cluster,) in rows(run, "SELECT cluster FROM batch"))
    told = product.pool.run("fermi", "condor_q", *wanted.split(), "-autoformat", "ClusterId")
    assert told.returncode == 0, told.stderr
    return len(told.stdout.split())


def test_events_that_never_reached_the_log_are_made_up_for(product: Product) -> None:
    """As on a disk that was full when HTCondor wrote: nothing in the log tells of it."""
    run = begin(product, 8)
    wait_for(lambda: states(product) and running(run, "b0001") == 2, "the second block runs")
    log = run / "blocks/b0001/events.log"
    aside = log.read_bytes()
    wait_for(lambda: clusters_left(product, run) == 0, "the first step has left the queue")
    log.write_bytes(aside)
    product.run("watch", "run", "--once", code=None)
    past = (datetime.now(UTC) - timedelta(minutes=29, seconds=58)).isoformat(timespec="seconds")
    wait_for(lambda: states(product) and not on_the_way(run), "all others have ended")
    assert running(run, "b0001") == 2
    with closing(sqlite3.connect(run / "ledger.sqlite")) as db:  # half an hour without an event
        db.execute("UPDATE watching SET changed = ?, looked = ?", (past, past))
        db.commit()
    time.sleep(3)
    said = product.run("watch", "run", "--once", code=None).stderr
    assert "of 2 jobs the event log did not tell all" in said
    product.run("watch", "run")
    check(product, run)


def on_the_way(run: Path) -> int:
    """Batches of the other block that are not done, or not there."""
    done = "SELECT count(*) FROM job WHERE batch = b.id AND state = 'done'"
    query = f"SELECT count(*) FROM batch b WHERE block = 'b0000' AND jobs = ({done})"
    return 2 - int(str(rows(run, query)[0][0]))


def test_a_history_that_was_purged_with_the_log(own_pool: Pool, product: Product) -> None:
    """Who ended is known by his report. Of who left without one nobody knows: unknown, and a person says what is done."""
    run = begin(product, 8)
    wait_for(lambda: states(product) and running(run, "b0000") == 2, "the first block runs")
    (cluster,) = rows(run, "SELECT cluster FROM batch WHERE block = 'b0000'")[0]
    product.pool.run("fermi", "condor_rm", f"{cluster}.0")
    wait_for(lambda: clusters_left(product, run) == 0, "the first step has left the queue")
    for number in (0, 1):
        (run / f"blocks/b000{number}/events.log").unlink()
    for file in (own_pool.directory / "state/spool").glob("history*"):
        file.write_bytes(b"")
    watch = product.run("watch", "run", code=1)
    assert "the event log is not there" in watch.stderr
    told = product.run("status", "run").stdout
    assert "1 unknown" in told, told + str(
        [(p.name, p.read_text()[-3000:]) for p in run.glob("blocks/b000[01]/*/work/*/*.log")]
    )
    assert rows(run, "SELECT name FROM job WHERE state IN ('failed', 'removed')") == []
    ((name,),) = rows(run, "SELECT name FROM job WHERE state = 'unknown'")
    product.run("retry", "run", "--job", str(name))
    product.run("watch", "run")
    check(product, run, 6)  # the merge of those that ended well did not wait for the one that nobody knew


def remove_many(pool: Pool, product: Product, jobs: int) -> None:
    """Each job is in the queue by itself, and none can start: the schedd is silent while it removes them."""
    site = SITE.replace("timeout: 3 s", f"late_above: {jobs}, timeout: LIMIT s")
    site = re.sub("requirements: '.*'", "requirements: 'GLIDEIN_Site == \"SITEX\"'", site)
    limit = 2 if jobs < 50_000 else 5
    product.write("sites/mine.yaml", site.replace("LIMIT", "300"))
    campaign = f"campaign: many\nimage: light\nblock: {jobs // 2}\nruns: {{count: {jobs}}}\nsteps: {{go: {{command: ['true']}}}}\n"
    product.write("c.yaml", campaign)
    product.run("submit", "c.yaml", "--site", "mine", "--sites", "sites", "--run-dir", "run", timeout=600)
    run = product.folder / "run"
    with closing(sqlite3.connect(run / "ledger.sqlite")) as db:
        db.execute("UPDATE batch SET options = json_set(options, '$.timeout_s', ?)", (limit,))
        db.commit()
    began, schedd = time.monotonic(), schedd_of(pool)
    remove = product.start("remove", "run")
    if jobs < 50_000:  # too few to be felt: it hangs in the middle instead
        wait_for(lambda: rows(run, "SELECT stopped FROM campaign WHERE stopped IS NOT NULL"), "it is being removed")
        with stopped(schedd):
            looks = ask_meanwhile(product, remove, limit)
    else:
        looks = ask_meanwhile(product, remove, limit)
    wait_for(lambda: look(product) and clusters_left_or_none(pool) == 0, "they have left the queue", 600)
    gone = time.monotonic() - began
    product.run("watch", "run", code=1, timeout=300)
    told = product.run("status", "run").stdout
    assert f"{jobs} jobs, {jobs} removed" in told
    assert "did not confirm" not in told
    print(f"{jobs} jobs, limit {limit} s: {looks}; after {gone:.1f} s none was in the queue")


def look(product: Product) -> bool:
    """A look of a timer, which asks again for a removal that was not confirmed."""
    product.run("watch", "run", "--once", code=None, timeout=300)
    return True


def ask_meanwhile(product: Product, remove: subprocess.Popen[str], limit: float) -> str:
    """`remove`, `status` and a look while the schedd is silent: each ends in time, and says how it is."""
    began = time.monotonic()
    out, err = remove.communicate(timeout=2 * limit + 60)
    times = [time.monotonic() - began]
    assert remove.returncode == 16, f"it had an answer: {out}{err}"
    assert f"no answer within {limit} s" in err
    assert "may be repeated without harm" in err
    told = product.run("status", "run", timeout=60).stdout
    times.append(time.monotonic() - began)
    assert "it was removed, and the batch system did not confirm it" in told
    said = product.run("watch", "run", "--once", code=None, timeout=120).stderr
    times.append(time.monotonic() - began)
    return f"remove, status and a look had ended after {times[0]:.1f}, {times[1]:.1f}, {times[2]:.1f} s ({said.count('no answer')} without an answer)"


def clusters_left_or_none(pool: Pool) -> int | None:
    done = call_pool(pool.directory, "as", "fermi", "condor_q", "-totals", timeout=600)
    found = re.search(r"Total for query: (\d+) jobs", done.stdout)
    return int(found[1]) if found else None


def test_a_schedd_that_does_not_answer_while_it_removes(own_pool: Pool, product: Product) -> None:
    remove_many(own_pool, product, 400)


@pytest.mark.drill
def test_a_schedd_that_does_not_answer_while_it_removes_100000(own_pool: Pool, product: Product) -> None:
    remove_many(own_pool, product, 100_000)
