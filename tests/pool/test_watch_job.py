"""`fermigrid watch --as-job`: a job of the schedd itself watches a campaign, whatever is killed. fermigrid is in the pool."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fermigrid.ledger_file import writing
from tests.pool.batches import wait_for
from tests.pool.conftest import COMMAND, Pool, call_pool, pool_folder, shared_pool
from tests.pool.product import UID
from tests.pool.test_backend_htcondor_faults import schedd_of

pytestmark = pytest.mark.pool
CANARY = "canary-4711-of-a-token"
SITE = "site: mine\nextends: pool\nhtcondor: {requirements: 'GLIDEIN_Site == \"SITEA\"', timeout: 5 s, settle: 1 s}\n"
CAMPAIGN = """\
campaign: NAME
image: light
runs: {count: 4}
block: 2
steps:
  go: {command: [sleep, "SECONDS"]}
  on: {command: ["true"], after: [go]}
"""


@dataclass(frozen=True)
class Inside:
    """A person in the pool: where the schedd is, with a folder and fermigrid."""

    pool: Pool
    folder: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`fermigrid WORDS`, running."""
        mine = {
            "FERMIGRID_STATE": str(self.folder / "state"),
            "FERMIGRID_POLL_S": "0.5",
            "HOME": str(self.folder),
            "BEARER_TOKEN": CANARY,
            "MY_PASSWORD": CANARY,
        }
        program = self.pool.directory / "fermigrid/fermigrid"
        settings = [f"{name}={value}" for name, value in mine.items()]
        return subprocess.Popen(
            [COMMAND, "as", "fermi", "env", *settings, program, *words],
            env=os.environ | {"POOL_DIR": str(self.pool.directory)},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *words: str, code: int | None = 0) -> str:
        return self.finish(self.start(*words), code)

    def finish(self, process: subprocess.Popen[str], code: int | None = 0) -> str:
        out, err = process.communicate(timeout=100)
        assert code is None or process.returncode == code, f"exit {process.returncode}\n{out}{err}{self.said()}"
        return out + err

    def submit(self, seconds: int, *options: str) -> None:
        name = self.folder.name
        (self.folder / "sites").mkdir()
        (self.folder / "sites/mine.yaml").write_text(SITE)
        (self.folder / "c.yaml").write_text(CAMPAIGN.replace("NAME", name).replace("SECONDS", str(seconds)))
        self("submit", "c.yaml", "--site", "mine", "--sites", "sites", "--run-dir", "run", *options)

    def said(self) -> str:
        """What the job said so far, and HTCondor of it."""
        files = sorted((self.folder / "run/watch").glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self("status", "run", "--json")))

    def jobs(self) -> list[dict[str, Any]]:
        """The watch jobs in the queue."""
        told = self.pool.run("fermi", "condor_q", "-json", "-constraint", "FermigridWatch =!= undefined")
        assert told.returncode == 0, told.stderr
        return [ad for ad in json.loads(told.stdout or "[]") if ad["FermigridCampaign"] == self.folder.name]

    def processes(self) -> list[int]:
        """Those of the watch job, by their numbers here."""
        wanted, found = [str(self.folder / "run"), "--is-job"], []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = file.read_text().split("\0")
            except OSError:
                continue
            if wanted == words[words.index("watch") + 1 :][:2] if "watch" in words else False:
                found.append(int(file.parent.name))
        return found

    def begins(self) -> int:
        """How often the job has begun."""
        file = self.folder / "run/watch/watch.log"
        return file.read_text().count("begins at ") if file.is_file() else 0

    def wait_for_begin(self, times: int, limit: float = 60) -> None:
        try:
            wait_for(lambda: self.begins() >= times and self.processes(), f"the job begins {times} times", limit)
        except AssertionError as error:
            error.add_note(self.said())
            raise


