"""`fermigrid pipeline` by DIRAC: its own line, the environment whole, log, summary and messages back, and kill."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.dirac.pilot import Pilot
from tests.dirac.server import Server
from tests.message_servers import Box, smtp
from tests.pool import test_pipeline as pool_pipeline
from tests.pool.product import UID, Product

pytestmark = [pytest.mark.dirac, pytest.mark.pool]

HOSTILE = {
    **pool_pipeline.HOSTILE,
    "PIPELINE_F": '[a; b] {c, d} %n %j %(row)s 007 // # "x" = $(fg_jobs) $(fg_rows);\n]',
}
PATTERN = re.compile(r'Your job (\d+) \("([^"]+)"\) has been submitted')  # the job control's own, for DIRAC
LIMIT_S = 120.0
SCRIPT = """\
cat /etc/fermigrid-image data.txt
env -0 | base64 -w 0; echo
pipelineSet nEvents 12
exit 3
"""


@dataclass(frozen=True)
class Control:
    """The job control: `product` is at work in the job folder."""

    product: Product
    box: Box
    instance: int

    def run(self, *words: str, code: int = 0, more: Mapping[str, str] | None = None) -> tuple[str, str]:
        own = {
            "PIPELINE_FROMADDRESS": "l1@example.org",
            "PIPELINE_TOADDRESS": "pipeline@example.org",
            "PIPELINE_ERRORADDRESS": "errors@example.org",
            "PIPELINE_PROCESSINSTANCE": str(self.instance),
            "PIPELINE_PROCESS": "doChunk",
            "PIPELINE_CONTAINER": "light",
            "JOBCONTROL_LOGFILE": str(self.product.folder / "logFile.txt"),
        }
        process = self.product.start("pipeline", *words, extra={**own, **(more or {})})
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out, err

    def submit(self, more: Mapping[str, str] | None = None) -> str:
        out, err = self.run("submit", "--site", "mailed", "--max-cpu-s", "600", "--max-memory-mb", "200", more=more)
        ((job, name),) = PATTERN.findall(out)
        assert name == f"doChunk-{self.instance}"
        assert not PATTERN.search(err)  # the job control reads both streams as one
        return str(job)

    def status(self, job: str) -> dict[str, Any]:
        (found,) = json.loads(self.run("status", "--json", job)[0])
        return dict(found)

    def reach(self, job: str, *states: str) -> dict[str, Any]:
        deadline = time.monotonic() + LIMIT_S
        while (now := self.status(job))["state"] not in states or now["problems"]:
            assert time.monotonic() < deadline, now
            time.sleep(0.3)
        return now

    def text(self, name: str) -> str:
        return (self.product.folder / name).read_text()


@pytest.fixture
def control(grid: Product) -> Iterator[Control]:
    folder = grid.folder / "job"
    folder.mkdir(mode=0o755)
    for name, text in (("script", SCRIPT), ("data.txt", "the data\n"), ("pipeline_wrapper", "exit 99\n")):
        (folder / name).write_text(text)
    for path in (folder, *folder.iterdir()):
        os.chown(path, UID, UID)
    with smtp() as box:
        grid.write("sites/mailed.yaml", f'site: mailed\nextends: grid\nmessages: {{via: ["{box.address}"]}}\n')
        yield Control(replace(grid, folder=folder), box, random.randrange(10**7, 10**8))


def test_a_job_of_the_pipeline(control: Control, pilot: Pilot, server: Server) -> None:
    job = control.submit(more=HOSTILE)
    assert control.submit(more={**HOSTILE, "PIPELINE_A": "changed"}) == job
    assert server.may_run() == 1
    assert not any(value and value in server.jdl(int(job)) for value in HOSTILE.values())
    assert control.status(job)["state"] == "waiting"
    with pilot:
        now = control.reach(job, "done", "failed")
    assert (now["state"], now["exit"], now["cluster"]) == ("failed", 3, job)
    image, data, environment = [line for line in control.text("logFile.txt").splitlines() if "fermigrid|" not in line][
        :3
    ]
    assert (image, data) == ("light-1", "the data")
    seen = dict(item.split(b"=", 1) for item in base64.b64decode(environment).split(b"\0") if item)
    assert {name: seen[name.encode()].decode() for name in HOSTILE} == HOSTILE
    assert {"Pipeline.nEvents: 12", "ExitCode: 3"} <= set(control.text("pipeline_summary").splitlines())
    assert len(control.box.got) == 2
    assert control.run("status", job)[0].startswith(f"{job} failed instance={control.instance} exit=3 ")


def test_a_job_that_is_killed(control: Control, server: Server) -> None:
    job = control.submit()
    control.run("kill", job)
    assert control.reach(job, "removed")["cluster"] == job
    assert server.may_run() == 0
    assert control.submit() == job  # what was killed is not sent again
    assert server.may_run() == 0
