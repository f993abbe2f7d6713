"""Retry and rollback on this machine, with real jobs: killed at any moment, they go on and double nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.campaigns import ROOT, fermigrid

CAMPAIGN = """\
campaign: again
version: '400'
image: light
code: [clump.sh, merge.sh]
parameters: {emin: '100', flag: FLAG}
runs: {table: runs.csv}
steps:
  clump:
    foreach: clump
    split: {events: 10}
    command: [clump.sh, "{run}.{piece}", "{emin}", "{flag}"]
    outputs: {part.txt: "{run}_{piece}.txt"}
    resources: {memory: 64 MiB, disk: 64 MiB}
  merge:
    after: {clump: done}
    gather: {parts: {step: clump, output: part.txt}}
    command: [merge.sh, "v{version}"]
    outputs: {all.txt: "{run}_v{version}.txt"}
    resources: {memory: 64 MiB, disk: 64 MiB}
"""
CLUMP = """#!/bin/sh
[ "$1" != r2.c001 ] || [ -e "$3" ] || exit 7
echo "$1 emin=$2" > part.txt
"""
MERGE = """#!/bin/sh
{ echo "$1"; cat parts/c*; } > all.txt
"""
RUNS = "run,events\nr1,15\nr2,25\n"
JOBS = ["clump.r1.c000", "clump.r1.c001", "clump.r2.c000", "clump.r2.c001", "clump.r2.c002", "merge.r1", "merge.r2"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A campaign on this machine that has ended, but for a clump of r2 that failed."""
    monkeypatch.setenv("FERMIGRID_POLL_S", "0.1")
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN.replace("FLAG", str(tmp_path / "flag")))
    (tmp_path / "runs.csv").write_text(RUNS)
    for name, text in (("clump.sh", CLUMP), ("merge.sh", MERGE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    code, out, err = fermigrid("submit", "campaign.yaml", "--site", "local", "--wait", "--run-dir", "run", cwd=tmp_path)
    assert (code, "6 done, 1 failed" in out) == (1, True), out + err
    assert outputs(tmp_path)["r2_v400.txt"] == "v400\nr2.c000 emin=100\nr2.c002 emin=100\n"
    return tmp_path


def outputs(folder: Path) -> dict[str, str]:
    home = folder / "run/outputs"
    return {str(path.relative_to(home)): path.read_text() for path in home.rglob("*") if path.is_file()}


def query(folder: Path, text: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{folder / 'run/ledger.sqlite'}?mode=ro", uri=True)) as db:
        return db.execute(text).fetchall()


def check_once(folder: Path) -> None:
    """Each job has one result that counts, and each batch that was sent ran its jobs once."""
    accepted = query(folder, "SELECT job FROM attempt WHERE accepted = 1 AND retired IS NULL ORDER BY job")
    assert [job for (job,) in accepted] == JOBS
    ran = query(folder, "SELECT job, batch, count(*) FROM attempt GROUP BY job, batch HAVING count(*) > 1")
    assert ran == []
    assert query(folder, "SELECT name FROM batch WHERE submitted IS NULL") == []


def test_a_failed_clump_then_a_run_with_another_parameter(folder: Path) -> None:
    code, out, err = fermigrid("retry", "run", "--yes", cwd=folder)
    assert code == 0, err
    assert "done again: clump: 1 job, merge: 1 job" in out
    code, out, err = fermigrid("watch", "run", cwd=folder)
    assert code == 1, "it fails again"
    (folder / "flag").touch()
    code, out, err = fermigrid("retry", "run", "--job", "clump.r2.c001", cwd=folder)
    assert (code, "say so with --yes" in err) == (2, True), err
    code, out, err = fermigrid("retry", "run", "--job", "clump.r2.c001", "--yes", cwd=folder)
    assert code == 0, err
    code, out, err = fermigrid("watch", "run", cwd=folder)
    assert (code, "7 jobs, 7 done" in out) == (0, True), out + err
    check_once(folder)
    whole = "v402\nr2.c000 emin=100\nr2.c001 emin=100\nr2.c002 emin=100\n"
    assert outputs(folder)["r2_v402.txt"] == whole
    code, out, err = fermigrid("why", "run", "clump.r2.c001", cwd=folder)
    assert "clump.r2.c001: done (again.b0000.clump.g2 at local)" in out
    assert out.count("before, in again.b0000.clump.g") == 2
    code, out, err = fermigrid("logs", "run", "clump.r2.c001", cwd=folder)
    assert err.count("which does not count any more") == 2

    code, out, err = fermigrid("rollback", "run", "--run", "r2", "--set", "emin=30", "--yes", cwd=folder)
    assert code == 0, err
    assert "with emin=30, version=403: r2" in out
    code, out, err = fermigrid("watch", "run", cwd=folder)
    assert (code, "7 jobs, 7 done" in out) == (0, True), out + err
    check_once(folder)
    files = outputs(folder)
    assert files["r2_v403.txt"] == whole.replace("100", "30").replace("402", "403")
    assert files["retired/3/r2_v402.txt"] == whole
    assert files["retired/1/r2_v400.txt"] == "v400\nr2.c000 emin=100\nr2.c002 emin=100\n"
    assert sorted(name for name in files if "/" not in name) == [
        "r1_c000.txt", "r1_c001.txt", "r1_v400.txt", "r2_c000.txt", "r2_c001.txt", "r2_c002.txt", "r2_v403.txt",
    ]  # fmt: skip
    code, out, err = fermigrid("status", "run", "--history", cwd=folder)
    assert "rollback 3: r2, all steps with emin=30" in out
    batches = json.loads(fermigrid("status", "run", "--json", cwd=folder)[1])["batches"]
    assert batches[-1]["parameters"] == {"emin": "30", "version": "403"}
    code, out, err = fermigrid("rollback", "run", "--run", "r7", cwd=folder)
    assert (code, "no run 'r7'" in err) == (19, True)
    code, out, err = fermigrid("retry", "run", cwd=folder)
    assert (code, out) == (0, "nothing to do again: no such job failed or was removed\n")


def kill_after(folder: Path, seconds: float, *arguments: str) -> None:
    """A fermigrid that is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fermigrid", *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def killed_and_gone_on(folder: Path, chance: random.Random, verb: Mapping[str, tuple[str, ...]]) -> None:
    (folder / "flag").touch()
    for arguments in verb.values():
        before = len(query(folder, "SELECT id FROM decision"))
        while len(query(folder, "SELECT id FROM decision")) == before:
            kill_after(folder, chance.uniform(0.2, 1.2), *arguments)
        kill_after(folder, chance.uniform(0.2, 0.8), "watch", "run")
        code, out, err = fermigrid("watch", "run", cwd=folder)
        assert (code, "7 jobs, 7 done" in out) == (0, True), out + err
        check_once(folder)


VERBS = {
    "retry": ("retry", "run", "--yes"),
    "rollback": ("rollback", "run", "--run", "r1", "--run", "r2", "--yes"),
}


def test_killed_at_any_moment(folder: Path) -> None:
    killed_and_gone_on(folder, random.Random(3), VERBS)
    assert query(folder, "SELECT count(*) FROM decision") == [(2,)]


@pytest.mark.drill
@pytest.mark.parametrize("seed", range(20))
def test_killed_again_and_again(folder: Path, seed: int) -> None:
    again = {f"{number}": VERBS["rollback"] for number in range(5)}
    killed_and_gone_on(folder, random.Random(seed), {"retry": VERBS["retry"], **again})
