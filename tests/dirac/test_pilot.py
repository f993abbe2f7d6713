"""One command by DIRAC: a pilot takes it from the server, the worker runs it with real Apptainer, and its words come back."""

from __future__ import annotations

import json

import pytest

from tests.dirac.pilot import Pilot
from tests.pool.product import Product

pytestmark = [pytest.mark.dirac, pytest.mark.pool]


def test_jobs_that_fail_are_told_with_their_words(grid: Product, pilot: Pilot) -> None:
    with pilot:
        done = grid.command("grid", "light", ["sh", "-c", "echo so it goes; exit 7"], code=1)
    assert "1 failed" in done.stdout
    assert "so it goes" in grid.log("one", "command.0000")
    assert json.loads(grid.run("logs", "--report", "one", "command.0000").stdout)["exit"] == 7
    assert pilot.codes == {"command.0000": [7]}


def test_outputs_and_arguments_arrive_as_they_are(grid: Product, pilot: Pilot) -> None:
    """What no JDL could carry goes in the shard."""
    odd = """it's [odd]; "quoted", %s %n %j 007 \\ $HOME"""
    with pilot:
        grid.command("grid", "light", ["sh", "-c", 'printf "%s" "$1" > out.txt', "sh", odd], "--output", "out.txt")
    (output,) = (grid.folder / "fermigrid-runs/one/outputs").iterdir()
    assert output.read_text() == odd