@pytest.fixture(scope="module")
def own_pool() -> Iterator[Pool]:
    """A pool whose schedd may be killed, with fermigrid in it."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    folder = pool_folder().with_name(f"{pool_folder().name}-watch-{worker}")
    try:
        with shared_pool(folder) as running:
            done = call_pool(folder, "start", "fermigrid", timeout=300)
            assert done.returncode == 0, done.stderr
            yield running
    finally:
        call_pool(folder, "clean")


@pytest.fixture
def person(own_pool: Pool, request: pytest.FixtureRequest) -> Iterator[Inside]:
    folder = own_pool.work / request.node.name.removeprefix("test_").replace("_", "-")
    folder.mkdir()
    os.chown(folder, UID, UID)
    inside = Inside(own_pool, folder)
    yield inside
    for ad in inside.jobs():
        own_pool.run("fermi", "condor_rm", str(ad["ClusterId"]))


def kill(processes: Sequence[int]) -> None:
    assert processes
    for process in processes:
        os.kill(process, signal.SIGKILL)


def test_it_is_one_job_and_comes_back_whatever_is_killed(person: Inside) -> None:
    person.submit(8)
    both = [person.start("watch", "run", "--as-job") for _ in range(2)]
    told = sorted(person.finish(process) for process in both)
    assert ["already" in text for text in told].count(True) == 1, told
    (job,) = person.jobs()
    assert all(f"is watched by job {job['ClusterId']} of pool@" in text for text in told)
    assert all("not given to it, because all who read the queue could read it: BEARER_TOKEN" in text for text in told
               if "already" not in text)  # fmt: skip
    person.wait_for_begin(1)
    assert CANARY not in json.dumps(job), "in the queue"
    (process,) = person.processes()
    seen = [Path(f"/proc/{process}/{name}").read_text() for name in ("environ", "cmdline")]
    assert CANARY not in "".join(seen)
    assert os.getpriority(os.PRIO_PROCESS, process) == 10
    assert f"watched by job {job['ClusterId']} of pool@" in str(person.status()["watched"])

    kill(person.processes())
    person.wait_for_begin(2)
    schedd = schedd_of(person.pool)
    kill([schedd])
    wait_for(lambda: schedd_of(person.pool) not in (0, schedd), "a new schedd")
    person.wait_for_begin(3)
    assert len(person.processes()) == 1
    assert "already" in person("watch", "run", "--as-job")

    wait_for(lambda: not person.jobs(), "it ends with its campaign", 100)
    status = person.status()
    assert {state: jobs for state, jobs in status["states"].items() if jobs} == {"done": 8}, person.said()
    assert "watched by nobody: job" in status["watched"]
    assert "nothing is left to wait for" in person.said()
    assert not person.processes()
    history = person("status", "run", "--history")
    assert history.count("submitted batch") == 4, "each batch was sent once"


def test_it_waits_for_a_person_and_ends_when_the_campaign_is_removed(person: Inside) -> None:
    person.submit(1, "--trial", "2", "--no-wait")
    person("watch", "run", "--as-job")
    person.wait_for_begin(1)
    wait_for(lambda: person.status()["states"]["done"] == 4, "the trial has ended")
    ledger = person.folder / "run/ledger.sqlite"
    with writing(ledger, 10):
        looked = person.status()["looked"]
        assert "another fermigrid" in person("resume", "run", code=15)
        assert person.jobs()[0]["JobStatus"] == 2, "it has waited for us"
    person("resume", "run")
    wait_for(lambda: person.status()["looked"] > looked or person.status()["states"]["done"] == 8, "it goes on", 90)
    assert len(person.processes()) == 1 or person.status()["states"]["done"] == 8
    person("remove", "run")
    wait_for(lambda: not person.jobs() and not person.processes(), "it ends with its campaign")
    assert person.begins() == 1, person.said()


def test_an_error_that_stays_does_not_make_it_spin(person: Inside) -> None:
    person.submit(30)
    campaign = person.folder / "run/campaign.yaml"
    whole = campaign.read_text()
    person("watch", "run", "--as-job")
    person.wait_for_begin(1)
    kill(person.processes())
    campaign.write_text("campaign: [\n")
    person.wait_for_begin(2)
    wait_for(lambda: "no YAML" in person.said() or "YAML" in person.said(), "it says what is wrong")
    campaign.write_text(whole)
    seen = person.said().count("YAML")
    assert seen <= 2, person.said()
    before = person.status()["looked"]
    wait_for(lambda: person.status()["looked"] != before, "it goes on when the error has gone")
    assert person.begins() == 2, person.said()
    person("remove", "run")
    assert not person.jobs()
