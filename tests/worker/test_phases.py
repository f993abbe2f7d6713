"""A job that is ended in any phase: one report, its end message, and nothing left on the node."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.worker.faulty_http import Faulty
from tests.worker.sealing import Office, archive, seal_words
from tests.worker.worker_job import Done, Job, Pairs, finish, sha256

INSTANCE = "4711"
ENDS = ("TERM", "INT", "QUIT", "HUP")
WARNS = ("XCPU", "USR1", "USR2")


def number(name: str) -> signal.Signals:
    return signal.Signals[f"SIG{name}"]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def processes_of(folder: Path) -> dict[int, str]:
    """The living processes with this folder in command line or environment, as their place or bound into their container."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state = (path / "stat").read_text().rpartition(") ")[2][0]
            if state in "ZXD":  # to ask for the words of one that hangs on a mount may hang, too
                continue
            words = (path / "cmdline").read_bytes()
            told = words + (path / "environ").read_bytes() + str((path / "cwd").readlink()).encode()
            told += (path / "mountinfo").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        if str(folder).encode() in told and int(path.name) != os.getpid():
            found[int(path.name)] = words.replace(b"\0", b" ").decode(errors="replace")
    return found


def kill_all(folder: Path) -> None:
    """As a batch system does with what is left of a job; one's end may be another's."""
    for pid in processes_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclass
