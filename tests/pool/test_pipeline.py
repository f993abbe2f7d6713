"""`fermigrid pipeline` on the real pool: a job folder that nodes see, a real container in both orders, a real mail server."""

from __future__ import annotations

import email
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.message_servers import smtp
from tests.pool.product import AS_FERMI, UID, Product
from tests.pool.test_kill import batches_of, clusters

pytestmark = pytest.mark.pool

LIMIT_S = 180.0
PATTERN = re.compile(r"submitted to cluster (\d+)\.")  # the job control's own
SHARED = Path("/sps")  # of the nodes; this machine gets it in a mount namespace of the command's own
SEE_SHARED = ("unshare", "--mount", "sh", "-euc", 'mount --bind "$1" "$2"; cd "$3"; shift 3; exec "$@"', "sees-sps")
SITE = """\
site: NAME
title: a test's view of a site with a shared file system
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {requirements: 'GLIDEIN_Site == "WHERE"', settle: 1 s}
container: {launch: worker, order: ORDER}
binds: [{from: /sps, mode: rw}]
messages: {via: ["ROUTE"], timeout: 5 s}
output: {kind: transfer}
"""
SCRIPT = """\
cat /etc/fermigrid-image
pwd
env -0 > seen.env
echo "costs \\$5" | tee result
pipelineSet nEvents 12
pipelineCreateStream sub -1 "a=1,b=2"
"""
HOSTILE = {
    "PIPELINE_A": 'it\'s "quoted" \\ `x` $(touch pwned) ${HOME} a=b;c\td',
    "PIPELINE_B": "line\nbreaks\r\n\n",
    "PIPELINE_C": "Grüße ☃ $$(Cpus) $(DOLLAR) {run} %s",
    "GPL_D": " lead and trail ",
    "PIPELINE_E": "",
}


