"""The test pool is what it says: six unlike sites, true images, software, an HTTP server, and no traces."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Pool

pytestmark = pytest.mark.pool
COMMAND = Path(__file__).resolve().parents[2] / "ci/pool"
ASK = (
    "cat /etc/fermigrid-image 2>/dev/null || echo bare; "
    "if command -v apptainer > /dev/null; then echo runtime; else echo none; fi"
)


def run_job(folder: Path, site: str, script: str, image: str | None = None) -> list[str]:
    """Submits one job with htcondor2, waits for its end (at most 60 s) and gives the lines it printed."""
    import htcondor2

    (folder / "job.sh").write_text(f"#!/bin/sh\n{script}\n")
    settings = {
        "executable": str(folder / "job.sh"),
        "initialdir": str(folder),
        "output": "job.out",
        "error": "job.err",
        "log": str(folder / "job.log"),
        "should_transfer_files": "yes",
        "request_memory": "64M",
        "request_disk": "1M",
        "requirements": f'GLIDEIN_Site == "{site}"',
    }
    if image is not None:
        settings["My.SingularityImage"] = f'"{image}"'
    htcondor2.Schedd().submit(htcondor2.Submit(settings))
    wait_for_end(folder / "job.log")
    return (folder / "job.out").read_text().splitlines()


def wait_for_end(log: Path) -> None:
    """Waits (at most a minute) until the event log says that the job has ended by itself."""
    import htcondor2

    kinds = htcondor2.JobEventType
    for event in htcondor2.JobEventLog(str(log)).events(stop_after=60):
        if event.type in (kinds.JOB_TERMINATED, kinds.JOB_HELD, kinds.JOB_ABORTED):
            assert event.type == kinds.JOB_TERMINATED, str(event)
            return
    pytest.fail(f"the job did not end in a minute:\n{log.read_text()}")


@pytest.mark.parametrize(
    ("site", "answer"),
    [
        ("SITEA", ["light-1", "none"]),
        ("SITEB", ["light-1", "none"]),
        ("SITEE", ["light-1", "none"]),
        ("SITEF", ["bare", "runtime"]),
    ],
)
def test_a_job_asks_for_the_light_image(fermi: Pool, job_folder: Path, site: str, answer: list[str]) -> None:
    image = fermi.facts["images"]["light-1"]["cvmfs"]
    assert run_job(job_folder, site, ASK, image) == answer


@pytest.mark.parametrize(
    ("site", "answer"),
    [("SITEA", ["bare", "runtime"]), ("SITED", ["bare", "none"]), ("SITEE", ["site-default", "none"])],
)
@pytest.mark.usefixtures("fermi")
def test_a_job_asks_for_no_image(job_folder: Path, site: str, answer: list[str]) -> None:
    assert run_job(job_folder, site, ASK) == answer


@pytest.mark.parametrize(
    ("site", "forbidden"),
    [("SITEB", {"enable overlay = no", "enable underlay = no"}), ("SITEC", {"user bind control = no"})],
)
@pytest.mark.usefixtures("fermi")
def test_a_site_forbids_it_to_jobs_that_start_a_container(job_folder: Path, site: str, forbidden: set[str]) -> None:
    assert forbidden <= set(run_job(job_folder, site, "cat /etc/apptainer/apptainer.conf"))


@pytest.mark.usefixtures("fermi")
def test_a_site_without_a_runtime_has_not_even_a_file_of_it(job_folder: Path) -> None:
    script = "for name in apptainer singularity; do test -e /usr/bin/$name || echo no $name; done"
    assert run_job(job_folder, "SITED", script) == ["no apptainer", "no singularity"]


def test_the_software_on_cvmfs_works_in_the_light_image(fermi: Pool, job_folder: Path) -> None:
    folder = fermi.facts["software"]["lat-python"]["cvmfs"]
    script = f"PYTHONPATH={folder} python3 -c 'import astropy.io.fits, numpy; print(numpy.arange(4).sum())'"
    assert run_job(job_folder, "SITEA", script, fermi.facts["images"]["light-1"]["cvmfs"]) == ["6"]


def test_the_tiny_image_has_no_bash(fermi: Pool, job_folder: Path) -> None:
    image = fermi.facts["images"]["tiny-1"]["cvmfs"]
    script = "cat /etc/fermigrid-image; command -v bash || echo none"
    assert run_job(job_folder, "SITEA", script, image) == ["tiny-1", "none"]


@pytest.mark.parametrize("name", ["light-1", "tiny-1"])
def test_http_serves_the_image_with_the_recorded_digest(pool: Pool, name: str) -> None:
    image = pool.facts["images"][name]
    with urllib.request.urlopen(image["sif_url"], timeout=30) as answer:
        body = answer.read()
        assert answer.headers["ETag"]
    assert (len(body), hashlib.sha256(body).hexdigest()) == (image["bytes"], image["sha256"])


def test_http_answers_a_range(pool: Pool) -> None:
    url = pool.facts["images"]["tiny-1"]["sif_url"]
    request = urllib.request.Request(url, headers={"Range": "bytes=100-199"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert (answer.status, len(answer.read())) == (206, 100)


def test_commands_run_as_the_pool_user(pool: Pool) -> None:
    done = pool.run("prod", "id", "-un")
    assert (done.stdout, done.returncode) == ("prod\n", 0)


def test_a_folder_outside_tmp_is_refused_in_words() -> None:
    done = call("start", Path("/var/fermigrid-pool"))
    assert done.returncode == 1
    assert "must be under /tmp" in done.stderr
    assert not Path("/var/fermigrid-pool").exists()


def call(verb: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """`ci/pool VERB` for a pool of its own."""
    env = os.environ | {"POOL_DIR": str(directory)}
    argv = [str(COMMAND), verb]
    return subprocess.run(argv, env=env, text=True, capture_output=True, timeout=900, check=False)


def processes_of(directory: Path) -> list[int]:
    """Processes that were started for the pool in `directory`, known by their environment or arguments."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            words = (proc / "environ").read_bytes() + (proc / "cmdline").read_bytes()
        except OSError:
            continue  # it ended while we looked
        if f"{directory}/etc".encode() in words:
            found.append(int(proc.name))
    return found


