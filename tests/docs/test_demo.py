"""`make demo`: it ends well, says that it was a rehearsal, runs again, and touches no folder that is not its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.transcript import CHECKOUT, write_local_site

RUNS = 5


def demo(folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """`ci/demo local` in `folder`."""
    sites = folder.parent / "sites"
    if not sites.exists():
        write_local_site(sites)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "FERMIGRID_SITES": str(sites),
        "FERMIGRID_POLL_S": "0.2",
        "TMPDIR": str(folder.parent),
        "DEMO_DIR": str(folder),
        "DEMO_RUNS": str(RUNS),
        **extra,
    }
    return subprocess.run(
        [CHECKOUT / "ci/demo", "local"], env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_it_ends_well_and_does_so_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = demo(tmp_path / "demo")
        assert done.returncode == 0, done.stdout + done.stderr
        last = done.stdout.splitlines()[-1]
        assert f"P400-L1: clean: {RUNS} runs, {RUNS} jobs, {RUNS} outputs read" in done.stdout
        assert last.startswith(f"demo: good: {RUNS} runs, {RUNS} jobs on site local")
        assert f"REHEARSAL: {RUNS} jobs ran on this host" in last
    assert len(list((tmp_path / "demo/run/outputs/ft1").iterdir())) == RUNS


def test_a_real_event_file_is_taken(tmp_path: Path) -> None:
    events = tmp_path / "mine.fits"
    make = [sys.executable, CHECKOUT / "examples/l1/make_events.py", "--runs", "9", "--seed", "5", "--output", events]
    subprocess.run([*make, "--table", tmp_path / "unused.csv"], check=True, capture_output=True, timeout=60)
    done = demo(tmp_path / "demo", FERMIGRID_EVENTS=str(events))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"events_file={events}" in done.stdout
    assert f"{RUNS} audited: all agree" in done.stdout


@pytest.mark.parametrize("content", ["thesis.tex", ".hidden"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / content).write_text("years of work")
    done = demo(folder)
    assert done.returncode == 1
    assert "is no demo's" in done.stderr
    assert (folder / content).read_text() == "years of work"


def test_an_event_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = demo(tmp_path / "demo", FERMIGRID_EVENTS=str(tmp_path / "absent.fits"))
    assert done.returncode == 1
    assert "absent.fits" in done.stderr
    assert not (tmp_path / "demo").exists()
