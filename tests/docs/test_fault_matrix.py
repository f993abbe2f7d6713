"""The fault matrix of the worker's page is what the tests show now."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.worker.faults import INFRASTRUCTURE, KILLED, PAGE, ROOT, next_step, with_table

ROWS = 40


@pytest.fixture(scope="module")
def matrix() -> str:
    """The table as the tests give it; collected in a process of its own, because this one is a test run already."""
    command = [sys.executable, "-m", "tests.worker.faults"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def test_the_page_is_current(matrix: str) -> None:
    page = PAGE.read_text()
    assert with_table(page, matrix) == page, "the tests have other rows: make golden"


def test_there_are_enough_rows_in_each_mode(matrix: str) -> None:
    rows = [line.split(" | ") for line in matrix.splitlines()[3:-1]]
    assert len(rows) >= ROWS
    assert len({row[1] for row in rows}) >= 4
    codes = {code for row in rows for code in row[3].split(" or ")}
    assert codes >= {str(code) for code in (0, 80, *sorted(INFRASTRUCTURE - {99}), 85, 87, 90)}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("0", "leaves the queue, done"),
        ("7", "leaves the queue with its verdict"),
        ("80", "leaves the queue with its verdict"),
        ("82", "starts again elsewhere, after the back-off"),
        ("84", "starts again elsewhere"),
        ("143", "leaves the queue with its verdict; starts again if HTCondor itself ended it"),
    ],
)
def test_what_htcondor_does_next(code: str, words: str) -> None:
    assert next_step(code) == words


def test_codes_of_one_row_agree() -> None:
    assert next_step("81 or 82").endswith("back-off")
    with pytest.raises(ValueError, match="do not lead to the same next step"):
        next_step("0 or 84")
    assert "without a report" in next_step(KILLED)