def wait_until_gone(directory: Path, limit_s: float = 20) -> None:
    """Waits until no process of the pool is left."""
    end = time.monotonic() + limit_s
    while left := processes_of(directory):
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.1)


@pytest.mark.drill
def test_stop_and_clean_leave_nothing_behind(private_folder: Path) -> None:
    assert call("start", private_folder).returncode == 0
    assert processes_of(private_folder)
    assert call("stop", private_folder).returncode == 0
    assert processes_of(private_folder) == []
    assert call("clean", private_folder).returncode == 0
    assert not private_folder.exists()
    assert str(private_folder) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.drill
def test_a_start_after_everything_was_killed(private_folder: Path) -> None:
    assert call("start", private_folder).returncode == 0
    for pid in processes_of(private_folder):
        with suppress(ProcessLookupError):  # the end of its parent was its own
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(private_folder)
    assert call("status", private_folder).returncode == 1
    assert "up in" in call("start", private_folder).stderr
    assert call("status", private_folder).returncode == 0


@pytest.mark.drill
def test_a_pool_that_dies_ends_the_test_with_its_logs(watched_private_pool: Pool) -> None:
    first = int((watched_private_pool.directory / "pid").read_text().split()[0])
    os.kill(first, signal.SIGKILL)
    with pytest.raises(pytest.fail.Exception, match=r"the pool died(?s:.*)MasterLog"):
        threading.Event().wait(20)


@pytest.mark.drill
def test_a_start_that_fails_says_why_and_leaves_no_process(private_folder: Path) -> None:
    (private_folder / "etc").mkdir()
    (private_folder / "etc/config.d").write_text("a file where a folder should be")
    done = call("start", private_folder)
    assert done.returncode == 1
    assert "config.d" in done.stderr
    assert processes_of(private_folder) == []
