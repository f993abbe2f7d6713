"""XRootD, the real server and clients: inputs from it, outputs to it, by an ordinary user of a node."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.node import Node
from tests.worker.storage import Storage, free_port, start_xrootd
from tests.worker.worker_job import Done, Job, sha256

pytestmark = pytest.mark.pool
CONTENT = os.urandom(300_000)
SUMS = [("in.bytes", "300000"), ("in.adler32", f"{zlib.adler32(CONTENT):08x}"), ("in.sha256", sha256(CONTENT))]


@pytest.fixture
def xrootd(node: Node) -> Iterator[Storage]:
    """A server with one file, x.root."""
    server = start_xrootd(node, "xrootd.chksum adler32")
    (server.data / "x.root").write_bytes(CONTENT)
    yield server


def fetch(node: Node, *sources: str, name: str = "job", settings: object = (), **what: object) -> Done:
    """A job with one input."""
    row = [("in", "x.root"), *(("in.from", source) for source in sources), *SUMS]
    return node.run_job(node.job(name, row=row, settings=list(settings), **what))  # type: ignore[call-overload]


def test_an_input(node: Node, xrootd: Storage) -> None:
    done = fetch(node, f"{xrootd.url}/x.root")
    assert done.code == 0, done.err
    staged = done.data["inputs"][0]
    assert (staged["bytes"], staged["sha256"], staged["tries"]) == (300_000, sha256(CONTENT), 1)
    assert staged["verified"] == ["bytes", "adler32", "sha256"]


@pytest.mark.fault(fault="an XRootD server refuses, or does not have the file", mode="worker", does="takes the next replica", code=0)
def test_replicas_that_are_not_there(node: Node, xrootd: Storage) -> None:
    bad = [f"root://127.0.0.1:{free_port()}//data/x.root", f"{xrootd.url}/nope", xrootd.url, f"{xrootd.url[:-4]}other/x"]
    done = fetch(node, *bad, f"{xrootd.url}/x.root")
    assert done.code == 0 and done.data["inputs"][0]["source"] == f"{xrootd.url}/x.root"
    assert done.data["phases"]["stage_in"] < 15
    done = fetch(node, *bad, name="none")
    assert done.code == 86 and all(source in done.message for source in bad)
    assert "no such file" in done.message and "is a directory" in done.message and "disallowed" in done.message
    assert "again" not in "".join(line for line in done.err.splitlines() if "no such file" in line)

