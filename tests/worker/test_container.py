"""The worker with the real Apptainer: both orders, each way in, and each way that a container can fail."""

from __future__ import annotations

import os
import random
import re
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.pool.conftest import COMMAND, Pool, job_folder, pool, running_pool
from tests.worker.test_functions import sif
from tests.worker.test_payload import DUMP, HOSTILE, seen
from tests.worker.worker_job import Done, Job, Pairs, finish

__all__ = ["job_folder", "pool", "running_pool"]
pytestmark = pytest.mark.pool

FERMI = 20001
AS_FERMI = ["setpriv", "--reuid", str(FERMI), "--regid", str(FERMI), "--init-groups"]
OUTSIDE = {"launch": "worker", "order": "wrapper-outside", "runtime": "apptainer"}
INSIDE = OUTSIDE | {"order": "wrapper-inside"}
ORDERS = pytest.mark.parametrize("head", [OUTSIDE, INSIDE], ids=["outside", "inside"])


@dataclass
class Node:
    """Makes jobs and runs them as the user fermi inside the pool's namespaces."""

    pool: Pool
    folder: Path
    count: int = 0
    made: list[Job] = field(default_factory=list)

    @property
    def light(self) -> dict[str, Any]:
        return dict(self.pool.facts["images"]["light-1"])

    @property
    def path(self) -> Pairs:
        """The light image as a folder on CVMFS."""
        return [("image.marker", "light-1"), ("image.path", self.light["cvmfs"])]

    def http(self, name: str = "light-1", marker: str = "light-1") -> Pairs:
        image = self.pool.facts["images"][name]
        url = [("image.url", image["sif_url"]), ("image.sha256", image["sha256"]), ("image.size", str(image["bytes"]))]
        return [("image.marker", marker), *url]

    def job(self, **what: Any) -> Job:
        self.count += 1
        what.setdefault("settings", self.path)
        what.setdefault("head", OUTSIDE)
        job = Job(self.folder / f"s{self.count}", **what)
        self.made.append(job)
        return job

    def start(
        self, job: Job, env: dict[str, str] | None = None, around: Sequence[str] = (), root: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Starts a job; `around` comes between it and the user, `root` before the change of user."""
        command = job.write()
        subprocess.run(["chown", "-R", f"{FERMI}:{FERMI}", job.scratch], check=True)
        variables = [
            f"{name}={value}" for name, value in {"USER": "fermi", "HOME": "/home/fermi", **(env or {})}.items()
        ]
        inner = ["sh", "-c", 'echo $$ > pid; exec "$@"', "sh", *around, *command]
        return subprocess.Popen(
            [str(COMMAND), "exec", *root, *AS_FERMI, "env", *variables, *inner],
            cwd=job.scratch,
            env=os.environ | {"POOL_DIR": str(self.pool.directory)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, job: Job, **how: Any) -> Done:
        return finish(self.start(job, **how), 60)

    def kill(self, job: Job, name: str) -> None:
        """A signal to the worker, from inside the pool, where its process id means something."""
        done = self.pool.run("fermi", "kill", f"-{name}", (job.scratch / "pid").read_text().strip())
        assert done.returncode == 0, done.stderr

    def kill_container(self, job: Job) -> None:
        """SIGKILL to the container of this job: the node runs those of other tests, too."""
        table = self.pool.run("fermi", "ps", "-u", "fermi", "-o", "pid=,ppid=,args=").stdout
        rows = [
            (int(pid), int(parent), args) for pid, parent, args in (row.split(None, 2) for row in table.splitlines())
        ]
        family = {int((job.scratch / "pid").read_text())}
        for _ in rows:  # a child may stand above its parent
            family |= {pid for pid, parent, _ in rows if parent in family}
        doomed = [str(pid) for pid, _, args in rows if pid in family and re.search("untime parent|inside$", args)]
        done = self.pool.run("fermi", "kill", "-KILL", *doomed)
        assert doomed and done.returncode == 0, table

    def processes(self) -> str:
        return self.pool.run("fermi", "ps", "-u", "fermi", "-o", "pid,args").stdout


@pytest.fixture
def node(pool: Pool, job_folder: Path) -> Node:
    return Node(pool, job_folder)


def sh(script: str) -> dict[str, Any]:
    return {"args": ["./payload.sh"], "code": {"payload.sh": f"#!/bin/sh\n{script}\n"}}


def site_container(node: Node, job: Job, image: str = "", *options: str) -> list[str]:
    """As a site starts the container: the job's folder is where the job is."""
    bind = ["--bind", f"{job.scratch}:/srv", "--pwd", "/srv", *options]
    return ["apptainer", "-q", "exec", "--contain", "--no-home", *bind, image or node.light["cvmfs"]]


# --- the ways in


def modes(node: Node, way: str, **what: Any) -> tuple[Job, list[str]]:
    if way == "site":
        job = node.job(head={"launch": "site"}, **what)
        return job, site_container(node, job)
    settings = [*what.pop("settings", []), *(node.http() if way == "sif" else node.path)]
    return node.job(head=INSIDE if way == "inside" else OUTSIDE, settings=settings, **what), []


@pytest.mark.parametrize("way", ["outside", "sif", "inside", "site"])
def test_argv_and_environment_arrive_byte_exact(node: Node, way: str) -> None:
    variables = {f"HOSTILE_{i}": value for i, value in enumerate(HOSTILE)}
    settings = [("env", f"{name}={value}") for name, value in variables.items()]
    if way == "site":
        settings += node.path
    job, around = modes(
        node,
        way,
        args=["./dump", *HOSTILE],
        code={"dump": DUMP.format(python="/usr/bin/python3")},
        settings=settings,
        row=[("out", "seen.json"), ("out.to", "seen.json")],
    )
    leaks = dict.fromkeys(
        ("PYTHONPATH", "PYTHONHOME", "PERL5LIB", "TMPDIR", "APPTAINERENV_LEAK", "SINGULARITYENV_LEAK", "LEAK"), "/leak"
    )
    if way != "site":
        leaks |= {
            "LD_LIBRARY_PATH": "/leak",
            "APPTAINER_BIND": "/leak",
            "SINGULARITY_BIND": "/leak",
            "APPTAINERENV_PATH": "/leak",
        }
    done = node.run(job, env=leaks, around=around)
    assert done.code == 0, done.err
    got = seen(job.scratch / "out" / done.report.outputs[0].file)
    assert got["argv"] == HOSTILE
    environment = {
        name: value for name, value in got["env"].items() if name not in ("PWD", "SHLVL", "_", "LC_CTYPE", "OLDPWD")
    }
    control = "/srv/work/.fermigrid" if way == "site" else "/srv/.fermigrid"
    assert {name: environment.pop(name) for name in variables} == variables
    assert {name for name in environment if not name.startswith("FERMIGRID_")} == {
        "HOME", "TMPDIR", "USER", "LOGNAME", "LANG", "PATH", "LD_LIBRARY_PATH",
    }  # fmt: skip
    assert environment["HOME"] == f"{control}/home" and environment["FERMIGRID_SUMMARY"] == f"{control}/summary"
    assert environment["LD_LIBRARY_PATH"] == "/.singularity.d/libs" and environment["USER"] == "fermi"
    assert environment["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert done.data["runtime"] == {
        "name": "apptainer",
        "version": "" if way == "site" else "1.4.5",
        "userns": True,
        "overlay": "yes",
        "unsquash": "no",
    }
    expected = {
        "outside": ("host", "worker", "path"),
        "sif": ("host", "worker", "http"),
        "inside": ("host", "worker", "path"),
    }
    assert (done.report.where, done.data["container"], done.report.rung) == expected.get(way, ("image", "site", "site"))


@pytest.mark.parametrize("way", ["outside", "sif", "inside", "site"])
def test_the_life_of_a_job(node: Node, way: str, tmp_path: Path) -> None:
    """Inputs, a bundle, a summary, outputs; and nothing is left of it."""
    where = "/srv/work" if way == "site" else "/srv"
    script = (
        f'cat x; test "$PWD" = {where} && touch /tmp/t /var/tmp/t "$HOME/h" "$TMPDIR/t" && cat /etc/fermigrid-image'
    )
    script += '; echo events_kept: 7 > "$FERMIGRID_SUMMARY"; echo out > o'
    (node.folder / "input").write_text("the input\n")
    settings = node.path if way == "site" else []
    if way in ("inside", "site"):
        settings = [*settings, ("bind", str(node.folder)), ("bind.to", "/data")]
    row = [
        ("in", "x"),
        ("in.from", "/data/input" if way in ("inside", "site") else str(node.folder / "input")),
        ("out", "o"),
        ("out.to", "o"),
    ]
    job, around = modes(node, way, settings=settings, row=row, **sh(script))
    if around:
        around[3:3] = ["--bind", f"{node.folder}:/data"]
    done = node.run(job, around=around)
    assert done.code == 0, done.err
    assert done.out.startswith(b"the input\nlight-1\n") and done.report.summary == {"events_kept": "7"}
    assert (job.scratch / "out" / done.report.outputs[0].file).read_text() == "out\n"
    names = {path.name.split("-")[0] for path in job.scratch.iterdir()}
    assert names == {"job.env", "worker.sh", "s0000", "bundle.tar.gz", "out", "pid"}


@ORDERS
@pytest.mark.parametrize(
    ("script", "code", "own"), [("exit 7", 7, 7), ("exit 82", 79, 82), ("exit 255", 255, 255), ("kill -9 $$", 137, 137)]
)
def test_exit_codes(node: Node, head: dict[str, str], script: str, code: int, own: int) -> None:
    done = node.run(node.job(head=head, **sh(script)))
    assert (done.code, done.report.payload_exit, done.data["started_payload"]) == (code, own, True)


@ORDERS
def test_a_program_that_the_image_lacks(node: Node, head: dict[str, str]) -> None:
    done = node.run(node.job(head=head, args=["no-such-program"]))
    assert (done.code, done.report.payload_exit) == (127, 127)


@pytest.mark.fault(
    fault="order wrapper-inside, and the image has no bash", mode="inside", does="says what the image lacks", code=82
)
def test_an_image_of_busybox_is_enough_outside(node: Node) -> None:
    tiny = [("image.marker", "tiny-1"), ("image.path", node.pool.facts["images"]["tiny-1"]["cvmfs"])]
    assert node.run(node.job(settings=tiny, **sh("exit 3"))).code == 3
    done = node.run(node.job(settings=tiny, head=INSIDE, **sh("exit 3")))
    assert done.code == 82 and "bash" in done.message and done.data["started_payload"] is False


# --- where am I


@pytest.mark.fault(
    fault="the site started another image, and there is no runtime in it",
    mode="site",
    does="does not run the payload in the wrong image",
    code=82,
)
def test_another_image_without_a_runtime(node: Node) -> None:
    job = node.job(head={"launch": "site"}, **sh("echo ran"))
    done = node.run(job, around=site_container(node, job, node.pool.facts["site_default"]["cvmfs"]))
    assert (done.code, done.report.where) == (82, "other") and b"ran" not in done.out
    assert "another image" in done.message and done.data["started_payload"] is False


@pytest.mark.fault(
    fault="the site started another image, with a runtime in it",
    mode="site",
    does="starts the right image in it",
    code=0,
)
def test_another_image_with_a_runtime_that_works(node: Node) -> None:
    """The site's container is the node's own system with another marker: everything of a runtime is in it."""
    job = node.job(
        head={"launch": "site", "order": "wrapper-outside", "runtime": "apptainer"}, **sh("cat /etc/fermigrid-image")
    )
    done = node.run(job, env={"APPTAINER_CONTAINER": "/cvmfs/site/default"})
    assert (done.code, done.report.where, done.data["container"]) == (0, "other", "nested"), done.err
    assert done.out.startswith(b"light-1\n")


def test_a_rehearsal_is_containerised_where_that_works(node: Node) -> None:
    done = node.run(node.job(head=OUTSIDE | {"rehearsal": "yes"}, **sh("cat /etc/fermigrid-image")))
    assert (done.code, done.report.rehearsal, done.data["container"]) == (0, False, "worker")


# A user namespace whose limit of further ones is used up by one in which the user is fermi again.
NO_NAMESPACES = ["unshare", "--user", "--map-root-user", "sh", "-c"]
NO_NAMESPACES += [
    f'echo 1 > /proc/sys/user/max_user_namespaces && exec unshare --user --map-user={FERMI} --map-group={FERMI} "$@"',
    "sh",
]


@pytest.mark.parametrize(
    "rehearsal",
    [
        pytest.param(
            "yes",
            marks=pytest.mark.fault(
                fault="no user namespaces, in a rehearsal", mode="host", does="runs bare, says so", code=0
            ),
        ),
        pytest.param(
            "no",
            marks=pytest.mark.fault(
                fault="no user namespaces and no setuid runtime",
                mode="worker",
                does="says what the runtime said",
                code=81,
            ),
        ),
    ],
)
def test_a_runtime_that_does_not_work(node: Node, rehearsal: str) -> None:
    """No user namespaces: what old kernels have by default."""
    job = node.job(head=OUTSIDE | {"rehearsal": rehearsal, "runtime": "apptainer"}, **sh("echo ran"))
    done = node.run(job, around=NO_NAMESPACES)
    if rehearsal == "yes":
        assert (done.code, done.report.rehearsal) == (0, True) and b"ran" in done.out
        assert "does not work here" in done.err and "rehearsal: not containerised" in done.err
    else:
        assert done.code == 81 and b"ran" not in done.out and done.data["started_payload"] is False


# --- images that are not what they should be


@pytest.mark.fault(
    fault="the file behind the URL is another image (its marker differs)",
    mode="worker",
    does="finds it out from inside",
    code=83,
)
@ORDERS
def test_the_wrong_image_is_noticed(node: Node, head: dict[str, str]) -> None:
    done = node.run(node.job(head=head, settings=node.http("tiny-1", marker="light-1"), **sh("echo ran")))
    assert done.code == 83 and "tiny-1" in done.message and b"ran" not in done.out


def test_an_image_that_cannot_start(node: Node) -> None:
    fake = node.folder / "fake"
    (fake / "bin").mkdir(parents=True)
    (fake / "bin/sh").write_text("not a program")
    (node.folder / "fake.sif").write_bytes(sif(os.urandom(100_000)))
    for path in (fake, node.folder / "fake.sif"):
        done = node.run(node.job(settings=[("image.path", str(path))], **sh("echo ran")))
        assert done.code in (82, 83) and done.report.payload_exit is None, done.message
        assert b"ran" not in done.out and done.data["started_payload"] is False


@pytest.mark.fault(
    fault="the image on CVMFS is absent, or is no image", mode="worker", does="takes the next source", code=0
)
def test_a_path_that_is_broken_is_replaced_by_the_next_rung(node: Node) -> None:
    facts = node.pool.facts
    for path in (facts["broken_image"], facts["absent_image"]):
        done = node.run(node.job(settings=[("image.path", path), *node.http()], **sh("cat /etc/fermigrid-image")))
        assert (done.code, done.report.rung) == (0, "http") and done.out.startswith(b"light-1\n")


def cache(node: Node) -> tuple[Pairs, Path]:
    base = node.folder / "cache"
    base.mkdir(exist_ok=True)
    base.chmod(0o777)
    return [
        *node.http(),
        ("node_cache", str(base)),
        ("node_cache.limit", "1000000000"),
    ], base / f"u{FERMI}" / f"{node.light['sha256']}.sif"


@pytest.mark.fault(
    fault="the cached image is damaged on disk, and only its start shows it",
    mode="worker",
    does="removes it, fetches it again",
    code=0,
)
def test_a_damaged_cached_image_is_healed(node: Node) -> None:
    """Damaged so that its stamp still fits: only the start of the container shows it."""
    settings, image = cache(node)
    assert node.run(node.job(settings=settings)).report.rung == "http"
    assert node.run(node.job(settings=settings)).report.rung == "cache"
    times = image.stat()
    with image.open("r+b") as file:
        file.seek(30_000)
        file.write(os.urandom(200_000))
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    stamp = node.pool.run("fermi", "stat", "-L", "-c", "%s %i %z", str(image)).stdout
    image.with_name(f"{image.name}.{FERMI}.stamp").write_text(stamp)
    done = node.run(node.job(settings=settings, **sh("cat /etc/fermigrid-image")))
    assert (done.code, done.report.rung) == (0, "http"), done.err
    assert "is damaged: removed" in done.err and done.out.startswith(b"light-1\n")
    assert node.run(node.job(settings=settings)).report.rung == "cache"


# --- binds


def bind(source: Path | str, to: str, required: str = "yes", mode: str = "ro") -> Pairs:
    return [("bind", str(source)), ("bind.to", to), ("bind.mode", mode), ("bind.required", required)]


@ORDERS
def test_binds(node: Node, head: dict[str, str]) -> None:
    for name in ("ro", "rw"):
        (node.folder / name).mkdir()
        (node.folder / name).chmod(0o777)
    settings = (
        bind(node.folder / "ro", "/data")
        + bind(node.folder / "rw", "/sps", "yes", "rw")
        + bind("/nonexistent/x", "/sdf", "no")
    )
    done = node.run(
        node.job(head=head, settings=settings + node.path, **sh("touch /data/x || echo read-only; touch /sps/x"))
    )
    assert done.code == 0 and b"read-only\n" in done.out and (node.folder / "rw/x").exists()
    assert [(b["to"], b["result"]) for b in done.data["binds"]] == [
        ("/data", "kept"),
        ("/sps", "kept"),
        ("/sdf", "dropped"),
    ]
    done = node.run(node.job(head=head, settings=bind("/nonexistent/x", "/sdf") + node.path, **sh("echo ran")))
    assert done.code == 84 and b"ran" not in done.out and "/nonexistent/x" in done.message


@ORDERS
def test_software(node: Node, head: dict[str, str]) -> None:
    lat = node.pool.facts["software"]["lat-python"]
    software = [
        ("software", "lat-python"),
        ("software.from", lat["cvmfs"]),
        ("software.to", lat["to"]),
        ("software.env", "PYTHONPATH={path}"),
    ]
    script = "import numpy; print(numpy.__file__)"
    done = node.run(node.job(head=head, settings=software + node.path, args=["/usr/bin/python3", "-c", script]))
    assert done.code == 0 and done.out.startswith(f"{lat['to']}/numpy".encode()), done.err


def of_site(node: Node, letter: str) -> list[str]:
    """A command prefix for root: the runtime's settings of one of the pool's sites."""
    config = node.pool.directory / f"etc/apptainer.site{letter}.conf"
    return ["unshare", "--mount", "sh", "-c", f'mount --bind {config} /etc/apptainer/apptainer.conf && exec "$@"', "sh"]


def test_a_runtime_that_ignores_binds(node: Node) -> None:
    done = node.run(node.job(**sh("echo ran")), root=of_site(node, "c"))
    assert done.code in (81, 82, 84) and b"ran" not in done.out and done.data["started_payload"] is False


def test_a_bind_that_has_no_mount_point(node: Node) -> None:
    """Neither overlay nor underlay: a target must exist in the image."""
    (node.folder / "d").mkdir()
    root = of_site(node, "b")
    done = node.run(node.job(settings=bind(node.folder / "d", "/data") + node.path, **sh("exit 5")), root=root)
    assert done.code == 5, done.err
    done = node.run(
        node.job(settings=bind(node.folder / "d", "/not/in/image") + node.path, **sh("echo ran")), root=root
    )
    assert done.code == 84 and b"ran" not in done.out


# --- secrets


@ORDERS
@pytest.mark.parametrize("end", ["exit 0", "exit 3", "kill -9 $$"])
def test_secrets(node: Node, head: dict[str, str], end: str) -> None:
    wallet = node.folder / "wallet"
    wallet.mkdir()
    canary = f"canary-{uuid.uuid4().hex}"  # of this test alone: others run on the same node
    (wallet / "ewallet.p12").write_text(canary)
    secret = [
        ("secret", "oracle"),
        ("secret.from", str(wallet)),
        ("secret.point", "TNS_ADMIN=."),
        ("secret.set", "A=b c"),
    ]
    script = 'echo "$TNS_ADMIN $A"; stat -c %a "$TNS_ADMIN" "$TNS_ADMIN/ewallet.p12"; touch "$TNS_ADMIN/x" || echo read-only; grep -c canary "$TNS_ADMIN"/*; '
    done = node.run(node.job(head=head, settings=secret + node.path, **sh(script + end)))
    assert done.out.splitlines()[:5] == [b"/srv/.fermigrid/secrets/oracle b c", b"700", b"600", b"read-only", b"1"], (
        done.err
    )
    assert b"canary" not in done.out and "canary" not in done.err
    left = node.pool.run("fermi", "grep", "-rls", canary, "/dev/shm").stdout
    assert left == ""


# --- signals


def until_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"


@ORDERS
def test_a_warning_reaches_the_payload_once(node: Node, head: dict[str, str]) -> None:
    script = (
        "n=0; trap 'n=$((n+1))' USR1; echo ready; i=0; while [ $i -lt 15 ]; do sleep 0.1; i=$((i+1)); done; echo got $n"
    )
    job = node.job(head=head, **sh(script))
    process = node.start(job)
    until_ready(process)
    node.kill(job, "USR1")
    done = finish(process)
    assert done.code == 0 and b"got 1\n" in done.out and done.data["signals"] == ["USR1"]


@ORDERS
@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_an_end_by_signal(node: Node, head: dict[str, str], name: str) -> None:
    job = node.job(head=head, **sh(f"trap 'echo cleaned up; exit 9' {name}; echo ready; while :; do sleep 0.1; done"))
    process = node.start(job)
    until_ready(process)
    node.kill(job, name)
    done = finish(process)
    assert done.code == 9 and b"cleaned up" in done.out and done.data["signals"] == [name]


@ORDERS
def test_a_payload_that_ignores_term(node: Node, head: dict[str, str]) -> None:
    nap = f"sleep 1.{random.randrange(10**9):09d}"  # known among the processes of other tests
    script = f"trap '' TERM; echo ready; while :; do {nap}; done"
    job = node.job(head=head, settings=[("grace", "1"), *node.path], **sh(script))
    process = node.start(job)
    until_ready(process)
    began = time.monotonic()
    node.kill(job, "TERM")
    done = finish(process)
    assert time.monotonic() - began < 6
    assert done.code == 137 and done.data["signals"] == ["TERM"]
    assert nap not in node.processes()


@ORDERS
def test_a_container_that_is_killed(node: Node, head: dict[str, str]) -> None:
    nap = f"sleep 61.{random.randrange(10**9):09d}"
    job = node.job(head=head, **sh(f"echo ready; {nap}; echo late"))
    process = node.start(job)
    until_ready(process)
    node.kill_container(job)
    done = finish(process, 20)
    assert done.code != 0 and b"late" not in done.out
    assert nap not in node.processes()


# --- outputs


@ORDERS
def test_outputs_on_the_sites_file_system(node: Node, head: dict[str, str]) -> None:
    root = node.folder / "root"
    root.mkdir()
    root.chmod(0o777)
    settings = [("output.root", str(root)), *node.path]
    job = node.job(
        head=head, kind="posix", settings=settings, row=[("out", "o"), ("out.to", "sub/o")], **sh("echo out > o")
    )
    done = node.run(job)
    assert done.code == 0, done.err
    assert (root / "sub/o").read_text() == "out\n" and done.report.outputs[0].file == f"{root}/sub/o"
