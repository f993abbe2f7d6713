"""The pipeline's messages on the real pool: from the node by SMTP, and from the submit side what a node cannot send."""

from __future__ import annotations

import pytest

from tests.message_servers import smtp
from tests.pool.product import Product

pytestmark = pytest.mark.pool

CAMPAIGN = """\
campaign: piped
image: light
code: [payload]
runs: {count: 1}
retries: {max: 1}
steps:
  go:
    command: [./payload]
    resources: {memory: 256 MiB, disk: 256 MiB}
messages: {instance: "42", from: l1@example.org, to: pipeline@example.org, log: /logs/42.txt}
"""
SITE = """\
site: nodes
title: a test's view of a native pool
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {{requirements: 'GLIDEIN_Site == "SITEA"'}}
container: {container}
output: {{kind: transfer}}
messages: {{via: ["{route}"], timeout: 5 s}}
"""
CONTAINERS = {
    "outside": "{launch: worker, order: wrapper-outside}",
    "inside": "{launch: worker, order: wrapper-inside}",
    "site": "{launch: site, dialect: self-healing}",
}
PAYLOAD = "#!/bin/sh\npipelineSet events 12\npipelineCreateStream doChunk -1 'a=1, b=2'\nexit 3\n"
LINES = "Pipeline.events: 12\nPipelineCreateStream.doChunk.-1: a=1, b=2\nElapsed: "


def submit(product: Product, container: str, route: str, campaign: str = CAMPAIGN) -> None:
    product.write("sites/nodes.yaml", SITE.format(container=CONTAINERS[container], route=route))
    product.write("payload", PAYLOAD).chmod(0o755)
    product.write("c.yaml", campaign)
    product.run("submit", "c.yaml", "--site", "nodes", "--sites", "sites", "--run-dir", "run", "--wait", code=1)


@pytest.mark.parametrize("container", CONTAINERS)
def test_from_the_node(product: Product, container: str) -> None:
    with smtp() as box:
        submit(product, container, box.address)
    start, end = (post.text.decode().replace("\r\n", "\n") for post in box.got)
    assert start.endswith("\nLogFile: /logs/42.txt\nStatus: Started\n")
    assert LINES in end and "\nExitCode: 3\n" in end and end.endswith("\nSignals: \nStatus: Ended\n")
    (report,) = product.reports("run", "go.0000")
    assert [message["result"] for message in report["messages"]] == ["sent", "sent"]
    assert report["container"] == ("site" if container == "site" else "worker") and report["user"] > 0


def test_from_the_submit_side(product: Product) -> None:
    """A job's /tmp is its own, so that the node has no such folder."""
    spool = product.folder / "spool"
    spool.mkdir(mode=0o777)
    spool.chmod(0o777)
    submit(product, "outside", f"spool:{spool}")
    (report,) = product.reports("run", "go.0000")
    assert [message["result"] for message in report["messages"]] == ["unsent", "unsent"]
    kinds = {path.name.rpartition(".")[2]: path.read_text() for path in spool.iterdir()}
    assert set(kinds) == {"start", "end"} and LINES in kinds["end"]
    assert [kinds[message["kind"]] for message in report["messages"]] == [m["text"] for m in report["messages"]]


def test_a_job_that_htcondor_starts_again_says_so(product: Product) -> None:
    campaign = CAMPAIGN.replace("    resources", "    inputs: {x: /nonexistent/x}\n    resources")
    with smtp() as box:
        submit(product, "outside", box.address, campaign)
    texts = [post.text.decode().replace("\r\n", "\n") for post in box.got]
    assert ["# Attempt: 2, " in text for text in texts] == [False, False, True, False]
    assert [text.count("\nExitCode: 86\n") for text in texts] == [0, 1, 0, 1]
    ids = [next(line for line in text.splitlines() if line.startswith("Message-ID")) for text in texts]
    assert len(set(ids)) == 4 and ".g0.s2." in ids[3]
