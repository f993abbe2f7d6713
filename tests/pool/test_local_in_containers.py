"""The `local` backend on a machine that has Apptainer: the node of the pool, where the payload then runs in its image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pool.conftest import Pool
from tests.pool.product import CHECKOUT, UID

pytestmark = pytest.mark.pool

NEEDS = ("click", "jinja2", "platformdirs", "pydantic", "pyyaml")


def node_python(pool: Pool) -> str:
    """The version of Python on the node: `3.14`."""
    done = pool.run("fermi", "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    return done.stdout.strip()


@pytest.fixture
def installed(pool: Pool, job_folder: Path) -> Path:
    """fermigrid and what it needs, where the node sees them."""
    library = job_folder / "lib"
    options = ["--quiet", "--target", str(library), "--only-binary=:all:", "--python-version", node_python(pool)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *NEEDS], check=True, timeout=300)
    for name in ("fermigrid", "sites", "submit_templates"):
        shutil.copytree(CHECKOUT / name, library / name, ignore=shutil.ignore_patterns("__pycache__"))
    os.chown(job_folder, UID, UID)
    return library


def test_local_jobs_run_in_the_image_where_there_is_apptainer(pool: Pool, installed: Path, job_folder: Path) -> None:
    def fermigrid(*arguments: str) -> subprocess.CompletedProcess[str]:
        settings = (
            f"PYTHONPATH={installed}",
            f"FERMIGRID_SITES={pool.directory / 'sites'}",
            f"FERMIGRID_STATE={job_folder}/state",
        )
        return pool.run("fermi", "env", "-C", str(job_folder), *settings, f"TMPDIR={job_folder}", "FERMIGRID_POLL_S=0.2",
                        "python3", "-m", "fermigrid", *arguments)  # fmt: skip

    done = fermigrid(
        "submit", "--site", "local", "--image", "light", "--software", "lat-python", "--name", "one", "--jobs", "3", "--wait",
        "--output", "out.txt", "--", "sh", "-c",
        "cat /etc/fermigrid-image; python3 -c 'import numpy; print(numpy.__name__)'; echo $FERMIGRID_RUN > out.txt",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 jobs, 3 done" in done.stdout
    assert "rehearsal" not in done.stdout
    log = fermigrid("logs", "one", "command.0001").stdout.splitlines()
    assert [line for line in log if line in ("light-1", "numpy")] == ["light-1", "numpy"]
    report = json.loads(fermigrid("logs", "--report", "one", "command.0001").stdout)
    assert (report["where"], report["container"], report["rehearsal"]) == ("host", "worker", False)
    assert (job_folder / "fermigrid-runs/one/outputs/command.0002.out.txt").read_text() == "0002\n"
