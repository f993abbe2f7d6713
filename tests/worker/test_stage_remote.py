"""Outputs to servers: XRootD with and without checksums, WebDAV. Whole sets, never over another attempt's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.worker.node import UID, Node, wait_for
from tests.worker.storage import Storage, start_nginx, start_xrootd
from tests.worker.worker_job import Done, Job, read_log, sha256

pytestmark = pytest.mark.pool
BOTH, PUBLISHED = {"a.fit": "AAA", "b": ""}, {"sub/a.fit": "AAA", "b": ""}


@pytest.fixture(params=["xrootd", "xrootd without checksums", "webdav"])
def server(node: Node, request: pytest.FixtureRequest) -> Iterator[Storage]:
    """A server that takes outputs."""
    if request.param == "webdav":
        yield start_nginx(node)
    else:
        yield start_xrootd(node, *(["xrootd.chksum adler32"] if request.param == "xrootd" else []))


def writes(node: Node, server: Storage, files: dict[str, str], name: str = "job", **what: object) -> Job:
    """A job that writes these files, and publishes a.fit as sub/a.fit, and b."""
    script = "#!/bin/sh\n" + "".join(f"printf %s '{text}' > '{local}'\n" for local, text in files.items())
    row = [("out", "a.fit"), ("out.to", "sub/a.fit"), ("out", "b"), ("out.to", "b")]
    more = {"args": ["./p"], "code": {"p": script}, "row": row, "kind": server.kind, "settings": server.settings}
    return node.job(name, **{**more, **what})


def results(done: Done) -> list[str]:
    assert done.code == 0, done.err
    return [output.result for output in done.report.outputs]


def put(server: Storage, name: str, text: str) -> None:
    """A file that was there before."""
    path = server.data / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    for each in (path, path.parent):
        os.chown(each, UID, UID)


def test_outputs(node: Node, server: Storage) -> None:
    done = node.run_job(writes(node, server, BOTH))
    assert results(done) == ["ours", "ours"]
    assert [(o.file, o.bytes, o.came_back) for o in done.report.outputs] == [
        (f"{server.url}/sub/a.fit", 3, False),
        (f"{server.url}/b", 0, False),
    ]
    assert server.files() == PUBLISHED and server.left() == []


def test_again(node: Node, server: Storage) -> None:
    node.run_job(writes(node, server, BOTH))
    assert results(node.run_job(writes(node, server, BOTH, "again"))) == ["same", "same"]
    done = node.run_job(writes(node, server, {"a.fit": "new", "b": "B"}, "other"))
    assert results(done) == ["earlier", "earlier"]
    assert [(o.sha256, o.bytes) for o in done.report.outputs] == [(sha256(b"AAA"), 3), (sha256(b""), 0)]
    assert server.files() == PUBLISHED and server.left() == []


def test_some_are_there_with_the_same_content(node: Node, server: Storage) -> None:
    put(server, "sub/a.fit", "AAA")
    assert results(node.run_job(writes(node, server, BOTH))) == ["same", "ours"]
    assert server.files() == PUBLISHED and server.left() == []


@pytest.mark.parametrize("name", ["sub/a.fit", "b"])
@pytest.mark.fault(
    fault="half of the outputs are on the server from another attempt",
    mode="any",
    does="overwrites nothing, says what to remove",
    code=88,
)
def test_a_mixture(node: Node, server: Storage, name: str) -> None:
    put(server, name, "old")
    done = node.run_job(writes(node, server, BOTH))
    assert done.code == 88 and f"remove {server.url}/{name}" in done.message
    assert server.files() == {name: "old"} and server.left() == []


@pytest.mark.fault(
    fault="attempts of one job publish to a server at once",
    mode="any",
    does="takes a lock: one whole set, the others use it",
    code=0,
)
def test_attempts_at_once_publish_one_whole_set(node: Node, server: Storage) -> None:
    jobs = [writes(node, server, {"a.fit": f"a{i}", "b": f"b{i}"}, f"job{i}") for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(node.run_job, jobs))
    assert sorted(results(done)[0] for done in ends) == ["earlier"] * 3 + ["ours"]
    published = server.files()
    assert published["sub/a.fit"][1:] == published["b"][1:] and server.left() == []
    expected = [sha256(published[name].encode()) for name in PUBLISHED]
    assert all([o.sha256 for o in done.report.outputs] == expected for done in ends)


@pytest.mark.fault(
    fault="an attempt was killed while it held a server's lock",
    mode="any",
    does="waits, overwrites nothing, names the lock",
    code=88,
)
def test_a_lock_that_stays(node: Node, server: Storage) -> None:
    lock = server.data / "sub/.a.fit.lock"
    put(server, "sub/.a.fit.lock", "g0.s1.x") if server.kind == "xrootd" else lock.mkdir(parents=True)
    os.chown(server.data / "sub", UID, UID)
    done = node.run_job(writes(node, server, BOTH), env={"FERMIGRID_RIVAL_WAIT": "1"})
    assert done.code == 88 and f"{server.url}/sub/.a.fit.lock" in done.message and "remove it" in done.message
    assert lock.exists() and server.left() == [".a.fit.lock"]


@pytest.mark.fault(fault="the storage server is gone at stage-out", mode="any", does="tries again, says why", code=88)
def test_no_server(node: Node, server: Storage) -> None:
    gone = Storage(server.kind, server.url.replace(f":{server.port}/", ":1/"), server.data, 1)
    done = node.run_job(writes(node, gone, BOTH))
    assert done.code == 88 and "a.fit cannot be written" in done.message and done.report.payload_exit == 0
    assert done.err.count("again in") == 2


@pytest.mark.fault(
    fault="the storage server does not allow the user to write",
    mode="any",
    does="does not try again, says why",
    code=88,
)
def test_may_not_write(node: Node, server: Storage) -> None:
    os.chown(server.data, 0, 0)
    done = node.run_job(writes(node, server, BOTH))
    assert done.code == 88 and server.files() == {}
    assert server.kind == "http" or "again in" not in done.err  # nginx says 500


def arriving(server: Storage) -> list[Path]:
    """Files that a server is taking; nginx has a folder of its own for them."""
    return [
        path for path in server.data.parent.rglob("*") if path.name[-5:] == ".part" or path.parent.name == "client_body"
    ]


def worker_pid(process: subprocess.Popen[bytes]) -> int:
    """The worker that nsenter has started."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.parametrize("name", ["TERM", "KILL"])
