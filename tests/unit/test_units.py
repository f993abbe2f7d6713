"""Quantities with their units, and back for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.units import BYTES, SECONDS, parse_bytes, parse_seconds, show_bytes, show_seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [("1 B", 1), ("2 GiB", 2**31), ("2GiB", 2**31), (" 1.5 MiB ", 3 * 2**19), ("50 MB", 50_000_000), ("1 kB", 1000)],
)
def test_bytes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(("text", "count"), [("4 h", 14400), ("90 s", 90), ("1.5 min", 90), ("2d", 172800)])
def test_seconds(text: str, count: int) -> None:
    assert parse_seconds(text) == count


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2", "no unit"),
        ("", "not a quantity"),
        ("GiB", "not a quantity"),
        ("2 gb", "unknown unit 'gb'"),
        ("-2 GiB", "not a quantity"),
        ("1e3 MB", "not a quantity"),
        ("1,5 GiB", "not a quantity"),
        ("0 B", "more than nothing"),
        ("0.1 B", "more than nothing"),
        ("9" * 400 + " B", "more than any"),
        ("2 GiB GiB", "not a quantity"),
        ("\u0662 GiB", "not a quantity"),
        ("2 GiB\n2", "not a quantity"),
        (None, "not a quantity"),
        (["2 GiB"], "not a quantity"),
    ],
)
def test_what_is_no_amount_of_bytes(text: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["4", "4 hours", "4 m", "4:30", "1 h 30 min"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="such as 4 h"):
        parse_seconds(text)


@given(st.integers(1, 8192), st.sampled_from(sorted(BYTES)))
def test_every_unit_counts(number: int, unit: str) -> None:
    assert parse_bytes(f"{number} {unit}") == number * BYTES[unit]


@given(st.integers(1, 10**6), st.sampled_from(sorted(SECONDS)))
def test_every_unit_of_time_counts(number: int, unit: str) -> None:
    assert parse_seconds(f"{number}{unit}") == number * SECONDS[unit]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (3600, "1 h"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


@given(st.integers(0, 2**60))
def test_bytes_for_people_are_near_the_truth(count: int) -> None:
    number, unit = show_bytes(count).split()
    assert float(number) * BYTES[unit] == pytest.approx(count, rel=0.01)
    assert float(number) <= 1024 or unit == "TiB"