@dataclass(frozen=True)
class Farm:
    """The job control, with a job folder on the shared file system: `here` as this machine sees it, `name` as nodes do."""

    product: Product
    here: Path
    instance: int

    @property
    def name(self) -> Path:
        return SHARED / self.here.name

    def environment(self, instance: int) -> dict[str, str]:
        return {
            **self.product.environment,
            "PIPELINE_FROMADDRESS": "l1@example.org",
            "PIPELINE_TOADDRESS": "pipeline@example.org",
            "PIPELINE_ERRORADDRESS": "errors@example.org",
            "PIPELINE_PROCESSINSTANCE": str(instance),
            "JOBCONTROL_LOGFILE": str(self.name / "logFile.txt"),
        }

    def start(self, *arguments: str, instance: int = 0, more: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        shared = self.product.pool.directory / "sps"
        wrap = (*SEE_SHARED, str(shared), str(SHARED), str(self.name), *AS_FERMI)
        return subprocess.Popen(
            [*wrap, sys.executable, "-m", "fermigrid", *arguments],
            env={**self.environment(instance or self.instance), **(more or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, code: int = 0, **how: Any) -> tuple[str, str]:
        process = self.start(*arguments, **how)
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out, err

    def submit(self, site: str, *arguments: str, **how: Any) -> str:
        """Submits; the cluster, found as the job control finds it in both streams."""
        sites = str(self.product.folder / "sites")
        out, err = self.run("pipeline", "submit", "--site", site, "--sites", sites, *arguments, **how)
        (cluster,) = PATTERN.findall(out + err)
        return str(cluster)

    def status(self, *clusters: str) -> dict[str, Any]:
        (found,) = json.loads(self.run("pipeline", "status", "--json", *clusters)[0])
        return dict(found)

    def reach(self, *states: str) -> dict[str, Any]:
        """The job in the folder when it is in one of these states."""
        deadline = time.monotonic() + LIMIT_S
        while (now := self.status())["state"] not in states or (now["exit"] is not None and now["problems"]):
            assert time.monotonic() < deadline, f"{now}\n{self.logs()}"
            time.sleep(0.3)
        return now

    def logs(self) -> str:
        found = [*self.here.rglob("*.log"), *self.here.rglob("logFile.txt*")]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in found)

    def text(self, name: str) -> str:
        return (self.here / name).read_text()


@pytest.fixture
def farm(product: Product) -> Iterator[Farm]:
    SHARED.mkdir(exist_ok=True)  # empty on this machine
    here = Path(tempfile.mkdtemp(prefix="pipeline-", dir=product.pool.directory / "sps"))
    (product.folder / "sites").mkdir()
    (here / "script").write_text(SCRIPT)
    (here / "pipeline_wrapper").write_text("echo the old wrapper must not run; exit 99\n")
    for path in (here, *here.iterdir()):
        os.chown(path, UID, UID)
    yield Farm(product, here, random.randrange(10**7, 10**8))
    shutil.rmtree(here)


def write_site(
    farm: Farm, name: str, where: str, order: str = "wrapper-outside", route: str = "spool:/nonexistent"
) -> None:
    values = {"NAME": name, "WHERE": where, "ORDER": order, "ROUTE": route}
    text = re.sub("NAME|WHERE|ORDER|ROUTE", lambda word: values[word[0]], SITE)
    farm.product.write(f"sites/{name}.yaml", text)


def wait_for(condition: Callable[[], bool], farm: Farm, what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}\n{farm.logs()}"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("order", "container"),
    [
        ("wrapper-outside", "/cvmfs/fermi.test/images/light-latest"),  # no image of the catalogue: by its path
        ("wrapper-inside", "/cvmfs/fermi.test/images/light-1"),
    ],
)
def test_a_job_of_the_pipeline_in_its_container(farm: Farm, order: str, container: str) -> None:
    with smtp() as box:
        write_site(farm, "farm", "SITEF", order, box.address)
        given = {"PIPELINE_CONTAINER": container, "PIPELINE_CONTAINER_BIND": "-B /lscratch:/lscratch", **HOSTILE}
        given["PIPELINE_CONTAINER_BIN"] = "apptainer"
        cluster = farm.submit("farm", "--max-memory-mb", "200", "--max-cpu-s", "600", more=given)
        assert farm.submit("farm", more={**given, "PIPELINE_A": "changed"}) == cluster
        now = farm.reach("done", "failed")
        mails = [email.message_from_bytes(post.text) for post in box.got]
    assert (now["state"], now["exit"], now["cluster"]) == ("done", 0, cluster), farm.logs()
    assert now["memory_mb"] is not None
    assert now["cpu_s"] is not None
    assert farm.text("logFile.txt").splitlines() == ["light-1", str(farm.name), "costs $5"]
    assert farm.text("result") == "costs $5\n"
    seen = dict(item.split(b"=", 1) for item in (farm.here / "seen.env").read_bytes().split(b"\0") if item)
    assert {name: seen[name.encode()].decode() for name in HOSTILE} == HOSTILE
    assert not any(name.startswith(b"_CONDOR") for name in seen)
    summary = farm.text("pipeline_summary").splitlines()
    assert {"Pipeline.nEvents: 12", "PipelineCreateStream.sub.-1: a=1,b=2", "ExitCode: 0"} <= set(summary)
    assert [mail["Subject"] for mail in mails] == [str(farm.instance)] * 2
    bodies = [str(mail.get_payload()).replace("\r\n", "\n") for mail in mails]
    assert bodies[0].endswith("Status: Started\n")
    assert bodies[1].splitlines() == summary
    assert f"WorkDir: {farm.name}" in summary
    assert farm.run("pipeline", "status", cluster)[0].startswith(f"{cluster} done instance={farm.instance} exit=0 ")


def test_a_folder_that_the_nodes_do_not_see(farm: Farm) -> None:
    """File transfer: the folder's files travel, the log and the summary come back; then a second try."""
    (farm.here / "script").write_text('cat data.txt; pwd; pipelineSet here "$(pwd)"; exit 3\n')
    (farm.here / "data.txt").write_text("the data\n")
    with smtp() as box:
        site = (farm.product.pool.directory / "sites/pool-f.yaml").read_text()
        farm.product.write("sites/far.yaml", site.replace("pool-f", "far") + f'messages: {{via: ["{box.address}"]}}\n')
        first = farm.submit("far", more={"PIPELINE_CONTAINER": "light"})
        now = farm.reach("done", "failed")
        assert (now["state"], now["exit"]) == ("failed", 3), farm.logs()
        log = farm.text("logFile.txt")
        assert "the data\n" in log
        assert "Pipeline.here: /srv" in farm.text("pipeline_summary")
        (farm.here / "script").write_text("echo second\n")
        second = farm.submit("far", instance=farm.instance + 1, more={"PIPELINE_CONTAINER": "light"})
        assert farm.reach("done", "failed")["cluster"] == second
    assert farm.text("archive/1/logFile.txt") == log
    assert "second" in farm.text("logFile.txt")
    assert [farm.status(cluster)["state"] for cluster in (first, second)] == ["failed", "done"]
    assert len(box.got) == 4


def test_a_job_that_is_killed_sends_its_end_message(farm: Farm) -> None:
    (farm.here / "script").write_text("touch started; while :; do sleep 0.2; done\n")
    with smtp() as box:
        write_site(farm, "farm", "SITEF", route=box.address)
        cluster = farm.submit("farm", more={"PIPELINE_CONTAINER": "light"})
        wait_for((farm.here / "started").exists, farm, "the job did not start")
        assert farm.reach("running")["host"]
        farm.run("pipeline", "submit", "--site", "farm", "--sites", str(farm.product.folder / "sites"),
                 instance=farm.instance + 1, code=14, more={"PIPELINE_CONTAINER": "light"})  # fmt: skip
        farm.run("pipeline", "kill", cluster)
        assert farm.reach("removed")["cluster"] == cluster
        wait_for(lambda: len(box.got) == 2, farm, "there is no end message")
        assert b"Signals: TERM" in box.got[1].text
    assert farm.submit("farm") == cluster  # what was killed is not sent again


def test_held_is_not_failed(farm: Farm) -> None:
    write_site(farm, "nowhere", "SITEX")
    cluster = farm.submit("nowhere", more={"PIPELINE_CONTAINER": "light"})
    assert farm.status(cluster)["state"] == "waiting"
    farm.run("hold", str(farm.name / ".fermigrid" / str(farm.instance)))
    out, err = farm.run("pipeline", "status", cluster)
    assert re.fullmatch(rf"{cluster} held instance={farm.instance} since=\S+\n", out)
    assert re.search(rf"{cluster}: \S+ \S+", err)  # the reason, which has blanks
    farm.run("pipeline", "kill", cluster)
    assert farm.reach("removed")


def killed_and_repeated(farm: Farm, chance: random.Random, rounds: int) -> None:
    """Each submission killed twice at random moments; every process instance has one cluster, and it is the one printed."""
    write_site(farm, "nowhere", "SITEX")
    arguments = ("pipeline", "submit", "--site", "nowhere", "--sites", str(farm.product.folder / "sites"))
    for number in range(rounds):
        instance = farm.instance + number
        for _ in range(2):
            process = farm.start(*arguments, instance=instance, more={"PIPELINE_CONTAINER": "light"})
            try:
                process.communicate(timeout=chance.uniform(0.1, 1.6))
            except subprocess.TimeoutExpired:
                process.kill()  # `exec` all the way: this is fermigrid
                process.communicate()
        cluster = farm.submit("nowhere", instance=instance, more={"PIPELINE_CONTAINER": "light"})
        run = farm.here / ".fermigrid" / str(instance)
        (batch,) = batches_of(run)
        assert clusters(farm.product, [batch]) == {batch: [cluster]}
        farm.run("pipeline", "kill", cluster)
        assert farm.reach("removed")["cluster"] == cluster


def test_killed_at_any_time(farm: Farm) -> None:
    killed_and_repeated(farm, random.Random(1), 4)


@pytest.mark.drill
def test_killed_a_hundred_times(farm: Farm) -> None:
    """Seeded, so that a failure can be repeated."""
    killed_and_repeated(farm, random.Random(2), 50)
