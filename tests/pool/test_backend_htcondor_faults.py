"""The HTCondor backend when the schedd hangs, dies or says no. It has a pool of its own: others need theirs whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fermigrid.backends import Cursor, Handle, RenderedBatch
from fermigrid.backends import htcondor as backend
from fermigrid.errors import BackendUnavailable, SubmissionDoubt, SubmissionRefused
from fermigrid.states import Seen
from tests.pool.batches import states, wait_for, wait_until_seen, write_batch
from tests.pool.conftest import Pool, call_pool, pool_folder, shared_pool
from tests.pool.product import CHECKOUT

pytestmark = pytest.mark.pool
LIMIT = 2.0  # s that a call may take here


@pytest.fixture(scope="module")
def own_pool() -> Iterator[Pool]:
    """A pool whose schedd may be harmed, one for each process of pytest-xdist."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    folder = pool_folder().with_name(f"{pool_folder().name}-schedd-{worker}")
    try:
        with shared_pool(folder) as running:
            yield running
    finally:
        call_pool(folder, "clean")


@pytest.fixture
def folder(own_pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for jobs; this process is fermi in the pool of its own."""
    for name, value in own_pool.env.items():
        monkeypatch.setenv(name, value)
    made = own_pool.work / f"test-{time.monotonic_ns()}"
    made.mkdir()
    made.chmod(0o777)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def schedd_of(pool: Pool) -> int:
    """The schedd's process id: a child of the pool's master."""
    master = (pool.directory / "pid").read_text().split()[0]
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(") ")
        except OSError:
            continue
        if name == "condor_schedd" and rest.split()[1] == master:
            return int(stat.parent.name)
    return 0


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that hangs for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def settings(pool: Pool, text: str) -> Iterator[None]:
    """Other settings of the schedd for a while."""
    file = pool.directory / "etc/config.d/99-test"
    log = pool.directory / "log/SchedLog"

    def reconfigure() -> None:
        size = log.stat().st_size
        assert call_pool(pool.directory, "exec", "condor_reconfig").returncode == 0
        wait_for(lambda: b"Got SIGHUP" in log.read_bytes()[size:], "the schedd read its settings")

    file.write_text(text)
    reconfigure()
    try:
        yield
    finally:
        file.unlink()
        reconfigure()


def answers(batch: RenderedBatch) -> bool:
    """Whether the schedd answers again."""
    try:
        backend.find(replace(batch, event_log=batch.event_log.with_name("none"), options={"timeout_s": 2}))
    except BackendUnavailable:
        return False
    return True


def test_a_schedd_that_hangs_ends_every_call_in_time(own_pool: Pool, folder: Path) -> None:
    batch = write_batch(folder, "sleep 600", options={"timeout_s": LIMIT})
    handle = backend.submit(batch)
    wait_until_seen(handle, Seen.STARTED)
    new = write_batch(folder, options={"timeout_s": LIMIT})
    calls = {
        "submit": lambda: backend.submit(new),
        "find": lambda: backend.find(new),
        "explain": lambda: backend.explain(handle, 0),
        "remove": lambda: backend.remove([handle]),
        "hold": lambda: backend.hold([handle], [0]),
    }
    with stopped(schedd_of(own_pool)):
        for name, call in calls.items():
            began = time.monotonic()
            with pytest.raises(BackendUnavailable, match="no answer within 2 s") as error:
                call()
            assert time.monotonic() - began < LIMIT + 2, name
            assert error.value.hint, name
        began = time.monotonic()
        seen = backend.observe([handle], Cursor())
        assert time.monotonic() - began < 1
        assert [one.seen for one in seen.seen] == [Seen.SUBMITTED, Seen.STARTED]
        assert seen.problems == ()
        with batch.event_log.open("a") as log:
            log.write("rubbish\n...\n")
        damaged = backend.observe([handle], seen.cursor)
        assert damaged.seen == ()
        assert "no event begins here" in damaged.problems[0]
        assert "no answer within 2 s" in damaged.problems[1]
    wait_for(lambda: answers(batch), "the schedd answers again")
    assert backend.find(new) is None  # what ended before it was sent never arrives
    backend.remove([handle])


def test_a_dead_schedd_is_unavailable_and_comes_back(own_pool: Pool, folder: Path) -> None:
    batch = write_batch(folder, options={"timeout_s": LIMIT})
    with stopped(int((own_pool.directory / "pid").read_text().split()[0])):  # the master starts no other meanwhile
        os.kill(schedd_of(own_pool), signal.SIGKILL)
        with pytest.raises(BackendUnavailable, match="not sent"):
            backend.submit(batch)
    wait_for(lambda: answers(batch), "the schedd is back")
    assert backend.find(batch) is None
    handle = backend.submit(batch)
    wait_until_seen(handle, Seen.ENDED)


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
def test_a_schedd_killed_after_its_commit_is_asked_again(own_pool: Pool, folder: Path, late: bool) -> None:
    """The event log appears with the commit: the schedd dies at that moment, whether the answer left it or not."""
    jobs = 20_000 if late else 3_000
    limits = {"max_materialize": 10} if late else {}
    batch = write_batch(folder, jobs=jobs, requirements="false", **limits)
    pid = schedd_of(own_pool)

    def kill() -> None:
        while not batch.event_log.exists():
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        submitted: Handle | None = backend.submit(batch)
    except SubmissionDoubt:
        submitted = None
    killer.join(30)
    wait_for(lambda: answers(batch), "the schedd is back")
    by_log = backend.find(batch)
    batch.event_log.rename(folder / "events.away")
    by_queue = backend.find(batch)
    assert by_queue is not None
    assert by_log in (by_queue, None)
    assert submitted in (by_queue, None)
    backend.remove([by_queue])


def insist(batch: RenderedBatch) -> Handle:
    """Submit as fermigrid does: look for the batch after every failure, before it is sent again."""
    while True:
        try:
            return backend.submit(batch)
        except (SubmissionDoubt, BackendUnavailable):
            wait_for(lambda: answers(batch), "the schedd is back")
            if found := backend.find(batch):
                return found


@pytest.mark.drill
def test_no_kill_of_the_schedd_loses_or_doubles_a_batch(own_pool: Pool, folder: Path) -> None:
    choose = random.Random(20)
    late = {"max_materialize": 5}
    kinds: list[tuple[int, dict[str, int]]] = [(1, {}), (300, {}), (3000, {}), (3000, late), (50_000, late)]
    batches = [write_batch(folder, jobs=jobs, requirements="false", **more) for jobs, more in kinds * 6]
    with settings(own_pool, "MASTER_BACKOFF_CEILING = 1"):  # or the master waits longer after each
        for batch in batches:
            kill_and_insist(own_pool, batch, choose.uniform(0.05, 0.35))


def kill_and_insist(own_pool: Pool, batch: RenderedBatch, delay: float) -> None:
    """One submission with a schedd that dies after `delay` s: the batch is in the queue once."""
    pid = schedd_of(own_pool)
    killer = threading.Timer(delay, os.kill, (pid, signal.SIGKILL))
    killer.start()
    handle = insist(batch)
    killer.join()
    wait_for(lambda: schedd_of(own_pool) not in (0, pid), "another schedd")
    wait_for(lambda: answers(batch), "the schedd is back")
    assert clusters_of(own_pool, batch) == [str(handle.cluster)]
    assert backend.find(batch) == handle
    backend.remove([handle])


def test_an_answer_that_never_comes_is_doubt_and_then_found(
    own_pool: Pool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call's process hangs from the moment at which the batch is committed: as if the network had gone."""
    batch = write_batch(folder, jobs=5, requirements="false", options={"timeout_s": LIMIT})
    hook = folder / "sitecustomize.py"
    hook.write_text(
        "import os, signal\n"
        "try:\n    import htcondor2\nexcept ImportError:\n    pass\n"
        "else:\n"
        "    submit = htcondor2.Schedd.submit\n"
        "    def lost(*args, **more):\n"
        "        submit(*args, **more)\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    htcondor2.Schedd.submit = lost\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    began = time.monotonic()
    with pytest.raises(SubmissionDoubt, match="it was sent and no answer came: no answer within 2 s") as doubt:
        backend.submit(batch)
    assert time.monotonic() - began < LIMIT + 2
    assert "fermigrid submit" in doubt.value.hint
    found = backend.find(batch)
    assert found is not None
    assert states(found, 4) == [Seen.SUBMITTED]
    backend.remove([found])


def clusters_of(own_pool: Pool, batch: RenderedBatch) -> list[str]:
    """The clusters in the queue that carry the batch."""
    told = own_pool.run("fermi", "condor_q", "-constraint", f'FermigridBatch == "{batch.batch_id}"', "-af", "ClusterId")
    assert told.returncode == 0, told.stderr
    return sorted(set(told.stdout.split()))


def submit_elsewhere(batch: RenderedBatch) -> subprocess.Popen[bytes]:
    """`backend.submit` in a process that the test may kill."""
    program = (
        "from pathlib import PosixPath\n"
        "from fermigrid.backends import RenderedBatch, htcondor\n"
        f"htcondor.submit({batch!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    except OSError:
        return True


def test_nothing_is_submitted_after_fermigrid_was_killed(
    own_pool: Pool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call's process stands just before the batch leaves, fermigrid is killed, then nothing keeps it back."""
    batch = write_batch(folder, jobs=5, requirements="false")
    here, go = folder / "here", folder / "go"
    hook = folder / "sitecustomize.py"
    hook.write_text(
        "import os, pathlib, time\n"
        "try:\n    import htcondor2\nexcept ImportError:\n    pass\n"
        "else:\n"
        "    submit = htcondor2.Schedd.submit\n"
        "    def late(*args, **more):\n"
        f"        pathlib.Path({str(here)!r}).write_text(f'{{os.getpid()}}\\n')\n"
        f"        while not os.path.exists({str(go)!r}):\n"
        "            time.sleep(0.01)\n"
        "        return submit(*args, **more)\n"
        "    htcondor2.Schedd.submit = late\n"
    )
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        fermigrid = submit_elsewhere(batch)
        child = int(wait_for(lambda: here.exists() and here.read_text().endswith("\n") and here.read_text(), "sending"))
    fermigrid.kill()
    fermigrid.wait(10)
    go.touch()
    wait_for(lambda: is_gone(child), "the call's process has ended", 20)
    assert backend.find(batch) is None
    handle = backend.submit(batch)  # as the next fermigrid does
    assert clusters_of(own_pool, batch) == [str(handle.cluster)]
    backend.remove([handle])


def test_a_call_that_nobody_ends_is_ended_by_the_kernel(own_pool: Pool, folder: Path) -> None:
    """Its asker is stopped, say: it lives, and looks at no clock. The process waits in C for a schedd that hangs."""
    request = {
        "verb": "find",
        "schedd": None,
        "pool": None,
        "batch": "0",
        "since": 0,
        "parent": os.getpid(),
        "limit": 1,
    }
    with stopped(schedd_of(own_pool)):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "fermigrid.backends.htcondor_process"],
            input=json.dumps(request).encode(), cwd=CHECKOUT, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == -signal.SIGALRM
    assert 5 < time.monotonic() - began < 9


def test_a_call_may_come_from_any_thread(own_pool: Pool, folder: Path) -> None:
    """The process is bound to the thread that started it, and that one waits for it."""
    batch = write_batch(folder, requirements="false")
    handles: list[Handle] = []
    thread = threading.Thread(target=lambda: handles.append(backend.submit(batch)))
    thread.start()
    thread.join(60)
    assert clusters_of(own_pool, batch) == [str(handles[0].cluster)]
    backend.remove(handles)


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("MAX_JOBS_PER_OWNER = 2", r"as many jobs .* as one user may have \(MAX_JOBS_PER_OWNER\)"),
        ("MAX_JOBS_PER_SUBMISSION = 2", "late materialization .* is not bound by it"),
        (
            'SUBMIT_REQUIREMENT_NAMES = A\nSUBMIT_REQUIREMENT_A = false\nSUBMIT_REQUIREMENT_A_REASON = "no, sir"',
            "no, sir",
        ),
        ("ALLOW_WRITE = prod@fermigrid.test", "DENIED"),
    ],
    ids=["owner", "submission", "requirement", "denied"],
)
def test_what_the_schedd_refuses_is_told_in_its_words(own_pool: Pool, folder: Path, limit: str, told: str) -> None:
    batch = write_batch(folder, jobs=5, requirements="false")
    with settings(own_pool, limit), pytest.raises(SubmissionRefused, match=told):
        backend.submit(batch)
    assert backend.find(batch) is None


def test_a_schedd_without_late_materialization_says_so(own_pool: Pool, folder: Path) -> None:
    batch = write_batch(folder, jobs=5, requirements="false", max_materialize=2)
    with (
        settings(own_pool, "SCHEDD_ALLOW_LATE_MATERIALIZE = false"),
        pytest.raises(SubmissionRefused, match="SCHEDD_ALLOW_LATE_MATERIALIZE"),
    ):
        backend.submit(batch)
