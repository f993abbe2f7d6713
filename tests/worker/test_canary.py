"""The canary in the worker: marked values in every kind of secret and in the environment that it was started with, each
way that a job can end; then everything is searched that it wrote, sent or started. Only the secret's source may have them,
and the private copy while the job runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fermigrid.quoting import encode_lines
from tests.canary import (
    Canaries,
    Found,
    Trace,
    arguments_of,
    prove_search,
    search_places,
    search_shared,
    target_of,
)
from tests.canary_secrets import Kit, digest, person_environment
from tests.worker.node import IMAGES, PATH, UID, Node, running_node
from tests.worker.test_signals import wait_for
from tests.worker.worker_job import Done, Job, Pairs, read_log

NODE_PLACES = ("dev/shm", "mnt", "home", "lscratch", "sps", "var/tmp", "var/log", "run", "root")
KINDS = ("path", "transfer", "sealed", "token", "proxy")
# What a careful payload does: it uses its secrets, prints none, and leaves a picture of all that it can see but them.
USE = """#!/bin/bash
set -e
cat "$PATH_FILE" "$TRANSFER_FILE" "$SEALED_FILE" "$BEARER_TOKEN_FILE" "$X509_USER_PROXY" | cksum > /dev/null
test "$(cat "$PATH_FILE" "$TRANSFER_FILE" "$SEALED_FILE" | grep -c password=)" = 3
env > seen.env
tr '\\0' '\\n' < /proc/self/cmdline >> seen.env
cp -r .fermigrid/launch.sh .fermigrid/started.* seen.d/ 2> /dev/null || :
tar -cf seen.tar --exclude=./.fermigrid/{secrets,scratch} --exclude=./seen.tar .
echo "secrets used" >&2
case $1 in
    good) exit 0 ;;
    core) { printf '\\177ELF'; cat "$PATH_FILE" "$X509_USER_PROXY"; } > core.7; kill -SEGV $$ ;;
    wait) echo waiting; exec sleep 60 ;;
    kill) kill -KILL $$ ;;
    *) exit "$1" ;;
