"""The real pool (`ci/pool`) as a fixture. Without it these tests are errors, never skipped."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pool.product import UID, Product

COMMAND = Path(__file__).resolve().parents[2] / "ci/pool"
START_LIMIT_S = 900  # the first start on a machine builds everything


@dataclass(frozen=True)
class Pool:
    """A running pool. In `work` anybody may make job folders: jobs run as uid 20001, tests as root."""

    directory: Path
    env: dict[str, str]
    facts: dict[str, Any]
    work: Path

    def run(self, user: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """A command inside the pool as `user` (fermi or prod), bounded to a minute."""
        return call_pool(self.directory, "as", user, *argv)

    def is_alive(self) -> bool:
        """Whether the pool's first process is the one that was started."""
        try:
            pid, began = (self.directory / "pid").read_text().split()
            stat = Path(f"/proc/{pid}/stat").read_text()
            Path(f"/proc/{pid}/exe").readlink()  # a process that is just ending has none
        except (OSError, ValueError):
            return False
        return stat.rpartition(") ")[2].split()[19] == began

    def last_words(self) -> str:
        """The ends of the logs that tell why a pool died."""
        names = ("start.out", "MasterLog", "SchedLog", "http-error.log")
        logs = [self.directory / "log" / name for name in names]
        return "\n".join(f"--- {log}\n{tail(log)}" for log in logs if log.is_file())


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def call_pool(directory: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """`ci/pool ARGUMENTS` for the pool in `directory`; its answer, good or not."""
    return subprocess.run(
        [str(COMMAND), *arguments],
        env=os.environ | {"POOL_DIR": str(directory)},
        cwd="/",
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        check=False,
    )


def start_pool(directory: Path) -> None:
    """Starts the pool; a pool that does not start is an error with its reason."""
    done = call_pool(directory, "start", timeout=START_LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"the pool did not start:\n{done.stderr}")


def describe(directory: Path) -> Pool:
    """A running pool, with the settings of its user fermi."""
    done = call_pool(directory, "env", "fermi")
    if done.returncode:
        raise RuntimeError(f"no settings for the pool in {directory}:\n{done.stderr}")
    env = dict(line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines())
    env["PATH"] = env["PATH"].replace("$PATH", os.environ["PATH"])
    return Pool(directory, env, json.loads((directory / "facts.json").read_text()), directory / "work")


def pool_folder() -> Path:
    """The folder that `ci/pool` uses for this checkout (or POOL_DIR)."""
    done = subprocess.run([str(COMMAND), "paths"], text=True, capture_output=True, timeout=60, check=True)
    return Path(done.stdout.splitlines()[0].split()[1])


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """A file locked for this process; processes of pytest-xdist wait for each other here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def is_last_user(users: int) -> bool:
    """Gives up this process's share of the pool; whether nobody else has one."""
    fcntl.flock(users, fcntl.LOCK_UN)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def shared_pool(directory: Path) -> Iterator[Pool]:
    """The pool, started unless it runs. The last process to use it stops it when tests had started it."""
    ours = directory / "started-by-tests"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "tests.users").open("w") as users:
        with locked(directory / "tests.lock"):
            if call_pool(directory, "status").returncode:
                start_pool(directory)
                ours.touch()
            fcntl.flock(users, fcntl.LOCK_SH)
        try:
            yield describe(directory)
        finally:
            with locked(directory / "tests.lock"):
                if is_last_user(users.fileno()) and ours.exists():
                    ours.unlink()
                    call_pool(directory, "stop")


@contextmanager
def watchdog(pool: Pool) -> Iterator[None]:
    """Ends the running test, with the reason, when the pool dies under it: nobody waits for a dead schedd."""
    over = threading.Event()

    def fail(*_: object) -> None:
        pytest.fail(f"the pool died\n{pool.last_words()}", pytrace=False)

    def look() -> None:
        while not over.wait(0.5):
            if not pool.is_alive():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)
                return

    previous = signal.signal(signal.SIGUSR2, fail)
    thread = threading.Thread(target=look, name="pool-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(5)
        signal.signal(signal.SIGUSR2, previous)


@pytest.fixture(scope="session")
def running_pool() -> Iterator[Pool]:
    """The pool of this test run (use `pool`, which also watches it)."""
    with shared_pool(pool_folder()) as running:
        yield running


@pytest.fixture
def pool(running_pool: Pool) -> Iterator[Pool]:
    """A pool with six sites. Fails at once when the pool is dead or dies."""
    if not running_pool.is_alive():
        pytest.fail(f"the pool is dead\n{running_pool.last_words()}", pytrace=False)
    with watchdog(running_pool):
        yield running_pool


@pytest.fixture
def fermi(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """The pool; for the length of the test this process (htcondor2, child processes) is its user fermi."""
    for name, value in pool.env.items():
        monkeypatch.setenv(name, value)
    import htcondor2

    htcondor2.reload_config()
    return pool


@pytest.fixture
def private_folder() -> Iterator[Path]:
    """A folder for a pool of the test's own, which it may break: it is ended and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="fermigrid-pool-drill-", dir="/tmp"))
    yield folder
    call_pool(folder, "clean")


@pytest.fixture
def watched_private_pool(private_folder: Path) -> Iterator[Pool]:
    """A running pool of the test's own, watched as the shared one is."""
    start_pool(private_folder)
    private = describe(private_folder)
    with watchdog(private):
        yield private


@pytest.fixture
def job_folder(pool: Pool) -> Path:
    """A folder for jobs, writable for the pool's users. It stays, for a look after a failure."""
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=pool.work))
    folder.chmod(0o777)
    return folder


@pytest.fixture
def product(pool: Pool, job_folder: Path) -> Product:
    """fermigrid in a folder of its own, as the pool's user fermi."""
    return product_in(pool, job_folder)


def product_in(pool: Pool, job_folder: Path) -> Product:
    """fermigrid in this folder, as the pool's user fermi."""
    tokens = job_folder / "tokens"
    shutil.copytree(pool.env["_CONDOR_SEC_TOKEN_DIRECTORY"], tokens)
    for path in (job_folder, tokens, *tokens.iterdir()):
        os.chown(path, UID, UID)  # HTCondor ignores a token that belongs to somebody else
    job_folder.chmod(0o755)  # fermigrid takes no code from a folder that others can write
    return Product(pool, job_folder, tokens)
