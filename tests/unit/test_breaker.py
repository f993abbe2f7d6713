"""The circuit breaker: which results trip it, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermigrid.breaker import Result, find_reason, window_of
from fermigrid.campaign import StopIf, parse_share
from tests.campaigns import SMALL, complaints

GOOD, BAD = Result(False, "path"), Result(True)


def failed(share: str, *newest_first: Result) -> str:
    return find_reason(StopIf(failed=share), newest_first, None)


def test_a_share_of_the_whole_window() -> None:
    assert failed("20 % of the last 10", BAD, *[GOOD] * 8) == ""
    words = failed("20 % of the last 10", BAD, BAD)
    assert words == "2 of the last 2 attempts failed, 2 are enough (20 % of the last 10)"
    assert failed("20 % of the last 10", *[GOOD] * 8, BAD, BAD)
    assert failed("20 % of the last 10", *[GOOD] * 9, BAD, BAD) == "", "the eleventh has left the window"


@pytest.mark.parametrize(
    ("share", "enough"), [("7 % of the last 100", 7), ("0.1 % of the last 10", 1), ("29% of the last 100", 29)]
)
def test_the_number_that_is_enough(share: str, enough: int) -> None:
    assert failed(share, *[BAD] * (enough - 1)) == ""
    assert failed(share, *[BAD] * enough)


@given(st.integers(1, 100), st.integers(1, 300), st.lists(st.booleans(), max_size=400))
def test_it_counts_as_a_person_would(percent: int, last: int, bad: list[bool]) -> None:
    found = failed(f"{percent} % of the last {last}", *[Result(one) for one in bad])
    assert bool(found) == (sum(bad[:last]) > 0 and 100 * sum(bad[:last]) >= percent * last)


def test_images_over_the_network() -> None:
    stop_if = StopIf(http="50 % of the last 4")
    over = [Result(False, "http"), Result(False, "registry")]
    assert find_reason(stop_if, [over[0], *[Result(False, "cache")] * 3], None) == ""
    assert "2 of the last 4 attempts fetched their image over the network" in find_reason(
        stop_if, [*over, GOOD, GOOD], None
    )


def test_the_disk() -> None:
    stop_if = StopIf(disk="10 GiB")
    assert find_reason(stop_if, (), 10 * 2**30) == ""
    assert "1 GiB left, less than the 10 GiB of stop_if.disk" in find_reason(stop_if, (), 2**30)
    assert find_reason(stop_if, (), None) == "", "what nobody can tell does not stop a campaign"


def test_all_reasons_at_once_and_the_window() -> None:
    stop_if = StopIf(failed="10 % of the last 20", http="1 % of the last 300", disk="1 GiB")
    assert window_of(stop_if) == 300
    assert find_reason(stop_if, [BAD, *[Result(True, "http")] * 3], 5).count(";") == 2
    assert window_of(StopIf()) == 0
    assert find_reason(StopIf(), [BAD] * 100, 0) == ""


@pytest.mark.parametrize(
    "text",
    [
        "20 %",
        "20 of the last 200",
        "0 % of the last 10",
        "101 % of the last 10",
        "5 % of the last 0",
        "5 % of the last 10001",
    ],
)
def test_shares_that_are_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no share"):
        parse_share(text)
    (said,) = complaints(tmp_path, f"{SMALL}stop_if: {{failed: {text}}}\n")
    assert said.startswith("campaign.yaml:8: stop_if.failed:")
