"""A job that is ended in any phase, with real containers in both orders: one report, and nothing left on the node."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.sealing import Identity, Office, archive, seal_words
from tests.worker.test_container import INSIDE, OUTSIDE, Node, bind, job_folder, node, pool, running_pool
from tests.worker.test_phases import INSTANCE, kill_all, number, processes_of, wait_until
from tests.worker.worker_job import Done, Job, Pairs, finish

__all__ = ["job_folder", "node", "pool", "running_pool"]
pytestmark = pytest.mark.pool

HEADS = {"worker": OUTSIDE, "inside": INSIDE}
OUT: Pairs = [("out", "a"), ("out.to", "a"), ("out", "b"), ("out.to", "b")]
WRITE = {"args": ["/bin/sh", "-c", "echo a > a; echo b > b"]}


class Place:
    """The folders of one test, open to the pool's user, and what its job may leave in them: nothing."""

    def __init__(self, node: Node, office: Office) -> None:
        self.node, self.folder = node, node.folder
        self.canary = f"canary-{uuid.uuid4().hex}"
        for name in ("data", "wallet", "spool", "root"):
            (self.folder / name).mkdir()
            (self.folder / name).chmod(0o777)
        (self.folder / "wallet/key").write_text(self.canary)
        site = Office(office.folder, office.signer, Identity(self.folder / "site.pem", self.folder / "site.key"))
        for source, target in ((office.site.certificate, site.site.certificate), (office.site.key, site.site.key)):
            target.write_bytes(source.read_bytes())
            target.chmod(0o644)
        content = archive([("key", self.canary.encode())], seal_words("envelope"))
        self.sealed = site.secret(site.seal(content), "envelope")

    def job(self, mode: str, **what: Any) -> Job:
        """A job with secrets of its own and of the site, messages, a bind and a place for outputs."""
        data, root = (
            bind(self.folder / "data", "/data"),
            bind(self.folder / "root", str(self.folder / "root"), mode="rw"),
        )
        messages = {
            "to": "x@example.org",
            "from": "y@example.org",
            "instance": INSTANCE,
            "via": f"spool:{self.folder / 'spool'}",
        }
        secret = [("secret", "oracle"), ("secret.from", str(self.folder / "wallet")), ("secret.point", "KEYS=.")]
        secret += [("secret", "k"), ("secret.kind", "transfer"), ("secret.from", "carried")]
        common = [
            *secret,
            *self.sealed.settings,
            *((f"message.{name}", value) for name, value in messages.items()),
            ("env", f"PLACE={self.folder}"),
        ]
        settings = [*self.node.path, *data, *root, *common, ("grace", "2"), ("output.root", str(self.folder / "root"))]
        job = self.sealed.into(self.node.job(head=HEADS[mode], settings=settings, kind="posix", **what))
        (job.scratch / "carried").write_text(self.canary)
        return job

    def secrets(self) -> str:
        return self.node.pool.run("fermi", "grep", "-rls", self.canary, "/dev/shm", *map(str, self.scratches())).stdout

    def scratches(self) -> list[Path]:
        return [job.scratch for job in self.node.made]

    def messages(self) -> list[str]:
        return sorted(path.name.rsplit(".", 1)[-1] for path in (self.folder / "spool").iterdir() if path.name[0] != ".")

    def check(self, job: Job, done: Done) -> None:
        assert done.out.count(b"@@FERMIGRID 1 ") == 1
        assert self.secrets() == "" and self.canary not in done.err and self.canary.encode() not in done.out
        assert [path.name for path in (self.folder / "root").rglob(".*")] == [], done.err
        left = {path.name.split("-")[0] for path in job.scratch.iterdir()}
        assert left <= {"job.env", "worker.sh", "s0000", "bundle.tar.gz", "out", "pid", "envelope.signer.pem"}
        wait_until(lambda: processes_of(self.folder) == {}, "its processes end", 3)


@pytest.fixture
def place(node: Node, office: Office) -> Iterator[Place]:
    made = Place(node, office)
    yield made
    kill_all(made.folder)