esac
"""


@dataclass
class Nest:
    """Two flocks: in the secrets, and in the environment of whoever started the worker; and a trace of the worker."""

    folder: Path
    since: float = field(default_factory=time.time)
    secrets: Canaries = field(default_factory=Canaries)
    person: Canaries = field(default_factory=Canaries)
    node: Node | None = None

    def __post_init__(self) -> None:
        for name in ("kit", "trace", "said"):
            (self.folder / name).mkdir()
        self.kit = Kit(self.folder / "kit", self.secrets)
        self.trace = Trace(self.folder / "trace")

    def job(self, way: str = "good", kinds: tuple[str, ...] = KINDS, **what: object) -> Job:
        """A job that has a secret of each kind."""
        settings = [*self.settings(kinds), *what.pop("settings", [])]  # type: ignore[misc]
        row = [("out", "seen.tar"), ("out.to", "seen.tar"), *what.pop("row", [])]  # type: ignore[misc]
        given = {"code": {"use": USE}, "args": ["./use", way], **what}
        return Job(self.folder / "scratch", settings=settings, row=row, **given)  # type: ignore[arg-type]

    def settings(self, kinds: tuple[str, ...] = KINDS) -> Pairs:
        """The secrets in job.env."""
        kit, found = self.kit, Pairs()
        for kind in kinds:
            source, point = {
                "path": (str(kit.wallet), "PATH_FILE=my.cnf"),
                "transfer": (kit.transferred.name, "TRANSFER_FILE=my.cnf"),
                "sealed": (kit.sealed.name, "SEALED_FILE=my.cnf"),
                "token": (kit.token.name, f"BEARER_TOKEN_FILE={kit.token.name}"),
                "proxy": (kit.proxy.name, f"X509_USER_PROXY={kit.proxy.name}"),
            }[kind]
            found += [("secret", kind), ("secret.kind", kind), ("secret.from", source)]
            if kind == "sealed":
                found += self._seal()
            found += [("secret.point", point)]
        return found

    def _seal(self) -> Pairs:
        certificate, key = self.kit.certificate("site")
        signer, _ = self.kit.certificate("signer")
        site = [("secret.key", str(key)), ("secret.certificate", str(certificate))]
        digests = [("secret.signer.sha256", digest(signer)), ("secret.sha256", digest(self.kit.sealed))]
        return [*site, ("secret.signer", signer.name), *digests]

    def start(self, job: Job, *prefix: str, traced: bool = True) -> subprocess.Popen[bytes]:
        """The worker, with what HTCondor brings; its words go to files, so that a pipe is nobody's but the worker's."""
        argv = job.write()
        kit = self.kit
        subprocess.run(["cp", "-r", kit.transferred, kit.proxy, kit.sealed, self.folder / "scratch"], check=True)
        subprocess.run(["cp", kit.certificate("signer")[0], self.folder / "scratch"], check=True)
        environment = {"PATH": PATH if self.node else os.environ["PATH"], "USER": "fermi"}
        environment["_CONDOR_CREDS"] = str(kit.token.parent)
        if self.node:
            subprocess.run(["chown", "-R", f"{UID}:{UID}", self.folder], check=True)
            prefix = (*self.node.prefix(self.folder / "scratch"), *(prefix or ("/bin/bash", "-p")))
        with self.out.open("wb") as out, self.err.open("wb") as err:
            return subprocess.Popen(
                [*(self.trace.prefix() if traced else ()), *(prefix or ("/bin/bash", "-p")), *argv],
                cwd=self.folder / "scratch",
                env={**environment, **person_environment(self.person)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def run(self, job: Job, *prefix: str) -> Done:
        """The job to its end and report."""
        process = self.start(job, *prefix)
        return self.done(process)

    def done(self, process: subprocess.Popen[bytes]) -> Done:
        """The report of a job that was started."""
        try:
            code = process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return read_log(code, self.out.read_bytes(), self.err.read_text(errors="replace"))

    @property
    def out(self) -> Path:
        """The worker's stdout."""
        return self.folder / "said/out"

    @property
    def err(self) -> Path:
        """The worker's stderr."""
        return self.folder / "said/err"

    def sources(self) -> list[Path]:
        """Where the values may be: where they come from. HTCondor's own proxy file stays as long as the folder."""
        return [self.folder / "kit", self.folder / "scratch" / self.kit.proxy.name, self.folder / "trace"]

    def loose(self, *allowed: Path) -> list[Found]:
        """Every canary that is somewhere else, now that the job has ended."""
        found = []
        for flock in (self.secrets, self.person):
            found += search_places(flock, [self.folder], (*self.sources(), *allowed))
            found += search_shared(flock, self.since, (*self.sources(), *allowed))
            if self.node:
                found += search_places(flock, [Path(f"/proc/{self.node.pid}/root/{name}") for name in NODE_PLACES])
            found += self.trace.search(flock, self.may)
        return found

    def may(self, line: bytes) -> bool:
        """A system call that may have a value: a private copy is written, a child of the worker is given one through a
        pipe, or inherits the environment that the worker was given."""
        target = target_of(line)
        if target is not None:
            own = target.startswith(("/dev/shm/fermigrid.", "pipe:[", "/dev/null")) or target.endswith(
                "/work/core.7"
            )  # the payload's
            return own and self.person.word.encode() not in line
        arguments = arguments_of(line)
        payload = arguments is None or b"./use" in arguments
        inherited = self.secrets.word.encode() not in line
        return not payload and inherited and self.person.word.encode() not in (arguments or b"")


@pytest.fixture
def nest(tmp_path: Path) -> Iterator[Nest]:
    nest = Nest(tmp_path)
    prove_search(nest.secrets, tmp_path)
    prove_search(nest.secrets, shared := Path(f"/dev/shm/canary.{os.getpid()}"))
    shared.rmdir()
    yield nest
    left = [path for path in Path("/dev/shm").glob("fermigrid.*") if search_places(nest.secrets, [path])]
    assert left == [], "copies of secrets were left"


def show(found: list[Found]) -> str:
    """For a failure's message."""
    return "\n".join(map(str, found[:20]))


def test_a_good_job_leaves_nothing(nest: Nest) -> None:
    done = nest.run(nest.job())
    assert done.code == 0, done.err
    assert "secrets used" in done.err
    assert (nest.folder / "scratch/out").exists(), "the payload's picture came back"
    assert (found := nest.loose()) == [], show(found)
    assert not (nest.folder / "scratch" / nest.kit.transferred.name).exists()


