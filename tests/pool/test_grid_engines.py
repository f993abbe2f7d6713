"""What HTCondor's grid universe carries to a real Slurm and to a second schedd, and what comes back: raw submit files.

The engines are `ci/pool start grid`. All jobs are submitted at once, by the first test; each test looks at one of them.
What is shown here is HTCondor's and blahp's own behaviour: fermigrid's dialects are built on it.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pool.conftest import START_LIMIT_S, Pool, call_pool, describe
from tests.pool.test_pool_itself import processes_of

pytestmark = [pytest.mark.pool, pytest.mark.usefixtures("pool")]
LIMIT_S = 300  # the nodes are shared with other tests
CE = "ce@fermigrid.test"

# Prints what arrived, as JSON, and ends as its first argument says
LOOK = r"""#!/usr/bin/python3
import json, os, sys
texts = {name: value for name, value in os.environ.items() if name.startswith("TEXT_")}
print(json.dumps({"arguments": sys.argv[2:], "texts": texts, "folder": os.getcwd(), "files": sorted(os.listdir())}))
print("to stderr", file=sys.stderr)
open("out.dat", "w").write(open("in.txt").read().upper())
sys.exit(int(sys.argv[1]))
"""
# Runs until it is told to end, and writes down that it was
STAY = r"""#!/bin/bash
trap 'echo TERM >> "$1/signals"; exit 143' TERM
touch "$1/ready"
sleep 300 & wait
"""
# Does not end when it is told to
DEAF = """#!/bin/sh
trap '' TERM
touch "$1/ready"
sleep 300
"""
IMAGE = """#!/bin/sh
apptainer exec /cvmfs/fermi.test/images/light-1 cat /etc/fermigrid-image
"""
WHERE = """#!/bin/sh
cat /etc/fermigrid-image; grep -E '^(SingularityImage|Owner|ProjectName|JobUniverse|SubmitterGlobalJobId) =' "$_CONDOR_JOB_AD"
tr a-z A-Z < in.txt > out.dat; exit 3
"""

PLAIN = ("one", "two words", "", 'double"quote', "single'quote", "a;b|c>d<e", "100%", "*", "~", "#x", "é", "a\\b")
SLURM = "grid_resource = batch slurm\nbatch_project = fermi:L1\nbatch_queue = milano\n"


@dataclass(frozen=True)
class GridJob:
    """A submitted job: its folder (log, output) and its cluster number."""

    pool: Pool
    folder: Path
    cluster: str
    user: str = "fermi"

    def ask(self, *argv: str) -> str:
        """What a command inside the pool prints, as its owner."""
        done = self.pool.run(self.user, *argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait(self, *kinds: str, limit_s: int = LIMIT_S) -> Any:
        """The first event of these kinds (names of JobEventType), within the limit."""
        import htcondor2

        wanted = {getattr(htcondor2.JobEventType, kind) for kind in kinds}
        for event in htcondor2.JobEventLog(str(self.folder / "job.log")).events(stop_after=limit_s):
            if event.type in wanted:
                return event
        pytest.fail(f"no {kinds} in {limit_s} s:\n{(self.folder / 'job.log').read_text()}")

    def slurm_id(self) -> str:
        """Slurm's number of the job."""
        return str(self.wait("GRID_SUBMIT")["GridJobId"]).rsplit("/", 1)[1]

    def ce_id(self) -> str:
        """The second schedd's number of the job."""
        return str(self.wait("GRID_SUBMIT")["GridJobId"]).rsplit(" ", 1)[1]

    def in_slurm(self) -> dict[str, str]:
        """What Slurm says of the job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.ask("scontrol", "-o", "show", "job", self.slurm_id())))

    def attribute(self, name: str) -> str:
        """An attribute of the job in the queue or the history."""
        text = self.ask("condor_q", self.cluster, "-af", name) or self.ask("condor_history", self.cluster, "-af", name)
        return text.strip()

    def saw(self) -> dict[str, Any]:
        """What LOOK printed."""
        found = json.loads((self.folder / "job.out").read_text())
        assert isinstance(found, dict)
        return found


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    """Waits, within the limit, for something that has no event."""
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, f"not in {LIMIT_S} s: {what}"
        threading.Event().wait(0.2)


def submit(pool: Pool, script: str, lines: str, user: str = "fermi") -> GridJob:
    """Submits one job of the grid universe with in.txt and a log in a new folder; `@HERE@` is the folder."""
    folder = Path(tempfile.mkdtemp(prefix="grid-", dir=pool.work))
    folder.chmod(0o777)
    (folder / "job.sh").write_text(script)
    (folder / "job.sh").chmod(0o755)
    (folder / "in.txt").write_text("hello")
    common = (
        "universe = grid\nexecutable = job.sh\noutput = job.out\nerror = job.err\nlog = job.log\nrequest_memory = 300\n"
        "should_transfer_files = yes\nwhen_to_transfer_output = on_exit\ntransfer_input_files = in.txt\n"
    )
    (folder / "job.sub").write_text(common + lines.replace("@HERE@", str(folder)) + "\nqueue\n")
    done = pool.run(user, "sh", "-c", f"cd {folder} && condor_submit -terse job.sub")
    assert done.returncode == 0, done.stderr
    return GridJob(pool, folder, done.stdout.split(".", 1)[0], user)


def words(*texts: str) -> str:
    """The new syntax of `arguments` and `environment`."""
    return '"' + " ".join("'" + text.replace("'", "''").replace('"', '""') + "'" for text in texts) + '"'


def slurm_jobs() -> dict[str, tuple[str, str]]:
    """Jobs for Slurm: their scripts and submit lines."""
    ends = "transfer_output_files = out.dat\n"
    stay = 'arguments = "@HERE@"\n'
    carried = words(*(f"TEXT_{number}={text}" for number, text in enumerate(PLAIN) if '"' not in text))
    altered = words("TEXT_A=$HOME", "TEXT_B=a&(b)", "TEXT_C=a\\\\b", "TEXT_D=a  b", 'TEXT_E="quoted"')
    wishes = "batch_runtime = 179\nrequest_cpus = 2\nbatch_extra_submit_args = -L sps:2\n"
    short_limit = SLURM.replace("milano", "roma")
    return {
        "full": (LOOK, f"{short_limit}{ends}{wishes}arguments = {words('7', *PLAIN)}\nenvironment = {carried}\n"),
        "cpus": (LOOK, f'{SLURM}{ends}arguments = "0"\nbatch_extra_submit_args = --cpus-per-task=2 -L sps:1\n'),
        "tasks": (LOOK, f'{SLURM}{ends}arguments = "0"\n+remote_NodeNumber = 2\n'),
        "altered": (LOOK, f'{SLURM}{ends}arguments = "0 $HOME a&(b)"\nenvironment = {altered}\n'),
        "image": (IMAGE, SLURM),
        "silent": (WHERE, f"{SLURM}transfer_input_files = @HERE@/absent\ntransfer_output_files = never.dat\n"),
        "bad-partition": (LOOK, SLURM.replace("milano", "nonesuch")),
        "bad-account": (LOOK, SLURM.replace("fermi:L1", "other")),
        "bad-licence": (LOOK, f"{SLURM}batch_extra_submit_args = -L nonesuch\n"),
        "too-long": (LOOK, f"{short_limit}batch_runtime = 36000\n"),
        "below-a-minute": (LOOK, f"{short_limit}batch_runtime = 59\n"),
        "removed": (STAY, SLURM + stay),
        "cancelled": (STAY, SLURM + stay),
        "killed": (DEAF, SLURM + stay),
        "never-began": (LOOK, f"{SLURM}batch_extra_submit_args = --hold\n"),
    }


def ce_jobs(resource: str) -> dict[str, tuple[str, str]]:
    """Jobs for the second schedd."""
    remote = f'grid_resource = {resource}\n+remote_Requirements = (GLIDEIN_Site == "SITEA")\n'
    image = '+remote_SingularityImage = "/cvmfs/fermi.test/images/light-1"\n+ProjectName = "fermi"\n'
    odd = words("7", *PLAIN, "$HOME", "a&(b)", "`id`")
    return {
        "ce": (WHERE, f"{remote}{image}transfer_output_files = out.dat\n"),
        "ce-texts": (LOOK, f"{remote}transfer_output_files = out.dat\narguments = {odd}\n"),
        "ce-no-output": (WHERE, f"{remote}transfer_output_files = never.dat\n"),
        "ce-no-input": (WHERE, f"{remote}transfer_input_files = @HERE@/absent\n"),
        "ce-removed": (STAY, f'{remote}arguments = "."\n'),
        "ce-lost": (STAY, f'{remote}arguments = "."\n'),
        "ce-held": (STAY, f'{remote}arguments = "."\n'),
        "ce-unknown": (WHERE, remote.replace("ce@", "nonesuch@")),
    }


def disturb(grid: Pool, jobs: Mapping[str, GridJob]) -> None:
    """What people and sites do to some of the jobs, once they run."""
    for name in ("removed", "cancelled", "killed"):
        wait_until(f"{name} runs", (jobs[name].folder / "ready").exists)
    grid.run("fermi", "scancel", *(jobs[name].slurm_id() for name in ("cancelled", "killed", "never-began")))
    for name in ("ce-removed", "ce-lost", "ce-held"):
        jobs[name].wait("EXECUTE")
    grid.run("fermi", "condor_rm", jobs["removed"].cluster, jobs["ce-removed"].cluster)
    grid.run("fermi", "condor_rm", "-name", CE, jobs["ce-lost"].ce_id())
    grid.run("fermi", "condor_hold", "-name", CE, jobs["ce-held"].ce_id())


@pytest.fixture(scope="module")
def grid(running_pool: Pool) -> Pool:
    """The pool of this test run, with a Slurm and a second schedd."""
    done = call_pool(running_pool.directory, "start", "grid", timeout=START_LIMIT_S)
    assert done.returncode == 0, done.stderr
    return describe(running_pool.directory)


@pytest.fixture(scope="module")
def jobs(grid: Pool) -> Iterator[dict[str, GridJob]]:
    """All jobs, submitted and disturbed; those that remain are removed at the end."""
    described = slurm_jobs() | ce_jobs(grid.facts["grid"]["ce"]["resource"])
    submitted = {name: submit(grid, *job) for name, job in described.items()}
    disturb(grid, submitted)
    yield submitted
    grid.run("fermi", "condor_rm", *(job.cluster for job in submitted.values()))


def test_slurm_gets_partition_account_licence_memory_and_whole_minutes(jobs: Mapping[str, GridJob]) -> None:
    told = jobs["full"].in_slurm()
    assert (told["Partition"], told["Account"], told["Licenses"]) == ("roma", "fermi:l1", "sps:2")
    assert (told["TimeLimit"], told["MinMemoryNode"]) == ("00:02:00", "300M")  # 179 s are two minutes


def test_slurm_gets_cpus_by_an_extra_argument_or_as_tasks_never_by_request_cpus(jobs: Mapping[str, GridJob]) -> None:
    told = {name: jobs[name].in_slurm() for name in ("full", "cpus", "tasks")}
    assert {name: job["NumCPUs"] for name, job in told.items()} == {"full": "1", "cpus": "2", "tasks": "2"}
    assert (told["cpus"]["CPUs/Task"], told["cpus"]["Licenses"]) == ("2", "sps:1")
    assert (told["tasks"]["CPUs/Task"], told["tasks"]["NumTasks"]) == ("1", "2")


def test_slurm_job_gets_texts_and_input_and_gives_exit_code_and_output(jobs: Mapping[str, GridJob]) -> None:
    job = jobs["full"]
    end = job.wait("JOB_TERMINATED")
    assert (end["TerminatedNormally"], end["ReturnValue"]) == (True, 7)
    saw = job.saw()
    assert saw["arguments"] == list(PLAIN)
    assert saw["texts"] == {f"TEXT_{number}": text for number, text in enumerate(PLAIN) if '"' not in text}
    assert saw["files"] == ["in.txt"]
    assert (job.folder / "out.dat").read_text() == "HELLO"
    assert (job.folder / "job.err").read_text() == "to stderr\n"


def test_slurm_job_runs_below_the_folder_that_it_was_submitted_from(jobs: Mapping[str, GridJob]) -> None:
    job = jobs["full"]
    job.wait("JOB_TERMINATED")
    folder = Path(job.saw()["folder"])
    assert folder.parent == job.folder
    assert not folder.exists()  # blahp removed it


def test_slurm_job_gets_some_texts_altered(jobs: Mapping[str, GridJob]) -> None:
    jobs["altered"].wait("JOB_TERMINATED")
    saw = jobs["altered"].saw()
    assert saw["arguments"] == ["/home/fermi", "a\\&\\(b\\)"]
    assert saw["texts"] == {
        "TEXT_A": "/home/fermi",
        "TEXT_B": "a\\&\\(b\\)",
        "TEXT_C": "a\\b",
        "TEXT_D": "a b",
        "TEXT_E": "quoted",
    }


def test_slurm_job_starts_a_container(jobs: Mapping[str, GridJob]) -> None:
    assert jobs["image"].wait("JOB_TERMINATED")["ReturnValue"] == 0
    assert (jobs["image"].folder / "job.out").read_text() == "light-1\n"


def test_slurm_job_without_its_input_and_output_ends_as_if_all_were_well(jobs: Mapping[str, GridJob]) -> None:
    assert jobs["silent"].wait("JOB_TERMINATED", "JOB_HELD")["ReturnValue"] == 3  # the script's own code
    assert not (jobs["silent"].folder / "never.dat").exists()


@pytest.mark.parametrize(
    ("name", "words_of_sbatch"),
    [
        ("bad-partition", "Invalid partition name specified"),
        ("bad-account", "Invalid account or account/partition combination specified"),
        ("bad-licence", "Invalid license specification"),
        ("too-long", "Requested time limit is invalid"),
        ("below-a-minute", "Requested time limit is invalid"),  # 59 s are `-t 0`: no limit
    ],
)
def test_what_slurm_refuses_is_held_with_its_words(
    jobs: Mapping[str, GridJob], name: str, words_of_sbatch: str
) -> None:
    held = jobs[name].wait("JOB_HELD", "JOB_TERMINATED")
    assert words_of_sbatch in held["HoldReason"]
    assert (held["HoldReasonCode"], held["HoldReasonSubCode"]) == (0, 0)


def test_condor_rm_cancels_the_slurm_job_and_its_payload_is_told(jobs: Mapping[str, GridJob]) -> None:
    job = jobs["removed"]
    job.wait("JOB_ABORTED")
    wait_until("Slurm's job ends", lambda: job.in_slurm()["JobState"] == "CANCELLED")
    assert set((job.folder / "signals").read_text().split()) == {"TERM"}


@pytest.mark.parametrize(("name", "code"), [("cancelled", 255), ("killed", 0), ("never-began", 0)])
def test_a_job_cancelled_in_slurm_looks_like_one_that_ended(jobs: Mapping[str, GridJob], name: str, code: int) -> None:
    end = jobs[name].wait("JOB_TERMINATED", "JOB_HELD", "JOB_ABORTED")
    assert (end["TerminatedNormally"], end["ReturnValue"]) == (True, code)
    assert jobs[name].in_slurm()["JobState"] == "CANCELLED"


def test_the_ce_runs_the_job_in_its_image_and_gives_all_back(jobs: Mapping[str, GridJob]) -> None:
    job = jobs["ce"]
    assert job.wait("JOB_TERMINATED")["ReturnValue"] == 3
    marker, *attributes = (job.folder / "job.out").read_text().splitlines()
    assert marker == "light-1"
    assert {line.split(" = ")[0]: line.split(" = ")[1] for line in attributes if "Submitter" not in line} == {
        "JobUniverse": "5",
        "Owner": '"fermi"',
        "ProjectName": '"fermi"',
        "SingularityImage": '"/cvmfs/fermi.test/images/light-1"',
    }
    assert f'SubmitterGlobalJobId = "{job.attribute("GlobalJobId")}"' in attributes
    assert (job.folder / "out.dat").read_text() == "HELLO"


def test_the_ce_alters_no_text(jobs: Mapping[str, GridJob]) -> None:
    assert jobs["ce-texts"].wait("JOB_TERMINATED")["ReturnValue"] == 7
    assert jobs["ce-texts"].saw()["arguments"] == [*PLAIN, "$HOME", "a&(b)", "`id`"]


def test_condor_rm_removes_the_job_at_the_ce(jobs: Mapping[str, GridJob]) -> None:
    jobs["ce-removed"].wait("JOB_ABORTED")
    assert jobs["ce-removed"].ask("condor_q", "-name", CE, jobs["ce-removed"].ce_id(), "-af", "JobStatus") == ""


@pytest.mark.parametrize(
    ("name", "reason", "code"),
    [
        ("ce-no-output", "never.dat: (errno 2) No such file or directory", 12),
        ("ce-no-input", f"Error sending files to schedd {CE}", 0),
        ("ce-lost", "Job disappeared from remote schedd", 0),
        ("ce-held", "via condor_hold (by user fermi)", 1),
    ],
)
def test_what_goes_wrong_at_the_ce_is_held_here(jobs: Mapping[str, GridJob], name: str, reason: str, code: int) -> None:
    held = jobs[name].wait("JOB_HELD", "JOB_TERMINATED", "JOB_ABORTED")
    assert reason in held["HoldReason"]
    assert held["HoldReasonCode"] == code


def test_a_ce_that_is_not_there_is_an_event_and_the_job_waits(jobs: Mapping[str, GridJob]) -> None:
    assert "nonesuch@" in jobs["ce-unknown"].wait("GRID_RESOURCE_DOWN")["GridResource"]
    assert jobs["ce-unknown"].attribute("JobStatus") == "1"


@pytest.mark.drill
def test_a_job_that_slurm_ends_at_its_wall_time_looks_like_one_that_ended(grid: Pool) -> None:
    lines = f'{SLURM}arguments = "@HERE@"\nbatch_runtime = 60\n'
    codes = {255: submit(grid, STAY, lines), 0: submit(grid, DEAF, lines)}
    for code, job in codes.items():
        assert job.wait("JOB_TERMINATED", "JOB_HELD", limit_s=240)["ReturnValue"] == code
        assert job.in_slurm()["JobState"] == "TIMEOUT"


@pytest.mark.drill
@pytest.mark.parametrize(
    "text", ["`id`", "end\\", 'a\\"b'], ids=["backtick", "backslash at the end", "backslash and quote"]
)
def test_some_texts_stop_all_grid_jobs_of_their_user(grid: Pool, text: str) -> None:
    log = grid.directory / "log/GridmanagerLog.prod"
    before = log.stat().st_size if log.exists() else 0
    stuck = submit(grid, LOOK, f"{SLURM}arguments = {words('0', text)}\n", user="prod")
    other = submit(grid, IMAGE, SLURM, user="prod")

    def has_died_twice() -> bool:
        return log.exists() and log.read_bytes()[before:].count(b"Assertion ERROR") > 1

    wait_until("the gridmanager dies and dies again", has_died_twice)
    assert other.attribute("JobStatus") == "1"
    for force in ((), ("-forcex",)):
        grid.run("prod", "condor_rm", *force, stuck.cluster)
    other.wait("JOB_TERMINATED")


@pytest.mark.drill
def test_the_engines_end_with_their_pool_and_a_plain_start_has_none(private_folder: Path) -> None:
    def facts() -> dict[str, Any]:
        return dict(json.loads((private_folder / "facts.json").read_text()))

    assert call_pool(private_folder, "start", "grid", timeout=START_LIMIT_S).returncode == 0
    assert "Slurm milano: 1 node, idle" in call_pool(private_folder, "status").stdout
    assert facts()["grid"]["slurm"]["partitions"] == ["milano", "roma"]
    assert call_pool(private_folder, "stop").returncode == 0
    assert processes_of(private_folder) == []
    assert call_pool(private_folder, "start", timeout=START_LIMIT_S).returncode == 0
    assert "Slurm" not in call_pool(private_folder, "status").stdout
    assert "grid" not in facts()
    assert call_pool(private_folder, "exec", "sinfo").returncode != 0
