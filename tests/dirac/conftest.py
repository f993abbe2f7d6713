"""The real DiracX server (`ci/diracx`) as a fixture. Without it these tests are errors, never skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.dirac.batches import SITE
from tests.dirac.pilot import Pilot
from tests.dirac.server import Server, call, start_server
from tests.pool.conftest import Pool, call_pool, fermi, job_folder, pool, product, running_pool
from tests.pool.product import UID, Product

__all__ = ["fermi", "job_folder", "pool", "product", "running_pool"]


@pytest.fixture(scope="session")
def running_server() -> Iterator[Server]:
    """One server for the tests of this process."""
    yield from own_servers()


@pytest.fixture
def server(running_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that answers and has nothing to do; its user is logged in."""
    running_server.clear()
    monkeypatch.setenv("DIRACX_CREDENTIALS_PATH", str(running_server.credentials))
    monkeypatch.delenv("X509_USER_PROXY", raising=False)
    return running_server


@pytest.fixture
def own_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that the test may kill."""
    for server in own_servers():
        monkeypatch.setenv("DIRACX_CREDENTIALS_PATH", str(server.credentials))
        monkeypatch.delenv("X509_USER_PROXY", raising=False)
        yield server


def own_servers(*options: str) -> Iterator[Server]:
    """One server, as long as it is needed; `options`: of ci/diracx.d/serve.py."""
    folder = Path(tempfile.mkdtemp(prefix="fermigrid-diracx-test-"))
    try:
        yield start_server(folder, *options)
    finally:
        call(folder, "stop")
        shutil.rmtree(folder)


@pytest.fixture
def grid(pool: Pool, product: Product, server: Server, monkeypatch: pytest.MonkeyPatch) -> Product:
    """fermigrid as a person who is logged in at DIRAC, with the site `grid` beside those of the pool."""
    credentials = product.folder / "credentials.json"
    server.log_in(credentials)
    os.chown(credentials, UID, UID)
    sites = product.folder / "sites"
    shutil.copytree(pool.directory / "sites", sites)
    (sites / "grid.yaml").write_text(SITE.format(url=server.url))
    monkeypatch.setenv("DIRACX_CREDENTIALS_PATH", str(credentials))
    monkeypatch.setitem(pool.env, "FERMIGRID_SITES", str(sites))
    return product


@pytest.fixture
def pilot(pool: Pool, job_folder: Path, server: Server) -> Pilot:
    """A pilot on the pool's node, which has Apptainer and CVMFS."""

    def run(folder: Path, command: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        words = [f"{name}={text}" for name, text in environment.items()]
        return call_pool(pool.directory, "as", "fermi", "env", "-C", str(folder), *words, *command, timeout=240)

    jobs = job_folder / "pilot"
    jobs.mkdir(mode=0o755)
    return Pilot(server, jobs, UID, run)
