"""Outputs of a campaign on the pool that go to a real XRootD server, and what a failed job brings back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pool.product import Product
from tests.worker.node import running_node
from tests.worker.storage import Storage, start_xrootd

pytestmark = pytest.mark.pool

SITE = """
site: stored
title: The pool, with outputs on a server
contact: c
manual: m
backend: htcondor
htcondor: {{requirements: HasSingularity}}
container: {{launch: worker, runtimes: [apptainer]}}
output: {{kind: xrootd, root: "{root}"}}
"""
CAMPAIGN = r"""
campaign: stored
image: light
runs: {count: 3}
steps:
  make:
    command: [sh, -c, "printf '\\177ELF core' > core.7; echo {run} > a; [ {run} != 0001 ]"]
    outputs: {a: "v1/{run}.fit"}
"""


@pytest.fixture
def server() -> Iterator[Storage]:
    """A server on the loopback address, which is the pool's as well."""
    with running_node() as node:
        yield start_xrootd(node, "xrootd.chksum adler32")


@pytest.mark.usefixtures("pool")
def test_outputs_on_a_server_and_core_files(product: Product, server: Storage) -> None:
    product.write("sites/stored.yaml", SITE.format(root=server.url))
    product.write("c.yaml", CAMPAIGN)
    product.run("submit", "c.yaml", "--site", "stored", "--sites", "sites", "--wait", code=1)
    assert server.files() == {"v1/0000.fit": "0000\n", "v1/0002.fit": "0002\n"}
    assert server.left() == []
    (report,) = product.reports("stored", "make.0000")
    assert report["outputs"][0]["file"] == f"{server.url}/v1/0000.fit"
    (report,) = product.reports("stored", "make.0001")
    (core,) = report["cores"]
    why = product.run("why", "stored", "make.0001").stdout
    (kept,) = product.folder.rglob(core["file"])
    assert kept.read_bytes() == b"\x7fELF core" and f"{kept.parent}: {kept.name}" in why