def test_the_trace_sees_what_it_must(nest: Nest) -> None:
    """A program of a millisecond, a write elsewhere, and a value in an environment: each would have been found."""
    value = nest.secrets.value("control")
    script = (
        'true "$1"; /bin/true "$1"; printf %s "$1" > "$2"; printf %s "$1" | base64 > "$2.b"; V=$1 /bin/true; rm "$2"*'
    )
    target = nest.folder / "said/elsewhere"
    command = [*nest.trace.prefix(), "bash", "-c", script, "bash", value, str(target)]
    subprocess.run(command, check=True, timeout=30)
    lines = [line for line in nest.trace.lines() if nest.secrets.search(line, "")]
    assert any(b'"/bin/true"' in (arguments_of(line) or b"") for line in lines)
    assert any(target_of(line) == str(target) for line in lines)
    assert any(target_of(line) == f"{target}.b" for line in lines)
    assert any(b'["/bin/true"], [' in line and b'"V=' in line for line in lines)
    assert nest.trace.search(nest.secrets, nest.may)


def test_the_copies_are_there_while_the_payload_runs(nest: Nest) -> None:
    """The search finds them then, in the private folder and nowhere else: it is not blind."""
    process = nest.start(nest.job("wait"), traced=False)
    wait_for(lambda: b"waiting" in nest.out.read_bytes(), 30)
    try:
        copies = search_places(nest.secrets, Path("/dev/shm").glob("fermigrid.*"))
        assert {found.name for found in copies} >= set(KINDS) - {"token"}
        elsewhere = search_places(nest.secrets, [nest.folder], nest.sources())
        assert elsewhere == [], show(elsewhere)
    finally:
        process.terminate()
    assert nest.done(process).code == 143
    assert (found := nest.loose()) == [], show(found)


def drill(*values: object) -> list[Any]:
    """Parameters of the long form."""
    return [pytest.param(value, marks=pytest.mark.drill) for value in values]


@pytest.mark.parametrize("way", ["core", *drill("3", "85", "kill")])
def test_a_payload_that_fails(nest: Nest, way: str) -> None:
    """Also one whose core file has the secrets that it had read."""
    done = nest.run(nest.job(way, settings=[("cores.limit", "1000000")]))
    assert done.code in (3, 79, 137, 139), done.err
    assert "secrets used" in done.err
    assert (found := nest.loose()) == [], show(found)


def absent_input(nest: Nest) -> Job:
    return nest.job(row=[("in", "x"), ("in.from", "/nonexistent/x")])


def absent_output(nest: Nest) -> Job:
    return nest.job(row=[("out", "y"), ("out.to", "y")])


def bad_stage_out(nest: Nest) -> Job:
    return nest.job(kind="posix", settings=[("output.root", "/proc/nowhere")])


def no_runtime(nest: Nest) -> Job:
    return nest.job(head={"launch": "worker", "runtime": "/nonexistent/apptainer"})


def absent_bind(nest: Nest) -> Job:
    return nest.job(settings=[("bind", "/nonexistent/bind"), ("bind.required", "yes")])


def second_secret(nest: Nest) -> Job:
    return nest.job(settings=[("secret", "second"), ("secret.from", "/nonexistent")])


def bad_row(nest: Nest) -> Job:
    return nest.job(row=[("nonsense", "x")])


def altered(nest: Nest) -> Job:
    job = nest.job()
    nest.kit.sealed.write_bytes(nest.kit.sealed.read_bytes()[:-40] + bytes(40))
    return job


def preamble(nest: Nest) -> Job:
    return nest.job(settings=[("preamble", "export SITE_VARIABLE=1; false")], head={"launch": "worker", "runtime": "x"})


FAILURES = {
    absent_input: 86, absent_output: 87, bad_stage_out: 88, no_runtime: 81, absent_bind: 84, second_secret: 85,
    bad_row: 80, altered: 85, preamble: 81,
}  # fmt: skip


@pytest.mark.drill
@pytest.mark.parametrize("make", FAILURES, ids=lambda make: make.__name__)
def test_each_phase_that_fails(nest: Nest, make: Callable[[Nest], Job]) -> None:
    done = nest.run(make(nest))
    assert done.code == FAILURES[make], f"{done.message}\n{done.err}"
    assert (found := nest.loose()) == [], show(found)


