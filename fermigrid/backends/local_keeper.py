"""The processes of a job on this machine.

Each job runs under a keeper, a fork of the runner, between the runner and the worker. The keeper is the subreaper
of all that the job starts, so nothing of a job escapes it; the kernel tells it (PR_SET_PDEATHSIG) when the runner
dies, and then it ends the job as for a removal: TERM to the worker, which passes it on and reports, and KILL to
everything after the grace. So killing a runner leaves no job behind; a job's slot and the batch's lock, which its
keeper holds too, are free only when the job is gone. Then the keeper removes the job's secrets, for the runner may be
dead; and the runner does, for the keeper may be.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import NoReturn

from fermigrid.backends import RenderedBatch
from fermigrid.backends.local_events import say
from fermigrid.backends.local_job import Item, remove_secrets, secrets_of

UMASK = "FERMIGRID_UMASK"  # environment variable of the runner, with the umask of the person's shell, octal
TAG = "FERMIGRID_BATCH"  # environment variable of the worker and the payload, with the batch id
RUNNER = "fermigrid.backends.local_runner"  # the module that a runner and its keepers have in their command line
_PDEATHSIG, _SUBREAPER = 1, 36  # prctl(2)
_KILL_LIMIT = 10.0  # s to wait for killed processes: one in an uninterruptible call stays
_LIBC = ctypes.CDLL(None, use_errno=True)


def launch(batch: RenderedBatch, item: Item, start: int, folder: Path, grace: float, digest: str) -> int:
    """Start the worker under a keeper -> the keeper's process id. Its exit code or signal is the worker's.

    `digest`: the sha256 of job.env, which the worker checks.
    """
    runner = os.getpid()
    keeper = os.fork()
    if keeper:
        return keeper
    status = 99
    try:
        status = _keep(runner, batch, item, start, folder, grace, digest)
    except BaseException:
        say(f"keeper of {item.name}: {traceback.format_exc()}")
        raise
    finally:
        _end_like(status)


def _keep(runner: int, batch: RenderedBatch, item: Item, start: int, folder: Path, grace: float, digest: str) -> int:
    """The life of a keeper -> the worker's exit code, or -n when signal n killed it."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    _LIBC.prctl(_SUBREAPER, 1)
    _LIBC.prctl(_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != runner:  # it died before the kernel could be told
        return 99
    me, worker = os.getpid(), os.fork()
    if worker == 0:
        _become_worker(me, batch, item, start, folder, digest)
    status = _wait(worker, grace)
    _kill_all(lambda: _below(os.getpid(), frozenset()))
    remove_secrets(folder)
    return status


def _become_worker(keeper: int, batch: RenderedBatch, item: Item, start: int, folder: Path, digest: str) -> NoReturn:
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, signal.SIGTERM})
        _LIBC.prctl(_PDEATHSIG, signal.SIGTERM)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o660)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(folder / "scratch")
        if os.getppid() == keeper:
            own = {"FERMIGRID_START": str(start), "FERMIGRID_SECRETS": str(secrets_of(folder)), TAG: batch.batch_id}
            job = ["run", item.name, item.shard, item.row, batch.batch_id, *([digest] if digest else [])]
            environment = {**os.environ, **own}
            os.umask(int(environment.pop(UMASK, "22"), 8))  # the payload's files are as the person is used to
            os.execvpe("bash", ["bash", "-p", str(batch.plan_dir / "worker.sh"), *job], environment)
    except OSError as error:
        os.write(2, f"the worker cannot be started: {error}\n".encode())
    os._exit(99)


def _wait(worker: int, grace: float) -> int:
    """Until the worker has ended; on TERM it is asked to, and made to after the grace."""
    deadline: float | None = None
    while True:
        left = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
        got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, left)
        ended = dict(reap())
        if worker in ended:
            return ended[worker]
        if got is not None and got.si_signo == signal.SIGTERM and deadline is None:
            os.kill(worker, signal.SIGTERM)
            deadline = time.monotonic() + grace
        elif deadline is not None and time.monotonic() >= deadline:
            os.kill(worker, signal.SIGKILL)
            deadline = time.monotonic() + _KILL_LIMIT


