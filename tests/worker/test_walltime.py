"""A job over its walltime is ended by the worker, so that its log and its report come back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.worker.faulty_http import Faulty
from tests.worker.worker_job import Job

OVER = "over its walltime of 1 s"


@pytest.mark.fault(
    fault="the payload runs longer than its walltime",
    mode="host",
    does="ends it as TERM would; its log and report come back",
    code="the payload's, or 143",
)
def test_a_payload_over_its_walltime_is_told_to_end(make_job: Callable[..., Job]) -> None:
    script = "trap 'echo last words; exit 3' TERM; sleep 60 & wait"
    done = make_job(args=["/bin/sh", "-c", script], settings=[("walltime", "1")]).run()
    assert (done.code, done.data["payload_exit"], done.data["signals"]) == (3, 3, ["TERM"])
    assert OVER in done.message and b"last words" in done.out


@pytest.mark.fault(
    fault="the payload ignores that its walltime is over", mode="host", does="kills it after the grace time", code=137
)
def test_a_payload_that_does_not_listen_is_killed(make_job: Callable[..., Job]) -> None:
    settings = [("walltime", "1"), ("grace", "1")]
    done = make_job(args=["/bin/sh", "-c", "trap : TERM; while :; do sleep 1; done"], settings=settings).run()
    assert (done.code, done.data["signal"]) == (137, 9) and OVER in done.message


def test_the_walltime_counts_for_inputs_too(make_job: Callable[..., Job], faulty: Faulty) -> None:
    row = [("in", "a.fits"), ("in.from", f"{faulty.url}/stall/a.fits")]
    done = make_job(row=row, settings=[("walltime", "1")]).run()
    assert done.code == 143 and done.data["payload_exit"] is None and OVER in done.message


def test_a_job_within_its_walltime_is_left_alone(make_job: Callable[..., Job]) -> None:
    done = make_job(args=["/bin/sleep", "0.1"], settings=[("walltime", "20")]).run()
    assert (done.code, done.message) == (0, "")
