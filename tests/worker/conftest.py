"""Fixtures of the worker's tests: jobs in folders of their own, and an HTTP server that misbehaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.worker.faulty_http import Faulty, serve
from tests.worker.node import Node, running_node
from tests.worker.sealing import Office
from tests.worker.worker_job import WORKER, Job


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """Makes jobs, each in a scratch folder of its own."""
    count = iter(range(1000))

    def make(**what: Any) -> Job:
        return Job(tmp_path / f"scratch{next(count)}", **what)

    return make


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    """An HTTP server with 300 kB of content that no text compresses."""
    with serve(os.urandom(300_000)) as server:
        yield server


@pytest.fixture
def small_disk() -> Iterator[list[str]]:
    """A command prefix: runs a program with a disk of 2 MB of its own as its current folder's copy."""
    if shutil.which("unshare") is None:
        pytest.fail("this test needs unshare (util-linux)")
    folder = Path(tempfile.mkdtemp(prefix="fermigrid-small-"))
    script = f'mount -t tmpfs -o size=2m small {folder} && cp -r . {folder} && cd {folder} && exec "$@"'
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    yield ["unshare", *user, "--mount", "sh", "-c", script, "sh"]
    folder.rmdir()


@pytest.fixture
def node() -> Iterator[Node]:
    """A worker node of this test's own (mark the test pool: it needs the tree of `ci/pool build`, no daemons)."""
    with running_node() as running:
        yield running


@pytest.fixture(scope="session")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    """Where secrets are sealed for a site."""
    return Office.open(tmp_path_factory.mktemp("office"))


def bash(script: str, *args: str | bytes, cwd: Path | None = None) -> bytes:
    """Runs a script that has read in the worker; its stdout."""
    command = ["bash", "-c", f'. "{WORKER}"; trap - ERR; {script}', "bash", *args]
    return subprocess.run(command, check=True, capture_output=True, cwd=cwd, timeout=30).stdout


@pytest.fixture
def worker_bash() -> Callable[..., bytes]:
    return bash