def test_a_signal_in_stage_out(node: Node, server: Storage, name: str) -> None:
    """TERM leaves nothing; KILL leaves names that say of which attempt they are."""
    job = writes(node, server, {}, args=["/bin/sh", "-c", "head -c 300000000 /dev/zero > a.fit; : > b"])
    process = node.start_job(job)
    wait_for(lambda: any(path.stat().st_size for path in arriving(server)), "an output is on its way", 60)
    os.kill(worker_pid(process), getattr(signal, f"SIG{name}"))
    out, err = node.ended(process, 60)
    if name == "TERM":
        done = read_log(process.returncode, out, err.decode())
        assert done.code == 143 and "in phase stage_out" in done.message
        assert server.left() == [] and server.files() == {}
    else:
        assert all(left.startswith(".a.fit.g0.s1.") and left.endswith(".part") for left in server.left())


@pytest.mark.fault(fault="the storage server's disk is full", mode="any", does="says so, leaves nothing there", code=88)
def test_a_full_server(node: Node, server: Storage) -> None:
    node.sh('mount -t tmpfs -o size=1m,mode=1777 small "$1"', server.data)
    job = writes(node, server, {}, args=["/bin/sh", "-c", "head -c 3000000 /dev/urandom > a.fit; : > b"])
    done = node.run_job(job)
    assert done.code == 88 and "a.fit cannot be written" in done.message
    assert node.sh("find $1 -name '*.part' -o -name a.fit -o -name '*.lock'", server.data) == ""
