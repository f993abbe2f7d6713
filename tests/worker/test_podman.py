"""podman by the worker's contract: a directory image and an image from a registry, without root and as root."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.pool.conftest import COMMAND, job_folder, pool, running_pool
from tests.worker.test_container import Node, bind, node, sh, until_ready
from tests.worker.test_payload import DUMP, HOSTILE, seen
from tests.worker.test_runtimes import image_file, in_mounts
from tests.worker.worker_job import Done, Job, Pairs, finish

__all__ = ["job_folder", "node", "pool", "running_pool"]
pytestmark = pytest.mark.pool

PODMAN = {"launch": "worker", "order": "wrapper-outside", "runtime": "podman"}
INSIDE = PODMAN | {"order": "wrapper-inside"}
ORDERS = pytest.mark.parametrize("head", [PODMAN, INSIDE], ids=["outside", "inside"])
CGROUPS = in_mounts("mount -t tmpfs none /sys/fs/cgroup")  # crun asks what kind of file system it is


def run(node: Node, job: Job, **how: object) -> Done:
    return node.run(job, root=CGROUPS, **how)


def left_behind(node: Node, job: Job) -> str:
    """What of podman is alive for this job, or lies in its folder."""
    script = f"for p in /proc/[0-9]*; do grep -qs {job.scratch}/[.]session $p/cmdline $p/environ && tr '\\0' ' ' < $p/cmdline && echo; done"
    alive = node.pool.run("fermi", "sh", "-c", script).stdout
    return alive + " ".join(str(path) for path in job.scratch.rglob("*") if ".session" in path.parts)


@ORDERS
def test_argv_environment_and_user(node: Node, head: dict[str, str]) -> None:
    variables = {f"HOSTILE_{i}": value for i, value in enumerate(HOSTILE)}
    settings = [*(("env", f"{name}={value}") for name, value in variables.items()), *node.path]
    dump = {"dump": DUMP.format(python="/usr/bin/python3")}
    row = [("out", "seen.json"), ("out.to", "seen.json")]
    job = node.job(head=head, args=["./dump", *HOSTILE], code=dump, settings=settings, row=row)
    leaks = dict.fromkeys(("LD_LIBRARY_PATH", "PYTHONPATH", "PERL5LIB", "TMPDIR", "LEAK", "HOME"), "/leak")
    done = run(node, job, env=leaks | {"HOME": "/home/fermi"})
    assert done.code == 0, done.err
    got = seen(job.scratch / "out" / done.report.outputs[0].file)
    assert got["argv"] == HOSTILE
    environment = {name: value for name, value in got["env"].items() if name not in ("PWD", "SHLVL", "_", "LC_CTYPE")}
    assert {name: environment.pop(name) for name in variables} == variables
    assert {name for name in environment if not name.startswith("FERMIGRID_")} == {
        "HOME", "TMPDIR", "USER", "LOGNAME", "LANG", "PATH", "LD_LIBRARY_PATH",
    }  # fmt: skip
    assert environment["HOME"] == "/srv/.fermigrid/home" and "/leak" not in environment.values()
    assert done.data["runtime"] == {
        "name": "podman",
        "version": "5.8.6",
        "userns": True,
        "overlay": "yes",
        "unsquash": "no",
    }
    assert left_behind(node, job) == ""


@ORDERS
def test_the_life_of_a_job(node: Node, head: dict[str, str]) -> None:
    for name in ("ro", "rw"):
        (node.folder / name).mkdir()
        (node.folder / name).chmod(0o777)
    (node.folder / "ro/input").write_text("the input\n")
    binds = (
        bind(node.folder / "ro", "/data")
        + bind(node.folder / "rw", "/not/in/image", "yes", "rw")
        + bind("/none", "/sps", "no")
    )
    place = "/data/input" if "inside" in head["order"] else str(node.folder / "ro/input")
    row = [("in", "x"), ("in.from", place), ("out", "o"), ("out.to", "o")]
    script = "cat x /etc/fermigrid-image; id -un; id -u; pwd; touch /data/x || echo read-only; touch /not/in/image/x; touch /tmp/t /var/tmp/t"
    script += "; touch /new || echo read-only; echo events_kept: 7 > $FERMIGRID_SUMMARY; echo out > o; echo err >&2"
    job = node.job(head=head, settings=binds + node.path, row=row, **sh(script))
    done = run(node, job)
    assert done.code == 0, done.err
    assert done.out.startswith(b"the input\nlight-1\nfermi\n20001\n/srv\nread-only\nread-only\n"), done.out
    assert (node.folder / "rw/x").exists() and done.report.summary == {"events_kept": "7"} and "err\n" in done.err
    assert (job.scratch / "out" / done.report.outputs[0].file).read_text() == "out\n"
    assert [b["result"] for b in done.data["binds"]] == ["kept", "kept", "dropped"]
    names = {path.name.split("-")[0] for path in job.scratch.iterdir()}
    assert names == {"job.env", "worker.sh", "s0000", "bundle.tar.gz", "out", "pid"} and left_behind(node, job) == ""


@pytest.mark.parametrize(
    ("script", "code", "own"), [("exit 7", 7, 7), ("exit 82", 79, 82), ("exit 125", 125, 125), ("kill -9 $$", 137, 137)]
)
@ORDERS
def test_exit_codes(node: Node, head: dict[str, str], script: str, code: int, own: int) -> None:
    done = run(node, node.job(head=head, **sh(script)))
    assert (done.code, done.report.payload_exit, done.data["started_payload"]) == (code, own, True), done.err


@ORDERS
def test_a_warning_reaches_the_payload_once(node: Node, head: dict[str, str]) -> None:
    script = (
        "n=0; trap 'n=$((n+1))' USR1; echo ready; i=0; while [ $i -lt 15 ]; do sleep 0.1; i=$((i+1)); done; echo got $n"
    )
    job = node.job(head=head, **sh(script))
    process = node.start(job, root=CGROUPS)
    until_ready(process)
    node.kill(job, "USR1")
    done = finish(process)
    assert done.code == 0 and b"got 1\n" in done.out and done.data["signals"] == ["USR1"]


@ORDERS
@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_an_end_by_signal(node: Node, head: dict[str, str], name: str) -> None:
    job = node.job(head=head, **sh(f"trap 'echo cleaned up; exit 9' {name}; echo ready; while :; do sleep 0.1; done"))
    process = node.start(job, root=CGROUPS)
    until_ready(process)
    node.kill(job, name)
    done = finish(process)
    assert done.code == 9 and b"cleaned up" in done.out and done.data["signals"] == [name]
    assert left_behind(node, job) == ""


@pytest.mark.fault(
    fault="a payload in podman ignores TERM, in a session of its own",
    mode="worker",
    does="ends the container, leaves nothing",
    code=137,
)
@ORDERS
def test_a_payload_that_ignores_term(node: Node, head: dict[str, str]) -> None:
    nap = f"sleep 1.{random.randrange(10**9):09d}"
    script = (
        f"setsid sh -c 'trap \"\" TERM; while :; do {nap}; done' & trap '' TERM; echo ready; while :; do {nap}; done"
    )
    job = node.job(head=head, settings=[("grace", "1"), *node.path], **sh(script))
    process = node.start(job, root=CGROUPS)
    until_ready(process)
    node.kill(job, "TERM")
    done = finish(process)
    assert done.code == 137 and done.data["signals"] == ["TERM"]
    assert nap not in node.processes() and left_behind(node, job) == ""


@pytest.mark.fault(
    fault="the worker around podman is killed (kill -9)",
    mode="worker",
    does="its guard ends the container",
    code="killed",
)
def test_the_worker_is_killed(node: Node) -> None:
    nap = f"sleep 61.{random.randrange(10**9):09d}"
    job = node.job(head=PODMAN, **sh(f"echo ready; {nap}"))
    process = node.start(job, root=CGROUPS)
    until_ready(process)
    node.kill(job, "KILL")
    process.communicate(timeout=30)
    until = time.monotonic() + 20
    while (nap in node.processes() or "podman" in left_behind(node, job)) and time.monotonic() < until:
        time.sleep(0.1)
    assert nap not in node.processes() and "podman" not in left_behind(node, job)


@pytest.mark.fault(
    fault="TERM while podman is starting the container", mode="worker", does="ends, leaves no container", code=143
)
@pytest.mark.parametrize("after", [0.05, 0.1, 0.15, 0.2, 0.3])
def test_an_end_while_it_starts(node: Node, after: float) -> None:
    nap = f"sleep 61.{random.randrange(10**9):09d}"
    job = node.job(head=PODMAN, **sh(nap))
    process = node.start(job, root=CGROUPS)
    until = time.monotonic() + 10
    while not (job.scratch / "work/.fermigrid/launch.sh").exists() and time.monotonic() < until:
        time.sleep(0.005)
    time.sleep(after)  # where in the start it is hit does not matter: any place must do
    node.kill(job, "TERM")
    done = finish(process)
    assert done.code == 143, done.err
    assert nap not in node.processes() and left_behind(node, job) == ""


@pytest.mark.fault(
    fault="podman gets a SIF, which it cannot start", mode="worker", does="takes the directory image", code=0
)
def test_a_sif_is_passed_over(node: Node) -> None:
    both = [
        ("image.marker", "light-1"),
        ("image.path", str(image_file(node))),
        ("image.path", str(node.light["cvmfs"])),
    ]
    done = run(node, node.job(head=PODMAN, settings=both, **sh("exit 3")))
    assert done.code == 3 and done.data["image"]["source"] == node.light["cvmfs"], done.err


def test_podman_comes_after_a_runtime_that_does_not_work(node: Node) -> None:
    broken = node.folder / "apptainer"
    broken.write_text("#!/bin/sh\necho 'ERROR: no setuid installation' >&2\nexit 255\n")
    broken.chmod(0o755)
    done = run(
        node,
        node.job(head=PODMAN | {"runtime": str(broken)}, settings=[("runtime", "podman"), *node.path], **sh("exit 3")),
    )
    assert (done.code, done.data["runtime"]["name"]) == (3, "podman"), done.err


@pytest.mark.fault(
    fault="podman cannot start containers (no cgroup file system)", mode="worker", does="says what it said", code=82
)
def test_podman_does_not_work(node: Node) -> None:
    done = node.run(node.job(head=PODMAN, **sh("echo ran")))
    assert done.code == 82 and "crun" in done.message and b"ran" not in done.out, done.message


def test_as_root(node: Node) -> None:
    """As HTCondor's root-owned slots, or a machine of one's own: no user namespace, the same contract."""
    (node.folder / "d").mkdir()
    job = node.job(head=PODMAN, settings=bind(node.folder / "d", "/not/in/image") + node.path, **sh("id -un; exit 3"))
    command = job.write()
    process = subprocess.Popen(
        [str(COMMAND), "exec", *CGROUPS, "env", "USER=root", "HOME=/root", *command],
        cwd=job.scratch, env=os.environ | {"POOL_DIR": str(node.pool.directory)}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    done = finish(process, 60)
    assert done.code == 3 and done.out.startswith(b"root\n"), done.err
    assert done.data["runtime"]["userns"] is False and left_behind(node, job) == ""


# --- a registry


class Registry(SimpleHTTPRequestHandler):
    """What podman asks of a registry, from a folder written as one."""

    def guess_type(self, path: object) -> str:
        return (
            "application/vnd.oci.image.manifest.v1+json" if "/manifests/" in str(path) else "application/octet-stream"
        )

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def reference(node: Node) -> Iterator[str]:
    """The tiny image with an environment of its own, in a registry on this machine; its reference by digest."""
    folder = node.folder / "registry"
    blobs, manifests = folder / "v2/tiny/blobs", folder / "v2/tiny/manifests"
    blobs.mkdir(parents=True)
    manifests.mkdir()
    layer = node.folder / "layer.tar.gz"
    subprocess.run(
        ["tar", "-czf", layer, "-C", node.pool.directory / "cvmfs/fermi.test/images/tiny-1", "."], check=True
    )
    plain = subprocess.run(["gzip", "-dc", layer], check=True, capture_output=True).stdout

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest, "size": len(data)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin:/of/the/image", "OF_IMAGE=yes"], "Entrypoint": ["/none"]},
    }
    config["rootfs"] = {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()]}
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [blob(layer.read_bytes(), "layer.v1.tar+gzip")],
    }).encode()  # fmt: skip
    digest = "sha256:" + hashlib.sha256(manifest).hexdigest()
    (manifests / digest).write_bytes(manifest)
    (folder / "v2/index.html").write_text("{}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Registry, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    home = node.folder / "home/.config/containers"
    home.mkdir(parents=True)
    (home / "registries.conf").write_text(
        f'[[registry]]\nlocation = "127.0.0.1:{server.server_port}"\ninsecure = true\n'
    )
    subprocess.run(["chown", "-R", "20001:20001", node.folder / "home"], check=True)
    yield f"docker://127.0.0.1:{server.server_port}/tiny@{digest}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_image_of_a_registry(node: Node, reference: str) -> None:
    settings: Pairs = [("image.marker", "tiny-1"), ("image.registry", reference), *bind("/usr", "/not/in/image")]
    script = 'echo "$OF_IMAGE $PATH"; id -un; cat /etc/fermigrid-image; ls -d /not/in/image/bin; exit 3'
    job = node.job(head=PODMAN, settings=settings, **sh(script))
    done = run(node, job, env={"HOME": str(node.folder / "home")})
    assert done.code == 3, done.err
    assert done.out.startswith(b"yes /bin:/of/the/image\nfermi\ntiny-1\n/not/in/image/bin\n"), done.out
    assert (done.report.rung, done.data["image"]["source"]) == ("registry", reference)
    assert left_behind(node, job) == "" and not (job.scratch / ".image").exists()


@pytest.mark.fault(
    fault="the registry does not have the image", mode="worker", does="gives up: no source is left", code=82
)
def test_an_image_that_the_registry_lacks(node: Node, reference: str) -> None:
    wrong = reference.rpartition(":")[0] + ":" + "0" * 64
    done = run(
        node,
        node.job(head=PODMAN, settings=[("image.registry", wrong)], **sh("echo ran")),
        env={"HOME": str(node.folder / "home")},
    )
    assert done.code == 82 and b"ran" not in done.out and done.data["image"]["tried"][0]["rung"] == "registry"