class Place:
    """Where a job runs: what it leaves there must be nothing."""

    folder: Path
    faulty: Faulty
    office: Office
    canary: str = field(default_factory=lambda: f"canary-{uuid.uuid4().hex}")

    def __post_init__(self) -> None:
        for name in ("tools", "wallet", "spool", "root", "cache"):
            (self.folder / name).mkdir()
        (self.folder / "wallet/key").write_text(self.canary)
        (self.folder / "wallet/t.use").write_text(self.canary)
        (self.folder / "wallet/x509up").write_text(f"{self.canary}\n{self.office.site.certificate.read_text()}")
        content = archive([("key", self.canary.encode())], seal_words("envelope"))
        self.sealed = self.office.secret(self.office.seal(content), "envelope")
        self.reached = self.folder / "reached"
        self.is_reached: Callable[[], object] = self.reached.exists
        self.held: list[int] = []

    def release(self) -> None:
        """Closes what the test itself held open to keep a job where it was."""
        while self.held:
            os.close(self.held.pop())

    @property
    def common(self) -> Pairs:
        """What every job here has: a secret of each kind, and messages into a spool folder."""
        messages = {
            "to": "x@example.org",
            "from": "y@example.org",
            "instance": INSTANCE,
            "via": f"spool:{self.folder / 'spool'}",
        }
        secret = [("secret", "oracle"), ("secret.from", str(self.folder / "wallet")), ("secret.point", "KEYS=.")]
        secret += [("secret.home", ".my.cnf=key")]
        for kind, name, point in (
            ("transfer", "carried", "CARRIED=carried"),
            ("token", "t.use", "BEARER_TOKEN_FILE=t.use"),
            ("proxy", "x509up", "X509_USER_PROXY=x509up"),
        ):
            secret += [("secret", kind), ("secret.kind", kind), ("secret.from", name), ("secret.point", point)]
        return [*secret, *self.sealed.settings, *((f"message.{name}", value) for name, value in messages.items())]

    @property
    def image(self) -> Pairs:
        """An image behind a URL, and a cache of the node for it."""
        return [
            ("image.url", f"{self.faulty.url}/good/i"),
            ("image.sha256", sha256(self.faulty.content)),
            ("node_cache", str(self.folder / "cache")),
        ]

    def hang(self, tool: str, pattern: str, first: str = ":") -> None:
        """From now on a program of the node does `first` and then hangs when its arguments match the pattern."""
        real = shutil.which(tool)
        text = f'#!/bin/bash\ncase "$*" in {pattern}) {first.format(real=real)}; echo > {self.reached}; exec sleep 600 ;; esac\nexec {real} "$@"\n'
        (self.folder / "tools" / tool).write_text(text)
        (self.folder / "tools" / tool).chmod(0o755)

    def hang_digest(self, pattern: str) -> None:
        """The same for taking a file's digest, with whatever program."""
        for tool in ("sha256sum", "openssl"):
            self.hang(tool, pattern)

    def job(self, name: str = "job", **what: Any) -> Job:
        what["settings"] = [*self.common, *what.get("settings", [])]
        return Job(self.folder / name, **what)

    def start(self, job: Job, tools: bool = True) -> subprocess.Popen[bytes]:
        path = f"{self.folder / 'tools'}:{os.environ['PATH']}" if tools else os.environ["PATH"]
        self.sealed.into(job)
        (job.scratch / "carried").write_text(self.canary)
        kept = self.folder / "wallet"  # by HTCondor
        return job.start(env={"PATH": path, "_CONDOR_CREDS": str(kept), "X509_USER_PROXY": str(kept / "x509up")})

    def secrets(self) -> list[Path]:
        """Files outside the wallet that have the secret in them."""
        places = [
            *Path("/dev/shm").glob("fermigrid.*"),
            *(path for path in self.folder.iterdir() if path.name != "wallet"),
        ]
        files = [Path(folder, name) for place in places for folder, _, names in os.walk(place) for name in names]
        return [path for path in files if path.is_file() and self.canary.encode() in read(path)]

    def messages(self) -> list[str]:
        """The kinds of the messages that were sent, whole ones."""
        return sorted(path.name.rsplit(".", 1)[-1] for path in (self.folder / "spool").iterdir() if path.name[0] != ".")

    def check(self, job: Job, done: Done) -> None:
        """One report, the messages, and nothing left."""
        assert done.out.count(b"@@FERMIGRID 1 ") == 1
        assert self.secrets() == [] and self.canary not in done.err and self.canary.encode() not in done.out
        left = [path.name for path in (self.folder / "root").rglob(".*")]
        assert left == [], "parts of outputs"
        assert {path.name.split("-")[0] for path in job.scratch.iterdir()} <= {
            "job.env",
            "worker.sh",
            "s0000",
            "bundle.tar.gz",
            "out",
            "envelope.signer.pem",
            "envelope.cms",  # sealed: as it lay on its way
        }
        wait_until(lambda: processes_of(self.folder) == {}, "its processes end", 2)
        self.release()
        for path in [self.folder / "cache", *(self.folder / "cache").rglob("*")]:
            self.held.append(os.open(path, os.O_RDONLY))
            fcntl.flock(self.held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else holds it
            self.release()


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def place(tmp_path: Path, faulty: Faulty, office: Office) -> Iterator[Place]:
    made = Place(tmp_path, faulty, office)
    yield made
    made.release()
    kill_all(tmp_path)


# --- the phases: each makes the job, and stays in its phase until something ends it

CONTAINER = {"launch": "worker", "order": "wrapper-outside"}
OUT: Pairs = [("out", "a"), ("out.to", "a"), ("out", "b"), ("out.to", "b")]
WRITE = ["/bin/sh", "-c", "echo a > a; echo b > b"]


def describe(place: Place) -> Job:
    place.hang_digest("*s0000*")
    return place.job()


def secrets(place: Place) -> Job:
    place.hang("cp", "*wallet/.*", '{real} "$@"')
    return place.job()


def taking(place: Place) -> Job:
    place.hang("cp", "*carried*", '{real} "$@"')
    return place.job()


def opening(place: Place) -> Job:
    place.hang("openssl", "*cms?-decrypt*", '{real} "$@"')
    return place.job()


def unpacking(place: Place) -> Job:
    place.hang("tar", "-x?-k*", '{real} "$@"')
    return place.job()


def image_path(place: Place) -> Job:
    """The image's marker is a pipe: reading it ends when the test closes its end."""
    image = place.folder / "image"
    (image / "etc").mkdir(parents=True)
    os.mkfifo(image / "etc/fermigrid-image")
    place.is_reached = lambda: opened(place, image / "etc/fermigrid-image")
    return place.job(
        settings=[("image.path", str(image)), ("image.marker", "x")], head=CONTAINER | {"runtime": "/bin/true"}
    )


def opened(place: Place, pipe: Path) -> bool:
    """Whether somebody waits in the opening of the pipe; then he waits for its content."""
    with suppress(OSError):
        place.held.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    return place.held != []


def image_lock(place: Place) -> Job:
    """Another job holds the cache's lock; it is the test."""
    cache = place.folder / f"cache/u{os.geteuid()}"
    cache.mkdir(mode=0o700)
    place.held.append(os.open(cache, os.O_RDONLY))
    fcntl.flock(place.held[0], fcntl.LOCK_EX)
    place.is_reached = lambda: any("flock " in words for words in processes_of(place.folder).values())
    return place.job(settings=place.image, head=CONTAINER | {"runtime": "/bin/true"})


def image_download(place: Place) -> Job:
    place.hang("curl", "*/good/i*", 'for last; do :; done; echo half > "${{@: -3:1}}"')
    return place.job(settings=place.image, head=CONTAINER | {"runtime": "/bin/true"})


def bundle(place: Place) -> Job:
    place.hang("tar", "-xzf*")
    return place.job(args=["./p"], code={"p": "#!/bin/sh\n"})


def stage_in(place: Place) -> Job:
    (place.folder / "input").write_text("x")
    place.hang("cp", "*/input*", '{real} "$@"')
    return place.job(row=[("in", "x"), ("in.from", str(place.folder / "input"))])


def container_start(place: Place) -> Job:
    place.hang("apptainer", "*exec*")
    image = place.folder / "image"
    (image / "bin").mkdir(parents=True)
    (image / "bin/sh").touch()
    return place.job(
        settings=[("image.path", str(image))], head=CONTAINER | {"runtime": str(place.folder / "tools/apptainer")}
    )


def payload(place: Place) -> Job:
    return place.job(args=["/bin/sh", "-c", f'cat "$KEYS/key" > /dev/null; echo > {place.reached}; exec sleep 600'])


def hashing(place: Place) -> Job:
    place.hang_digest("*work/a*")
    return place.job(args=WRITE, row=OUT)


def copying(place: Place) -> Job:
    place.hang("dd", "*.b.*", '{real} "$@" count=0')
    return posix(place)


def posix(place: Place) -> Job:
    return place.job(args=WRITE, row=OUT, kind="posix", settings=[("output.root", str(place.folder / "root"))])


def checking(place: Place) -> Job:
    place.hang_digest("*/root/*")
    return posix(place)


def rival(place: Place) -> Job:
    """Another attempt has published one of two outputs, and is waited for."""
    (place.folder / "root/a").write_text("other")
    place.hang("sleep", "0.5")
    return posix(place)


STAY = {
    "describe": describe,
    "secrets": secrets,
    "a transferred secret": taking,
    "a sealed secret, opened": opening,
    "a sealed secret, unpacked": unpacking,
    "image path": image_path,
    "image lock": image_lock,
    "image download": image_download,
    "bundle": bundle,
    "stage-in": stage_in,
    "container start": container_start,
    "payload": payload,
    "hashing outputs": hashing,
    "copying outputs": copying,
    "checking outputs": checking,
    "waiting for a rival": rival,
}


def cases(names: tuple[str, ...], what: str, code: Callable[[str], str], does: str) -> list[Any]:
    """Each phase with each signal; the first signal of a phase makes the row of the fault matrix."""
    made = []
    for phase in STAY:
        for name in names:
            mode = "worker" if phase == "container start" else "host"
            row = pytest.mark.fault(fault=f"{what}, phase: {phase}", mode=mode, does=does, code=code(name))
            made.append(pytest.param(phase, name, marks=[row] if name == names[0] else [], id=f"{phase}-{name}"))
    return made


def begin(place: Place, phase: str) -> tuple[Job, subprocess.Popen[bytes]]:
    """A job that stays in the phase."""
    job = STAY[phase](place)
    process = place.start(job)
    wait_until(lambda: place.is_reached() or process.poll() is not None, f"phase {phase}")
    assert process.poll() is None, finish(process).err
    return job, process


@pytest.mark.parametrize(
    ("phase", "name"),
    cases(
        ENDS,
        "the job is told to end (TERM, INT, QUIT, HUP)",
        lambda name: str(128 + number(name)),
        "ends and cleans at once, end message, report",
    ),
)
def test_an_end_in_each_phase(place: Place, phase: str, name: str) -> None:
    job, process = begin(place, phase)
    process.send_signal(number(name))
    done = finish(process, 10)
    assert done.code == 128 + number(name) and done.data["signals"] == [name], done.err
    assert place.messages() == (["end"] if phase == "describe" else ["end", "start"])
    place.check(job, done)


@pytest.mark.parametrize("phase", [name for name in STAY if name != "payload"])
def test_warnings_end_nothing(place: Place, phase: str) -> None:
    job, process = begin(place, phase)
    for name in WARNS:
        process.send_signal(number(name))
    time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    done = finish(process, 10)
    assert done.code == 143 and set(done.data["signals"]) == {*WARNS, "TERM"}, done.err
    place.check(job, done)


@pytest.mark.parametrize(
    ("phase", "name"),
    cases(
        ("KILL",),
        "the worker is killed (kill -9)",
        lambda _: "killed",
        "its guard removes the secrets; the next job on the node is good",
    ),
)
def test_a_kill_in_each_phase(place: Place, phase: str, name: str) -> None:
    job, process = begin(place, phase)
    assert place.secrets() != []
    process.kill()
    wait_until(lambda: place.secrets() == [], "the guard removes the secrets", 1)
    kill_all(place.folder)  # as a batch system does
    place.release()
    out, err = process.communicate(timeout=10)
    assert b"@@FERMIGRID" not in out and place.canary.encode() not in out + err
    wait_until(lambda: place.secrets() == [], "what was being copied, too", 1)
    again = Job(
        place.folder / "again",
        settings=job.settings,
        row=job.row,
        args=[
            "/bin/sh",
            "-c",
            'cat "$KEYS/key" "$CARRIED" "$TNS_ADMIN/key" ~/.my.cnf > /dev/null && echo a > a && echo b > b',
        ],
        head=Job(Path()).head,
        kind=job.kind,
    )
    for other in (place.folder / "root").glob("[!.]*"):
        other.unlink()
    done = finish(place.start(again, tools=False))
    assert done.code == 0, done.err
    assert place.secrets() == []


# --- the last steps, where there is nothing more to end


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.fault(
    fault="a signal while the outputs get their names",
    mode="host",
    does="gives all of them their names, then ends well",
    code=0,
)
def test_a_signal_in_the_middle_of_linking(place: Place, name: str) -> None:
    tool = place.folder / "tools/ln"
    tool.write_text(
        f'#!/bin/bash\n[[ "$*" != */root/* ]] || {{ echo > {place.reached}; sleep 0.4; }}; exec {shutil.which("ln")} "$@"\n'
    )
    tool.chmod(0o755)
    job = posix(place)
    process = place.start(job)
    wait_until(place.reached.exists, "linking")
    process.send_signal(number(name))
    done = finish(process, 10)
    assert (done.code, done.data["signals"]) == (0, [name]), done.err
    assert [output["result"] for output in done.data["outputs"]] == ["ours", "ours"]
    assert sorted(path.name for path in (place.folder / "root").iterdir()) == ["a", "b"]
    assert place.messages() == ["end", "start"]
    place.check(job, done)


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.fault(
    fault="a signal while the end message hangs",
    mode="host",
    does="leaves the message to the submit side, in the report",
    code=0,
)
def test_a_signal_while_the_end_message_is_sent(place: Place, name: str) -> None:
    place.hang("mailer", "-t*", f"cat > {place.folder}/mail; ! grep -q ExitCode: {place.folder}/mail && exit")
    route = [("message.via", f"sendmail:{place.folder / 'tools/mailer'}"), ("message.timeout", "1")]
    job = Job(place.folder / "job", settings=[*(pair for pair in place.common if pair[0] != "message.via"), *route])
    process = place.start(job)
    wait_until(place.reached.exists, "the end message")
    process.send_signal(number(name))
    done = finish(process, 10)
    assert done.code == 0, done.err
    assert [(one["kind"], one["result"]) for one in done.data["messages"]] == [("start", "sent"), ("end", "doubt")]
    place.check(job, done)


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.fault(
    fault="a signal while the worker backs off", mode="host", does="ends at once, with the report that is out", code=81
)
def test_a_signal_in_the_back_off(place: Place, name: str) -> None:
    job = place.job(settings=[("backoff", "600")], head=CONTAINER | {"runtime": "/nonexistent/apptainer"})
    process = place.start(job)
    assert process.stdout is not None
    line = b""
    while not line.startswith(b"@@FERMIGRID 1 "):
        line = process.stdout.readline()
    wait_until(lambda: any(" 600" in words for words in processes_of(place.folder).values()), "the back-off")
    process.send_signal(number(name))
    rest, _ = process.communicate(timeout=10)
    assert process.returncode == 81 and rest == b""
    assert place.messages() == ["end", "start"] and place.secrets() == []
    wait_until(lambda: processes_of(place.folder) == {}, "its processes end", 2)


@pytest.mark.drill
def test_a_kill_at_any_moment(tmp_path: Path, faulty: Faulty, office: Office) -> None:
    """Hundreds of short jobs, each killed at a random moment of its life. Seeded."""
    chance, unread = random.Random(9), 0
    for count in range(500):
        (tmp_path / str(count)).mkdir()
        place = Place(tmp_path / str(count), faulty, office)
        job = place.job(args=WRITE, row=OUT)
        process = place.start(job)
        assert process.stderr is not None and b"job " in process.stderr.readline()
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        wait_until(lambda: set(place.secrets()) <= {job.scratch / "carried"}, f"job {count}: nothing is left", 2)  # noqa: B023
        kill_all(place.folder)  # as a batch system does
        process.communicate(timeout=10)
        unread += (
            job.scratch / "carried"
        ).exists()  # killed before it had read what it has: the batch system's to remove
        shutil.rmtree(place.folder)
    assert unread < 250, "hardly any was killed later"


@pytest.mark.drill
@pytest.mark.parametrize("kind", ["posix", "transfer"])
def test_an_end_at_any_moment(tmp_path: Path, faulty: Faulty, office: Office, kind: str) -> None:
    """Thousands of short jobs, each ended at a random moment of its life. Seeded."""
    chance = random.Random(kind)
    codes = {0, *(128 + number(name) for name in ENDS)}
    for count in range(1500):
        (tmp_path / str(count)).mkdir()
        place = Place(tmp_path / str(count), faulty, office)
        what: dict[str, Any] = {
            "kind": kind,
            "settings": [("output.root", str(place.folder / "root"))] if kind == "posix" else [],
        }
        job = place.job(args=WRITE, row=OUT, **what)
        process = place.start(job)
        assert process.stderr is not None and b"job " in process.stderr.readline()
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(number(chance.choice(ENDS)))
        done = finish(process, 20)
        assert done.code in codes, (count, done.err)
        assert place.messages() in (["end", "start"], ["end"]), (count, done.err)
        place.check(job, done)
        shutil.rmtree(place.folder)
