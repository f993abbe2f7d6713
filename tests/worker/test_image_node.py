"""The image ladder with the real thing: Apptainer, a registry, squid, a cache on a file system that hangs."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.worker.faulty_http import Faulty, serve
from tests.worker.node import UID, Node, built, running_node, wait_for
from tests.worker.registry import Registry, registry_of
from tests.worker.worker_job import Done, Job, Pairs, sha256

pytestmark = pytest.mark.pool

HEAD = {"launch": "worker", "order": "wrapper-outside", "runtime": "apptainer"}
BASE = [("image.marker", "tiny-1"), ("limit.path", "3"), ("limit.http", "60")]


@pytest.fixture
def tiny() -> Iterator[Faulty]:
    """An HTTP server with the tiny image as a SIF."""
    with serve((built()["images"] / "http/images/tiny-1.sif").read_bytes()) as server:
        yield server


@dataclass(frozen=True)
class Pulling:
    """A node that trusts the certificate of a registry."""

    node: Node
    registry: Registry

    def job(self, name: str, *settings: Pairs) -> Job:
        return tiny_job(self.node, name, [("image.registry", self.registry.reference)], *settings)


@pytest.fixture
def pulling(tmp_path: Path) -> Iterator[Pulling]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    image = built()["images"] / "cvmfs/fermi.test/images/tiny-1"
    trusted = f"{tmp_path}/ca.pem:/etc/ssl/certs/ca-certificates.crt:ro"
    with registry_of(image, context) as registry, running_node(binds=[trusted]) as node:
        yield Pulling(node, registry)


def of(server: Faulty, way: str = "good") -> Pairs:
    url, content = f"{server.url}/{way}/tiny.sif", server.content
    return [("image.url", url), ("image.sha256", sha256(content)), ("image.size", str(len(content)))]


def cache_of(node: Node, limit: int = 100_000_000) -> Pairs:
    return [("node_cache", str(node.folder / "cache")), ("node_cache.limit", str(limit))]


def tiny_job(
    node: Node,
    name: str,
    *settings: Pairs,
    head: dict[str, str] = HEAD,
    args: tuple[str, ...] = ("/bin/echo", "payload ran"),
) -> Job:
    return node.job(name, settings=[*BASE, *(pair for pairs in settings for pair in pairs)], head=head, args=args)


def ran(done: Done) -> bool:
    return done.code == 0 and b"payload ran" in done.out


def in_use(node: Node, image: Path) -> bool:
    return node.run("flock", "-x", "-n", image, "true").returncode != 0


# an order of the wrapper inside needs bash in the image
@pytest.mark.parametrize("order", ["wrapper-outside", "wrapper-inside"])
def test_the_image_is_held_while_the_container_runs(node: Node, order: str) -> None:
    light = built()["images"] / "http/images/light-1.sif"
    with serve(light.read_bytes()) as server:
        settings = [("image.marker", "light-1"), *of(server), *cache_of(node)]
        args = ("/bin/sh", "-c", "echo began > began; while [ ! -e end ]; do sleep 0.1; done")
        job = node.job("held", settings=settings, head=HEAD | {"order": order}, args=args)
        process = node.start_job(job)
        wait_for((job.scratch / "work/began").exists, "the payload has not begun", 40)
        (image,) = (node.folder / f"cache/u{UID}").glob("*.sif")
        assert in_use(node, image)
        (job.scratch / "work/end").touch()
        node.ended(process, 30)
        assert process.returncode == 0 and not in_use(node, image)


@pytest.mark.fault(
    fault="the node's cache hangs, unkillably", mode="worker", does="goes without it after limit.path", code=0
)
def test_a_cache_that_hangs(node: Node, tiny: Faulty) -> None:
    node.mount_bad("/mnt/bad")
    job = tiny_job(node, "hangs", of(tiny), [("node_cache", "/mnt/bad/hang/cache"), ("node_cache.limit", "100000000")])
    done = node.run_job(job)
    assert ran(done) and done.report.rung == "http" and "no answer within 3 s" in done.err
    assert 3 <= done.data["phases"]["image"] < 20


@pytest.mark.fault(
    fault="no other source than a registry", mode="worker", does="lets the runtime pull the image by its digest", code=0
)
def test_a_registry(pulling: Pulling) -> None:
    done = pulling.node.run_job(pulling.job("registry"))
    assert ran(done), done.err
    assert done.report.rung == "registry" and done.data["image"]["source"] == pulling.registry.reference


@pytest.mark.fault(
    fault="the registry has another image under the digest", mode="worker", does="is refused by the runtime", code=82
)
def test_a_registry_that_lies(pulling: Pulling) -> None:
    pulling.registry.lie = True
    done = pulling.node.run_job(pulling.job("lies"))
    assert done.code == 82 and b"payload ran" not in done.out and pulling.registry.pulls() > 0


def test_a_registry_is_asked_once_a_node(pulling: Pulling) -> None:
    jobs = [pulling.job(f"once{i}", cache_of(pulling.node)) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(pulling.node.run_job, jobs))
    assert all(ran(done) for done in ends), [done.err for done in ends]
    assert sorted(done.report.rung for done in ends) == ["cache"] * 3 + ["registry"]
    blobs = [path for path in pulling.registry.requests if "/blobs/" in path]
    assert len(set(blobs)) == 2 == len(blobs)


# --- the site's proxy

SQUID = """
http_port 127.0.0.1:{port}
acl all_of_them src 127.0.0.1
http_access allow all_of_them
collapsed_forwarding on
maximum_object_size 100 MB
cache_mem 64 MB
maximum_object_size_in_memory 64 MB
pid_filename {folder}/squid.pid
access_log stdio:{folder}/access.log
cache_log {folder}/cache.log
logfile_rotate 0
shutdown_lifetime 1 seconds
"""


@pytest.fixture
def squid(node: Node) -> str:
    """A squid in the node, as a site has one; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = node.folder / "squid"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "squid.conf").write_text(SQUID.format(port=port, folder=folder))
    node.serve("squid", "-N", "-f", folder / "squid.conf", user="fermi")

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(answers, f"squid does not answer: {folder}/cache.log", 20)
    return f"http://127.0.0.1:{port}"


def test_nodes_of_a_site_with_squid_make_one_download(node: Node, squid: str, tiny: Faulty) -> None:
    """Six nodes (six jobs without a cache) at the same moment: squid asks the origin once."""
    tiny.hold_s = 2
    jobs = [tiny_job(node, f"squid{i}", of(tiny, "slow"), [("http_proxy", squid)]) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        ends = list(pool.map(node.run_job, jobs))
    assert all(ran(done) and done.report.rung == "http" for done in ends), [done.err for done in ends]
    assert len(tiny.requests) == 1


def test_a_folder_image_runs(node: Node) -> None:
    """From a tar file into the cache, started in place by the real runtime."""
    folder = built()["images"] / "cvmfs/fermi.test/images/tiny-1"
    tar = subprocess.run(["tar", "-C", folder, "-cz", "."], check=True, capture_output=True).stdout
    with serve(tar) as server:
        settings = [*of(server), ("image.format", "directory")]
        first = node.run_job(tiny_job(node, "folder0", settings, cache_of(node)))
        second = node.run_job(tiny_job(node, "folder1", settings, cache_of(node)))
    assert ran(first) and ran(second), first.err + second.err
    assert [first.report.rung, second.report.rung] == ["http", "cache"] and len(server.requests) == 1