def reap() -> Iterator[tuple[int, int]]:
    """Children that have ended: (process id, exit code, or -n for signal n)."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def _end_like(status: int) -> NoReturn:
    """End with this exit code, or by signal -status, leaving no core file."""
    if status < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # KILL and STOP have no disposition
            signal.signal(-status, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
        os.kill(os.getpid(), -status)
    os._exit(status)


def become_subreaper() -> None:
    """Orphans below this process become its children: what a keeper that was killed leaves stays in sight."""
    _LIBC.prctl(_SUBREAPER, 1)


def kill_strays(keepers: frozenset[int]) -> None:
    """KILL what runs below this process and below none of the keepers."""
    _kill_all(lambda: _below(os.getpid(), keepers))


def sweep(batch_id: str, grace: float) -> None:
    """End what still runs of a batch whose runner and keepers were all killed: TERM, after the grace KILL."""
    deadline = time.monotonic() + grace
    for pid in (found := _orphans(batch_id)):
        _send(pid, signal.SIGTERM)
    while found and time.monotonic() < deadline:
        time.sleep(0.05)
        found = _orphans(batch_id)
    _kill_all(lambda: _orphans(batch_id))


def _kill_all(find: Callable[[], list[int]]) -> None:
    """KILL until none is found: new ones may be started meanwhile."""
    deadline = time.monotonic() + _KILL_LIMIT
    while found := find():
        if time.monotonic() > deadline:
            say(f"processes that cannot be killed: {found}")
            return
        for pid in found:
            _send(pid, signal.SIGKILL)
        time.sleep(0.005)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _below(root: int, without: frozenset[int]) -> list[int]:
    """The living descendants of a process, without these children and theirs."""
    children: dict[int, list[int]] = {}
    living = set()
    for pid, state, parent in _processes():
        children.setdefault(parent, []).append(pid)
        if state not in "ZX":
            living.add(pid)
    found, todo = [], [pid for pid in children.get(root, ()) if pid not in without]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, ())
    return [pid for pid in found if pid in living]


def _processes() -> Iterator[tuple[int, str, int]]:
    """Process id, state and parent of every process: proc_pid_stat(5)."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                yield int(folder.name), state, int(parent)


def _orphans(batch_id: str) -> list[int]:
    """The living processes that carry the batch's id in their environment and are below no runner, nor one themselves.

    Below a runner (of another run folder, with the same plan) they are in good hands.
    """
    tag, found = f"{TAG}={batch_id}".encode(), []
    parents = {pid: parent for pid, state, parent in _processes() if state not in "ZX"}
    for pid in parents:
        if tag in _read(pid, "environ").split(b"\0"):
            line = [pid]
            while line[-1] in parents:
                line.append(parents[line[-1]])
            if not any(RUNNER.encode() in _read(above, "cmdline").split(b"\0") for above in line):
                found.append(pid)
    return found


def _read(pid: int, what: str) -> bytes:
    """A file of a process in /proc; empty where it has gone or belongs to another user."""
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), what).read_bytes()
    return b""


def cpu_used(batch_id: str, jobs: Container[str]) -> dict[str, float]:
    """CPU seconds of the processes of these jobs of a batch, with their children that have ended: proc_pid_stat(5).

    A worker has the batch's id in its environment and its job in its command line; what it starts is below it.
    """
    tag, tick = f"{TAG}={batch_id}".encode(), os.sysconf("SC_CLK_TCK")
    found: dict[str, float] = {}
    for pid, state, _ in list(_processes()):
        if state in "ZX" or tag not in _read(pid, "environ").split(b"\0"):
            continue
        words = _read(pid, "cmdline").decode(errors="replace").split("\0")
        name = next((word for word in words if word in jobs), None)
        with contextlib.suppress(ProcessLookupError):
            name = name if os.getpgid(pid) == pid else None
        if name is None:
            continue
        for each in (pid, *_below(pid, frozenset())):
            ticks = _read(each, "stat").rpartition(b")")[2].split()[11:15]  # user, system; those of children waited for
            found[name] = found.get(name, 0.0) + sum(map(int, ticks)) / tick
    return found
