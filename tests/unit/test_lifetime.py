"""Whether a proxy, a token or a seal lasts as long as a job may need it, with the arithmetic in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fermigrid.campaign import Step
from fermigrid.lifetime import MARGIN_S, Part, find_early, find_shortfall, time_of_job
from fermigrid.site import Site

NOW = datetime(2027, 3, 4, 5, 0, tzinfo=UTC)
PARTS = (Part(7200, "in the queue"), Part(14400, "of walltime"), Part(900, "to spare"))
SITE = {
    "site": "x", "title": "t", "contact": "c", "manual": "m", "backend": "local",
    "container": {"launch": "worker"}, "output": {"kind": "transfer"},
}  # fmt: skip


def test_a_proxy_that_lasts_is_good() -> None:
    assert find_shortfall("the proxy", NOW + timedelta(seconds=22500), "clump", PARTS, NOW) is None


def test_the_message_has_the_arithmetic() -> None:
    said = find_shortfall("the proxy", NOW + timedelta(hours=3, minutes=20), "clump", PARTS, NOW)
    assert said == (
        "the proxy ends at 2027-03-04 08:20 UTC, in 3 h 20 min; a job of step clump may take 2 h in the queue + "
        "4 h of walltime + 15 min to spare = 6 h 15 min: renew it"
    )


@pytest.mark.parametrize("second", [-1, 0])
def test_the_second_counts(second: int) -> None:
    ends = NOW + timedelta(seconds=22500 + second)
    assert (find_shortfall("the proxy", ends, "clump", PARTS, NOW) is None) is (second == 0)


def test_what_has_ended_needs_no_arithmetic() -> None:
    said = find_shortfall("the seal", NOW - timedelta(days=2), "clump", PARTS, NOW)
    assert said == "the seal ended at 2027-03-02 05:00 UTC: renew it"


def test_what_is_not_valid_yet() -> None:
    assert find_early("the seal", NOW, NOW) is None
    said = find_early("the seal", NOW + timedelta(minutes=90), NOW)
    assert said == "the seal is valid only from 2027-03-04 06:30 UTC on, in 1 h 30 min"


def test_the_time_of_a_job() -> None:
    step = Step.model_validate({"command": ["x"], "resources": {"walltime": "2 h"}})
    site = Site.model_validate(SITE)
    assert [part.seconds for part in time_of_job(step, site)] == [7200, MARGIN_S]
    waits = Site.model_validate(SITE | {"queue_wait": "1 d"})
    assert [part.seconds for part in time_of_job(step, waits)] == [86400, 7200, MARGIN_S]