def stage_in(place: Place, mode: str) -> Job:
    """An input of holes, whose digest takes minutes."""
    with (place.folder / "data/large").open("w") as file:
        file.truncate(1 << 38)
    folder = "/data" if mode == "inside" else place.folder / "data"
    return place.job(mode, row=[("in", "x"), ("in.from", f"{folder}/large")])


def rival(place: Place, mode: str) -> Job:
    """Another attempt has published one of two outputs, and is waited for."""
    (place.folder / "root/a").write_text("other")
    return place.job(mode, row=OUT, **WRITE)


def payload(place: Place, mode: str) -> Job:
    return place.job(mode, args=["/bin/sh", "-c", 'grep -q canary "$KEYS/key" && echo ready; exec sleep 600'])


PHASES = {"stage-in": stage_in, "payload": payload, "waiting for a rival": rival}
SIGN = {"stage-in": "/work/x", "payload": "sleep 600", "waiting for a rival": "sleep 0.5"}


def cases(name: str, what: str, does: str) -> list[Any]:
    made = []
    for phase in PHASES:
        for mode in HEADS:
            code = "killed" if name == "KILL" else str(128 + number(name))
            row = pytest.mark.fault(fault=f"{what}, phase: {phase}", mode=mode, does=does, code=code)
            made.append(pytest.param(phase, mode, name, marks=row, id=f"{phase}-{mode}-{name}"))
    return made


def is_there(place: Place, sign: str) -> bool:
    """Whether one of the job's processes has these words in its command line."""
    return any(sign in words for words in processes_of(place.folder).values())


def begin(place: Place, phase: str, mode: str) -> tuple[Job, Any]:
    job = PHASES[phase](place, mode)
    process = place.node.start(job)
    wait_until(lambda: process.poll() is not None or is_there(place, SIGN[phase]), phase)
    assert process.poll() is None, finish(process).err
    return job, process


@pytest.mark.parametrize(
    ("phase", "mode", "name"), cases("TERM", "the job is told to end (TERM)", "ends and cleans, end message, report")
)
def test_an_end_in_each_phase(place: Place, phase: str, mode: str, name: str) -> None:
    job, process = begin(place, phase, mode)
    place.node.kill(job, name)
    done = finish(process, 15)
    assert (done.code, set(done.data["signals"])) == (143, {"TERM"}), done.err
    assert place.messages() == ["end", "start"], done.err
    place.check(job, done)


@pytest.mark.parametrize(
    ("phase", "mode", "name"),
    cases("KILL", "the worker is killed (kill -9)", "its guard removes the secrets; the next job on the node is good"),
)
def test_a_kill_in_each_phase(place: Place, phase: str, mode: str, name: str) -> None:
    job, process = begin(place, phase, mode)
    assert place.secrets() != ""
    place.node.kill(job, name)
    wait_until(lambda: place.secrets() == "", "the guard removes the secrets", 1.5)
    kill_all(place.folder)  # as a batch system does
    out, _ = process.communicate(timeout=15)
    assert b"@@FERMIGRID" not in out
    for path in (place.folder / "root").iterdir():
        path.unlink()
    done = place.node.run(place.job(mode, row=OUT, **WRITE))
    assert done.code == 0, done.err


@pytest.mark.drill
@pytest.mark.parametrize("mode", HEADS)
def test_an_end_at_any_moment(place: Place, mode: str) -> None:
    """Hundreds of short jobs in containers, each ended at a random moment of its life. Seeded."""
    chance = random.Random(mode)
    for count in range(200):
        name = chance.choice(["TERM", "INT", "HUP", "QUIT"])
        job = place.job(mode, row=OUT, args=["/bin/sh", "-c", "sleep 0.2; echo a > a; echo b > b"])
        process = place.node.start(job)
        assert process.stderr is not None and b"job " in process.stderr.readline()
        time.sleep(chance.uniform(0, 1.2))
        if process.poll() is None:
            place.node.pool.run("fermi", "kill", f"-{name}", (job.scratch / "pid").read_text().strip())
        done = finish(process, 30)
        assert done.code in (0, 128 + number(name)), (count, name, done.err)
        place.check(job, done)
        for folder in ("root", "spool"):
            for path in (place.folder / folder).iterdir():
                path.unlink()