@pytest.mark.drill
def test_a_fault_of_the_worker_itself(nest: Nest) -> None:
    """99: a bundle that cannot be unpacked."""
    job = nest.job()
    argv = job.write()
    bundle = nest.folder / "scratch/bundle.tar.gz"
    bundle.write_bytes(b"no archive")
    fields = [line.split("=", 1) for line in (nest.folder / "scratch/job.env").read_text().splitlines()]
    text = encode_lines([(key, digest(bundle) if key == "code.sha256" else value) for key, value in fields])
    job.write = lambda: ((nest.folder / "scratch/job.env").write_text(text), argv)[1]  # type: ignore[method-assign]
    done = nest.run(job)
    assert done.code == 99, done.message
    assert (found := nest.loose()) == [], show(found)


@pytest.mark.drill
def test_a_dump_of_every_line(nest: Nest) -> None:
    """`bash -x` prints each command of the worker with its words; no secret is one of them."""
    done = nest.run(nest.job(), "/bin/bash", "-px")
    assert done.code == 0 and "+ _stage_secrets" in done.err
    assert (found := nest.loose()) == [], show(found)


def test_the_preamble_keeps_the_environment_to_itself(nest: Nest) -> None:
    """What a site's lines export is for the runtime; the payload sees neither it nor the rest of the environment."""
    setting = [("preamble", f"export SITE_TOKEN={nest.person.core('preamble')}")]
    done = nest.run(nest.job(settings=setting))
    assert done.code == 0, done.err
    job_env = nest.folder / "scratch/job.env"
    written = [line for line in nest.trace.lines() if nest.person.word.encode() in line and target_of(line)]
    assert written and all(b">(deleted), " in line for line in written), "a file with a name has the environment"
    pictures = search_places(nest.person, [nest.folder / "scratch"], [job_env])
    assert pictures == [], show(pictures)


@pytest.mark.drill
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGQUIT], ids=lambda n: n.name)
def test_a_worker_that_is_ended(nest: Nest, number: signal.Signals) -> None:
    """KILL, too: a guard removes the copies."""
    process = nest.start(nest.job("wait"), traced=False)
    wait_for(lambda: b"waiting" in nest.out.read_bytes(), 30)
    process.send_signal(number)
    process.wait(60)
    wait_for(lambda: not search_places(nest.secrets, Path("/dev/shm").glob("fermigrid.*")), 10)
    assert (found := nest.loose()) == [], show(found)


HEADS = {
    "outside": {"launch": "worker", "order": "wrapper-outside", "runtime": "apptainer"},
    "inside": {"launch": "worker", "order": "wrapper-inside", "runtime": "apptainer"},
    "podman": {"launch": "worker", "order": "wrapper-outside", "runtime": "podman"},
}
LIGHT = [("image.marker", "light-1"), ("image.path", str(IMAGES / "cvmfs/fermi.test/images/light-1"))]


@pytest.fixture(scope="module")
def containers() -> Iterator[Node]:
    with running_node() as running:
        running.sh("mount -t tmpfs none /sys/fs/cgroup")  # podman looks at it
        yield running


@pytest.fixture
def contained(containers: Node, request: pytest.FixtureRequest) -> Nest:
    folder = containers.folder / f"nest{abs(hash(request.node.name))}"
    folder.mkdir()
    nest = Nest(folder, node=containers)
    prove_search(nest.secrets, Path(f"/proc/{containers.pid}/root/home/control"))
    return nest


@pytest.mark.pool
@pytest.mark.parametrize("head", ["outside", "inside", *drill("podman")])
@pytest.mark.parametrize("way", ["good", *drill("3", "kill")])
def test_in_containers(contained: Nest, head: str, way: str) -> None:
    """The payload in a container that the worker starts, in each order: it sees its secrets and nobody's environment."""
    done = contained.run(contained.job(way, head=HEADS[head], settings=LIGHT))
    assert done.code == {"good": 0, "3": 3, "kill": 137}[way], done.err
    assert done.data["container"] == "worker" and "secrets used" in done.err
    assert (found := contained.loose()) == [], show(found)
