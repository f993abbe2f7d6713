"""A worker node of a test's own: the pool's Debian tree in private namespaces, with mounts that may misbehave.

Processes that hang on a FUSE mount cannot be killed, and the end of their process namespace would wait for them for ever.
So the node's first process aborts the FUSE connections of its node before it ends everything, and it does so by itself when
the test run dies or takes longer than it may.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.worker.worker_job import Done, Job, read_log

ROOT = Path(__file__).resolve().parents[2]
UID = 20001  # an ordinary user of the tree, named fermi
START_LIMIT_S, END_LIMIT_S = 30.0, 20.0
IMAGES = Path("/build")  # in the node: http/images/light-1.sif, cvmfs/fermi.test/images/light-1
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# Started with its life's length in seconds; fd 3 ends with the test run. bash, because as process 1 it buries orphans.
INIT = r"""
abort() {
    for file in /proc/[0-9]*/mountinfo; do
        while read -r _ _ device rest; do
            case $rest in *' - fuse '* | *' - fuse.'*) echo 1 > "/sys/fs/fuse/connections/${device#0:}/abort" ;; esac
        done < "$file"
    done
} 2> /dev/null
end() {
    trap '' USR1 TERM
    for i in {1..100}; do
        abort
        kill -KILL -1 2> /dev/null
        others=(/proc/[0-9]*)
        [ ${#others[@]} != 1 ] || break
        read -r -t 0.1 -u 9
    done
    exit 0
}
trap abort USR1
trap end TERM
set -e
exec 9<> <(:)
mount -t fusectl fusectl /sys/fs/fuse/connections
mknod -m 666 /dev/autofs c 10 235
mknod -m 600 /dev/loop-control c 10 237
for i in {0..7}; do mknod -m 660 "/dev/loop$i" b 7 "$i"; done
for folder in mnt cvmfs sps lscratch home; do mount -t tmpfs -o mode=1777 tmpfs "/$folder"; done
install -d -o 20001 -g 20001 /home/fermi
set +e
echo ready
exec > /dev/null
SECONDS=0
while [ "$SECONDS" -lt "$1" ]; do
    read -r -t 1 -u 3
    [ $? -gt 128 ] || break
done
end
"""


@cache
def built() -> dict[str, Path]:
    """Where `ci/pool build` has put things (node, images, software); it builds what is not there."""
    subprocess.run([ROOT / "ci/pool", "build"], check=True, capture_output=True, timeout=900)
    paths = subprocess.run([ROOT / "ci/pool", "paths"], check=True, capture_output=True, text=True, timeout=60).stdout
    return {name: Path(path) for name, path in (line.split(maxsplit=1) for line in paths.splitlines())}


def wait_for(condition: Callable[[], object], what: str, limit_s: float = 10) -> None:
    """Waits until `condition` holds; an error with the words `what` after `limit_s`."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit_s} s: {what}")
        time.sleep(0.02)


def fuse_module(folder: Path) -> None:
    """Copies what a FUSE file system in Python needs, and `badfs.py`, to where the node sees it."""
    spec = importlib.util.find_spec("mfusepy")
    if spec is None or spec.origin is None:
        raise RuntimeError("the module mfusepy is not installed: ci/venv")
    for source in (Path(spec.origin), Path(__file__).with_name("badfs.py")):
        shutil.copy(source, folder)


@dataclass
class Node:
    """A running node. `folder`, under /tmp, is the same place for the test and in the node, and anybody may write to it."""

    folder: Path
    process: subprocess.Popen[str]
    pid: int
    alive: int
    space: int = 0  # the inode of its process namespace
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def prefix(self, folder: Path | None = None, user: str = "fermi") -> list[str]:
        """What makes a command line one in the node, in `folder`, as root or fermi (20001). The environment is kept."""
        where = ["nsenter", f"--target={self.pid}", "--mount", "--pid", f"--wdns={folder or self.folder}"]
        return where if user == "root" else [*where, "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]

    def start(
        self, *argv: str | Path, user: str = "fermi", env: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """A command in the node, running, in a session of its own, with its stdout and stderr in pipes."""
        process = subprocess.Popen(
            [*self.prefix(folder, user), *argv],
            env={"PATH": PATH, "HOME": "/root" if user == "root" else "/home/fermi", "LANG": "C.UTF-8", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def serve(
        self, *argv: str | Path, user: str = "root", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A daemon in the node, as `start`, but with its words in `<folder>/<program>.log`."""
        with (self.folder / f"{Path(argv[0]).name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*self.prefix(None, user), "setsid", "-w", *argv],
                env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        return process

    def run(
        self, *argv: str | Path, user: str = "fermi", env: Mapping[str, str] | None = None, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """A command in the node to its end; its exit code and words, good or not."""
        process = self.start(*argv, user=user, env=env)
        out, err = self.ended(process, timeout)
        return subprocess.CompletedProcess(list(argv), process.returncode, out.decode(), err.decode(errors="replace"))

    def sh(self, script: str, *args: str | Path, user: str = "root", timeout: float = 30) -> str:
        """The stdout of a shell script, which must succeed (set -e)."""
        done = self.run("bash", "-ec", script, "bash", *args, user=user, timeout=timeout)
        assert done.returncode == 0, f"{script}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def ended(self, process: subprocess.Popen[bytes], timeout: float) -> tuple[bytes, bytes]:
        """Waits for the end and for both pipes; later than `timeout` the mounts are aborted, and it is an error."""
        try:
            return process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            left = self.processes()
            self.abort()
            process.kill()
            self._stop()
            out, err = process.communicate(timeout=END_LIMIT_S)
            words = "\n".join([*left, out.decode(errors="replace")[-2000:], err.decode(errors="replace")[-4000:]])
            raise AssertionError(f"it has not ended within {timeout} s; in the node were:\n{words}") from None

    def job(self, name: str = "job", **what: object) -> Job:
        """A job with its scratch folder in the node."""
        return Job(self.folder / name, **what)  # type: ignore[arg-type]

    def run_job(
        self, job: Job, *, user: str = "fermi", env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> Done:
        """Runs the worker in the node, to its end and report, as the user."""
        process = self.start_job(job, user=user, env=env)
        out, err = self.ended(process, timeout)
        return read_log(process.returncode, out, err.decode(errors="replace"))

    def start_job(
        self, job: Job, *, user: str = "fermi", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """The worker, running in the node (see `ended`)."""
        argv = job.write()
        for path in (job.scratch, *job.scratch.iterdir()):
            os.chown(path, UID if user == "fermi" else 0, UID if user == "fermi" else 0)
        # not by its name alone: "text file busy" when another thread makes a job at the same time
        return self.start("/bin/bash", "-p", *argv, user=user, env={"USER": user, **(env or {})}, folder=job.scratch)

    def processes(self) -> list[str]:
        """`PID STATE COMMAND` of each process in the node but its first."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (path / "ns/pid").stat().st_ino == self.space and path.name != str(self.pid):
                    words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    state = (path / "stat").read_text().rpartition(") ")[2][0]
                    found.append(f"{path.name} {state} {words or (path / 'comm').read_text().strip()}")
            except OSError:
                continue  # it has ended meanwhile
        return found

    def mount_bad(
        self, where: str = "/mnt/bad", source: Path | None = None, **settings: str
    ) -> subprocess.Popen[bytes]:
        """Mounts badfs.py on `where`, serving `source` (the node's folder); its daemon. `settings`: its environment."""
        self.sh(f"mkdir -p {shlex.quote(where)}")
        daemon = self.serve("python3", self.folder / "badfs.py", where, source or self.folder, env=settings)
        wait_for(lambda: self.is_mounted(where), f"badfs is not mounted on {where}: {self.folder}/python3.log")
        return daemon

    def mount_auto(self, maps: Mapping[str, Mapping[str, str] | str]) -> None:
        """The kernel's autofs on the folders `maps`, once in a node's life: one automounter is all that a node can have.

        Each has keys (`{"key": "-fstype=bind :/path"}`) or the text of a shell program that gets the key as $1.
        """
        master = self.folder / "auto.master"
        for number, (where, what) in enumerate(maps.items()):
            source = self.folder / f"auto.{number}"
            kind, mode = ("program", 0o755) if isinstance(what, str) else ("file", 0o644)
            source.write_text(
                f"#!/bin/sh\n{what}\n"
                if isinstance(what, str)
                else "".join(f"{key} {words}\n" for key, words in what.items())
            )
            source.chmod(mode)
            with master.open("a") as file:
                file.write(f"{where} {kind}:{source} --timeout=60 --negative-timeout=1\n")
        self.sh('mkdir -p "$@"', *maps)
        self.serve("automount", "--foreground", "--pid-file", "/run/automount.pid", master)
        wait_for(
            lambda: all(self.is_mounted(where, "autofs") for where in maps), f"no autofs: {self.folder}/automount.log"
        )

    def is_mounted(self, where: str, kind: str = "") -> bool:
        """Whether something (of the type `kind`) is mounted there; never touches the mount."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        return any(line.split()[4] == where and f" - {kind}" in line for line in lines)

    def inner_pid(self, process: subprocess.Popen[bytes]) -> int:
        """The pid, as the host sees it, of the program that `start` or `serve` runs in the node."""
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(children[0])  # of nsenter, which becomes the program

    def kill(self, process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
        """Sends a signal to the program that `start` or `serve` runs."""
        os.kill(self.inner_pid(process), number)

    def abort(self) -> None:
        """Aborts the FUSE connections of this node: what hung on them ends with an error."""
        os.kill(self.pid, signal.SIGUSR1)

    def end(self) -> None:
        """Ends the node with everything in it, within END_LIMIT_S."""
        self._stop()
        for process in self.started:
            process.kill()
            process.wait(END_LIMIT_S)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def _stop(self) -> None:
        if self.alive != -1:
            os.close(self.alive)
            self.alive = -1
        self.process.communicate(timeout=END_LIMIT_S)


@contextmanager
def running_node(life_s: int = 300, binds: Sequence[str] = ()) -> Iterator[Node]:
    """A node, for at most `life_s`. `binds`: `SOURCE:TARGET[:ro]` of enter-rootfs. The pool's images are in it as IMAGES."""
    paths = built()
    folder = Path(tempfile.mkdtemp(prefix="fermigrid-node-", dir="/tmp"))
    folder.chmod(0o1777)
    fuse_module(folder)
    read, write = os.pipe()
    command: list[str | Path] = [
        "bash",
        "-c",
        f'exec 3<&{read} && exec "$@"',
        "bash",
        ROOT / "ci/pool.d/enter-rootfs",
        paths["node"],
    ]
    process = subprocess.Popen(
        [*command, f"{paths['images']}:{IMAGES}:ro", *binds, "--", "bash", "-c", INIT, "init", str(life_s)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[read],
        start_new_session=True,
    )
    os.close(read)
    node = Node(folder, process, 0, write)
    try:
        assert process.stdout is not None and process.stderr is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the node did not start: {process.stderr.read()}")
        node.pid = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
        node.space = Path(f"/proc/{node.pid}/ns/pid").stat().st_ino
        yield node
    finally:
        node.end()
        shutil.rmtree(folder, ignore_errors=True)
