"""fermigrid is killed at random moments of a submission, again and again; and afterwards each job is at DIRAC once, may run,
and is known here. The whole command line, a real server, and in the long form a network that loses answers, too."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from fermigrid.ledger import open_ledger
from fermigrid.runfolder import RunFolder
from tests.campaigns import fermigrid, write
from tests.dirac import proxy
from tests.dirac.batches import CAMPAIGN, SITE
from tests.dirac.proxy import CONFIRM, SANDBOX, SEARCH, SUBMIT, Request, between
from tests.dirac.server import Server

pytestmark = pytest.mark.dirac
JOBS, BLOCK = 300, 100  # three batches of five documents
MOMENTS = (0.4, 1.2)  # s after the start: it hands in, or looks for what landed
LOSSES = {SUBMIT: 0.1, SEARCH: 0.1, CONFIRM: 0.2, SANDBOX: 0.1}


COMMAND = ("submit", "campaign.yaml", "--site", "grid", "--sites", "sites", "--run-dir", "run")


def submit_and_kill(folder: Path, after: float) -> bool:
    """`fermigrid submit`, killed after some seconds; was it still at work?"""
    process = subprocess.Popen(
        [sys.executable, "-m", "fermigrid", *COMMAND],
        cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def lead_a_life(server: Server, folder: Path, kills: int, rng: random.Random, losses: bool = False) -> None:
    """A campaign is submitted; the one that does it is killed so often; then it is submitted to the end."""

    def lose(request: Request) -> str:
        lost = losses and rng.random() < LOSSES.get(request.line, 0.0)
        return rng.choice((proxy.LOSE_ANSWER, proxy.LOSE_REQUEST, proxy.ERROR)) if lost else proxy.PASS

    with between(server.port, lose) as network:
        text = CAMPAIGN.format(jobs=JOBS).replace("block: 100000", f"block: {BLOCK}")
        write(folder, text)
        (folder / "sites").mkdir()
        site = SITE.format(url=network.url).replace("dirac:\n", "dirac:\n  settle: 1 s\n")
        (folder / "sites/grid.yaml").write_text(site)
        killed = sum(submit_and_kill(folder, rng.uniform(*MOMENTS)) for _ in range(kills))
        assert killed > kills / 2
        network.fault = lambda _: proxy.PASS
        code, _, said = fermigrid(*COMMAND, cwd=folder)
        assert code == 0, said
        each_job_is_there_once(server, folder)


def each_job_is_there_once(server: Server, folder: Path) -> None:
    run = RunFolder(folder / "run")
    with closing(open_ledger(run.ledger)) as ledger:
        batches = ledger.batches()
    assert sum(batch.jobs for batch in batches) == JOBS
    assert all(batch.submitted for batch in batches)
    there = Counter[str]()
    for batch in batches:
        there += server.confirmed(batch.id)
    assert there == {f"go.{number:04d}": 1 for number in range(JOBS)}
    assert server.may_run() == JOBS, "jobs that no ledger knows"


def test_killed_at_random_moments(server: Server, tmp_path: Path) -> None:
    lead_a_life(server, tmp_path, 6, random.Random(6))


@pytest.mark.drill
@pytest.mark.parametrize("seed", range(25))
def test_killed_at_many_moments(server: Server, tmp_path: Path, seed: int) -> None:
    lead_a_life(server, tmp_path, 8, random.Random(seed), losses=True)
