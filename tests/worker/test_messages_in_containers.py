"""The pipeline's messages with the real Apptainer: the wrapper outside, the wrapper inside, and a container of the site."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from tests.message_servers import Box, smtp
from tests.worker.node import IMAGES, Node
from tests.worker.test_messages import ENV, LINES, SETS, WHO, expected, masked, results
from tests.worker.worker_job import Done, Job, read_log

pytestmark = pytest.mark.pool

LIGHT = IMAGES / "cvmfs/fermi.test/images/light-1"
OUTSIDE = {"launch": "worker", "order": "wrapper-outside", "runtime": "apptainer"}
HEADS = {"outside": OUTSIDE, "inside": OUTSIDE | {"order": "wrapper-inside"}, "site": OUTSIDE | {"launch": "site"}}
ORDERS = pytest.mark.parametrize("order", HEADS)


def make(node: Node, order: str, script: str, box: Box, *more: tuple[str, str]) -> Job:
    settings = [("image.marker", "light-1"), ("image.path", str(LIGHT)), *WHO, ("message.via", box.address), *more]
    payload = {"payload": f"#!/bin/bash\n{script}\n"}
    return node.job(args=["./payload"], code=payload, settings=settings, head=HEADS[order])


def start(node: Node, order: str, job: Job) -> Any:
    """The worker; for `site` in a container that somebody else has started."""
    if order != "site":
        return node.start_job(job, env=ENV)
    around = ["apptainer", "-q", "exec", "--contain", "--no-home", "--bind", f"{job.scratch}:/srv", "--pwd", "/srv"]
    argv = job.write()
    node.sh('chown -R fermi: "$1"', job.scratch)
    return node.start(*around, str(LIGHT), *argv, env={"APPTAINERENV_TZ": ENV["TZ"]}, folder=job.scratch)


def ended(node: Node, process: Any) -> Done:
    out, err = node.ended(process, 60)
    return read_log(process.returncode, out, err.decode(errors="replace"))


def messages(job: Job, done: Done, order: str, lines: str = "", **how: Any) -> list[str]:
    folder = "/srv" if order == "site" else str(job.scratch)
    return [
        text.replace(f"WorkDir: {job.scratch}\n", f"WorkDir: {folder}\n") for text in expected(job, done, lines, **how)
    ]


@ORDERS
def test_the_same_messages_whoever_starts_the_container(node: Node, order: str) -> None:
    with smtp() as box:
        job = make(
            node, order, SETS + "\n/bin/sh -c 'pipelineSet sh yes'; PATH=/bin bash -c 'pipelineSet path own'", box
        )
        done = ended(node, start(node, order, job))
    assert (done.code, results(done)) == (0, [("start", "sent"), ("end", "sent")]), done.err
    lines = LINES + "Pipeline.sh: yes\nPipeline.path: own\n"
    assert [masked(post.text) for post in box.got] == messages(job, done, order, lines)


@ORDERS
def test_the_seconds_are_the_payloads(node: Node, order: str) -> None:
    burn = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; exit 3"
    with smtp() as box:
        done = ended(node, start(node, order, make(node, order, burn, box)))
    user, elapsed = done.data["user"], done.data["phases"]["payload"]
    assert done.code == 3 and 0.3 < user < elapsed + 0.3
    end = box.got[1].text.decode()
    assert f"\r\nElapsed: {elapsed:.3f}\r\nUser: {user:.3f}\r\n" in end and "\r\nExitCode: 3\r\n" in end


@ORDERS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGXCPU])
def test_a_signal(node: Node, order: str, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'pipelineSet saved yes; exit 4' {name}; echo ready; while :; do sleep 0.05; done"
    with smtp() as box:
        job = make(node, order, script, box)
        process = start(node, order, job)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        worker = node.sh('pgrep -o -f "worker.sh [r]un"').strip()
        node.sh('kill -s "$1" "$2"', name, worker)
        done = ended(node, process)
    assert (done.code, done.data["signals"]) == (4, [name]), done.err
    end = messages(job, done, order, "Pipeline.saved: yes\n", code=4, signals=name)[1]
    assert masked(box.got[1].text) == end


@pytest.mark.fault(
    fault="messages: the worker in the container is killed",
    mode="inside",
    does="the one on the host sends the end message, with its own exit code",
    code=99,
)
def test_the_inner_worker_is_killed(node: Node) -> None:
    with smtp() as box:
        job = make(node, "inside", "pipelineSet before kill; kill -KILL $PPID; sleep 60", box)
        done = ended(node, start(node, "inside", job))
    assert done.code == 99 and done.report.payload_exit is None
    assert [masked(post.text) for post in box.got] == messages(job, done, "inside", "Pipeline.before: kill\n", code=99)
