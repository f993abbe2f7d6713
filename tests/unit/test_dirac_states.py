"""What DIRAC's states mean: the table, what is told of a job between two looks, which of several jobs counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from fermigrid.backends.dirac_states import (
    MEANINGS,
    STAGES,
    UNCONFIRMED_MINOR,
    Known,
    ServerJob,
    Stage,
    changes,
    choose,
    twins,
)
from fermigrid.states import Seen

TIME = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC)


def job(status: str, number: int = 1, **more: object) -> ServerJob:
    return replace(ServerJob(number, "go.0000", status), **more)  # type: ignore[arg-type]


def follow(*states: ServerJob) -> list[Seen]:
    """What is told of a job that is looked at in these states."""
    known, told = Known(), list[Seen]()
    for state in states:
        for change, after in changes(known, state):
            known = after
            told.append(change.seen)
    return told


def test_each_state_is_explained() -> None:
    assert set(MEANINGS) == set(STAGES)


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (["Received", "Checking", "Waiting", "Matched"], []),
        (["Waiting", "Running", "Running"], [Seen.STARTED]),
        (["Running", "Stalled", "Running"], [Seen.STARTED]),
        (["Running", "Stalled", "Failed"], [Seen.STARTED, Seen.ENDED]),
        (["Running", "Completing", "Completed"], [Seen.STARTED]),
        (["Running", "Completing", "Completed", "Done"], [Seen.STARTED, Seen.ENDED]),
        (["Waiting", "Done"], [Seen.STARTED, Seen.ENDED]),
        (["Waiting", "Failed"], [Seen.ENDED]),
        (["Running", "Received"], [Seen.STARTED, Seen.EVICTED]),
        (["Running", "Waiting", "Running"], [Seen.STARTED, Seen.EVICTED, Seen.STARTED]),
        (["Running", "Killed", "Deleted"], [Seen.STARTED, Seen.REMOVED]),
        (["Waiting", "Deleted"], [Seen.REMOVED]),
        (["Running", "Pondering", "Running"], [Seen.STARTED]),
        (["Submitting", "Submitting"], []),
    ],
)
def test_what_is_told(states: list[str], told: list[Seen]) -> None:
    assert follow(*map(job, states)) == told


def test_a_start_again_that_nobody_saw() -> None:
    """DIRAC counts; between two looks the job was on its way through all states."""
    assert follow(job("Running"), job("Running", reschedules=1)) == [Seen.STARTED, Seen.EVICTED, Seen.STARTED]
    assert follow(job("Running"), job("Waiting", reschedules=1), job("Running", reschedules=1)) == [
        Seen.STARTED,
        Seen.EVICTED,
        Seen.STARTED,
    ]
    assert follow(job("Running"), job("Done", reschedules=1)) == [Seen.STARTED, Seen.EVICTED, Seen.STARTED, Seen.ENDED]


def test_a_failed_job_that_ran_tells_of_its_start() -> None:
    assert follow(job("Failed", started=TIME)) == [Seen.STARTED, Seen.ENDED]


def test_words_are_not_said_twice() -> None:
    assert job("Done", minor="Execution Complete", application="Unknown").words == "Done, Execution Complete"
    assert job("Failed", minor="x", application="x").words == "Failed, x"


GIVEN_UP = {"minor": UNCONFIRMED_MINOR}


@pytest.mark.parametrize(
    ("jobs", "chosen"),
    [
        ([job("Waiting", 5), job("Submitting", 4)], 5),
        ([job("Submitting", 5), job("Submitting", 4)], 4),
        ([job("Killed", 5), job("Submitting", 4)], 5),  # a person removed it: its copy is not begun instead
        ([job("Failed", 4, **GIVEN_UP), job("Submitting", 5)], 5),
        ([job("Failed", 4, **GIVEN_UP), job("Waiting", 5)], 5),
        ([job("Failed", 4, minor="Application Finished With Errors"), job("Submitting", 5)], 4),
        ([job("Done", 9), job("Killed", 8, **GIVEN_UP)], 9),
        ([job("Waiting", 9), job("Waiting", 8)], 8),
    ],
)
def test_which_of_several_counts(jobs: list[ServerJob], chosen: int) -> None:
    assert choose(jobs).id == chosen
    assert choose(jobs[::-1]).id == chosen


def test_twins_are_jobs_that_may_both_run() -> None:
    assert twins([job("Waiting", 1), job("Running", 2)]) == [job("Waiting", 1), job("Running", 2)]
    assert twins([job("Pondering", 1), job("Running", 2)])
    for other in (job("Submitting", 2), job("Killed", 2), job("Failed", 2, **GIVEN_UP), job("Done", 2)):
        assert twins([job("Running", 1), other]) == []


def test_stages_that_are_over() -> None:
    assert {stage for stage in Stage if stage.final} == {Stage.ENDED, Stage.KILLED}
