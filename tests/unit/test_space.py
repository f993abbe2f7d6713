"""Expected output against the room for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fermigrid.gate import free_bytes
from fermigrid.space import Room, Sent, find_shortage, output_of_a_job

GB = 10**9


def test_what_a_job_publishes_is_measured_as_soon_as_ten_are_good() -> None:
    nine = Sent("go", "slac", 20, 9, 9 * GB, ended=False)
    assert output_of_a_job("go", 5 * GB, [nine]) == 5 * GB
    assert output_of_a_job("go", None, [nine]) is None
    assert output_of_a_job("go", 5 * GB, [nine, Sent("go", "in2p3", 5, 1, GB, ended=True)]) == GB
    assert output_of_a_job("merge", 5 * GB, [nine] * 2) == 5 * GB


@pytest.mark.parametrize(
    ("quota", "free", "words"),
    [
        (None, None, ""),
        (20 * GB, None, ""),
        (19 * GB, None, "P (2 jobs) is expected to publish 9.31 GiB, jobs under way 4.66 GiB; 4.66 GiB of the 17.7 GiB that slac has room for are used"),
        (None, 15 * GB, ""),
        (None, 14 * GB, "P (2 jobs) is expected to publish 9.31 GiB, jobs under way 4.66 GiB; /data has 13 GiB left"),
    ],
)  # fmt: skip
def test_the_arithmetic(quota: int | None, free: int | None, words: str) -> None:
    sent = [Sent("go", "slac", 10, 5, 5 * GB, ended=False), Sent("x", "slac", 10, 0, 0, ended=True)]
    found = find_shortage("P (2 jobs)", 10 * GB, Room("slac", quota, free, "/data"), sent, {"go": GB, "x": GB})
    assert found == words


def test_free_space(tmp_path: Path) -> None:
    found = free_bytes(tmp_path)
    assert found is not None
    assert found > 2**20
    assert free_bytes(tmp_path / "none") is None
    assert free_bytes(Path("relative")) is None
