"""The table of states: complete, and nothing final is ever left again by late or repeated news."""

from __future__ import annotations

from itertools import product

import pytest

from fermigrid.states import Seen, State, next_state

FINAL = {State.DONE, State.FAILED, State.REMOVED}
EVERY = list(product(State, Seen))


def test_which_states_are_final() -> None:
    assert {state for state in State if state.final} == FINAL


@pytest.mark.parametrize(("now", "seen"), EVERY)
def test_the_table_is_complete(now: State, seen: Seen) -> None:
    assert isinstance(next_state(now, seen), State)


@pytest.mark.parametrize(("now", "seen"), EVERY)
def test_news_that_comes_twice_changes_nothing_the_second_time(now: State, seen: Seen) -> None:
    once = next_state(now, seen)
    assert next_state(once, seen) is once


@pytest.mark.parametrize("seen", Seen)
def test_what_the_report_said_stands(seen: Seen) -> None:
    assert next_state(State.DONE, seen) is State.DONE
    assert next_state(State.FAILED, seen) is State.FAILED


@pytest.mark.parametrize(("now", "seen"), EVERY)
def test_no_batch_system_says_done_or_failed(now: State, seen: Seen) -> None:
    if not now.final:
        assert next_state(now, seen) not in (State.DONE, State.FAILED)


@pytest.mark.parametrize("seen", [seen for seen in Seen if seen is not Seen.ENDED])
def test_removed_is_left_only_by_an_end(seen: Seen) -> None:
    assert next_state(State.REMOVED, seen) is State.REMOVED
    assert next_state(State.REMOVED, Seen.ENDED) is State.ENDED


@pytest.mark.parametrize("seen", Seen)
def test_a_job_that_ended_waits_for_its_report_whatever_comes_late(seen: Seen) -> None:
    assert next_state(State.ENDED, seen) is State.ENDED


def test_end_and_removal_come_to_the_same_in_either_order() -> None:
    for now in (State.WAITING, State.RUNNING, State.HELD, State.UNKNOWN):
        assert next_state(next_state(now, Seen.ENDED), Seen.REMOVED) is next_state(
            next_state(now, Seen.REMOVED), Seen.ENDED
        )


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (Seen.SUBMITTED, State.WAITING), (Seen.STARTED, State.RUNNING), (Seen.EVICTED, State.WAITING),
        (Seen.HELD, State.HELD), (Seen.RELEASED, State.WAITING), (Seen.ENDED, State.ENDED),
        (Seen.REMOVED, State.REMOVED), (Seen.LOST, State.UNKNOWN),
    ],
)  # fmt: skip
@pytest.mark.parametrize("now", [State.WAITING, State.RUNNING, State.HELD, State.UNKNOWN])
def test_a_job_that_is_not_over_follows_what_is_seen(now: State, seen: Seen, state: State) -> None:
    assert next_state(now, seen) is state


def test_lost_is_never_failed() -> None:
    assert {next_state(state, Seen.LOST) for state in State if not state.final} == {State.UNKNOWN, State.ENDED}
