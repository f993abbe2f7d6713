"""What a person is told of a campaign that nobody looks at, and when again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from fermigrid.alerts import END, Concern, View, find_concerns, find_due, find_over, write_subject, write_text
from fermigrid.campaign import Alerts
from fermigrid.metrics import Counts, write_metrics
from fermigrid.records import Halt, Told, Watching
from tests.campaigns import NOW

HOUR, DAY = 3600, 86400
ALERTS = Alerts(stall="12 h", silence="1 h", repeat="24 h")


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat(timespec="seconds")


CALM = View(NOW, Watching(ago(60), ago(60)), (), {}, 5, 10, (), (), 4 * HOUR)


def kinds(view: View) -> list[str]:
    return [concern.kind for concern in find_concerns(view, ALERTS)]


def changed(seconds: float) -> Watching:
    return Watching(ago(60), ago(seconds))


def test_a_campaign_that_goes_well_bothers_nobody() -> None:
    assert kinds(CALM) == []


def test_held_jobs_with_the_most_frequent_reason() -> None:
    (held,) = find_concerns(replace(CALM, held={"no space left": 7, "other": 2}), ALERTS)
    assert held.text == "9 jobs held: no space left, and 1 other reason"


@pytest.mark.parametrize(
    ("view", "stalled"),
    [
        (replace(CALM, watching=changed(11 * HOUR)), False),
        (replace(CALM, watching=changed(13 * HOUR)), True),
        (replace(CALM, watching=changed(13 * HOUR), running=0), True),
        (replace(CALM, watching=changed(13 * HOUR), running=0, waiting=0), False),
        (replace(CALM, watching=changed(13 * HOUR), walltime=DAY), False),  # jobs may take that long
        (replace(CALM, watching=changed(13 * HOUR), walltime=DAY, running=0), True),
        (replace(CALM, watching=changed(13 * HOUR), finished="it has ended: 5 jobs"), False),
        (replace(CALM, watching=changed(-5 * HOUR)), False),  # the clock was set back
    ],
)
def test_stalls(view: View, stalled: bool) -> None:
    assert ("stall" in kinds(view)) is stalled


def test_what_the_breaker_keeps_from_starting_is_no_stall() -> None:
    view = replace(CALM, watching=changed(13 * HOUR), running=0, halts=(Halt("breaker", ago(HOUR), "3 failed"),))
    assert kinds(view) == ["breaker"]
    assert kinds(replace(view, halts=(Halt("trial", ago(HOUR), "ten first"),))) == ["stall"]


def test_a_batch_system_that_is_silent() -> None:
    silent = replace(CALM.watching, silent=ago(30 * 60), why="schedd gone")
    assert kinds(replace(CALM, watching=silent)) == []
    view = replace(CALM, watching=replace(silent, silent=ago(2 * HOUR)), doubtful=[("P.b0000.go.g0", ago(2 * HOUR))])
    (silence,) = find_concerns(view, ALERTS)  # and so nobody can end the doubt
    assert silence.text == "the batch system has not answered for 2 h: schedd gone"


def test_doubt_that_lasts() -> None:
    assert kinds(replace(CALM, doubtful=[("b", ago(60))])) == []
    assert kinds(replace(CALM, doubtful=[("b", ago(HOUR))])) == ["doubt"]


def told(concern: Concern, seconds_ago: float, well: bool = True, route: str = "webhook") -> Told:
    return Told(concern.kind, concern.about, route, int(NOW.timestamp() - seconds_ago), well)


def is_due(concern: Concern, *before: Told) -> bool:
    return bool(find_due([concern], before, "webhook", int(NOW.timestamp()), DAY))


HELD, TRIP, OVER = Concern("held", "", "x"), Concern("breaker", ago(0), "y"), Concern(END, "it has ended", "z")


def test_each_is_told_once_and_again_after_a_day() -> None:
    assert is_due(HELD)
    assert not is_due(HELD, told(HELD, HOUR))
    assert is_due(HELD, told(HELD, DAY))
    assert is_due(HELD, told(HELD, HOUR, route="mail me@here")), "each way for itself"
    assert is_due(TRIP, told(replace(TRIP, about=ago(HOUR)), HOUR)), "another trip is another thing"


def test_a_way_that_failed_is_tried_again_soon() -> None:
    assert not is_due(HELD, told(HELD, 60, well=False))
    assert is_due(HELD, told(HELD, 600, well=False))


def test_the_end_is_told_once_and_for_all() -> None:
    assert is_due(OVER)
    assert not is_due(OVER, told(OVER, 400 * DAY))
    assert is_due(OVER, told(OVER, HOUR, well=False))


def test_a_clock_that_was_set_back() -> None:
    assert not is_due(HELD, told(HELD, -HOUR))
    assert is_due(HELD, told(HELD, -400 * DAY)), "it would be silent for a year"


def test_what_is_over_is_forgotten_when_it_may_be_told_anew() -> None:
    stamp = int(NOW.timestamp())
    old, young, end = told(HELD, 2 * DAY), told(TRIP, HOUR), told(OVER, 9 * DAY)
    assert find_over([], [old, young, end], stamp, DAY) == [old]
    assert find_over([HELD], [old], stamp, DAY) == []


def test_problems_differ_by_more_than_their_numbers() -> None:
    first, second = (
        find_concerns(replace(CALM, problems=[f"the proxy ends in {hours} h 20 min, too soon"]), ALERTS)[0]
        for hours in (3, 2)
    )
    assert (first.about == second.about, first.text == second.text) == (True, False)


def test_the_words_of_a_message() -> None:
    concerns = [Concern("held", "", "2 jobs held: Größe\nX-Evil: 1"), TRIP]
    assert write_subject("P400", concerns) == "fermigrid P400: 2 jobs held: Gr??e X-Evil: 1 (and 1 more)"
    text = write_text("P400", "9 jobs, 2 held", "/runs/P400", "node1", concerns)
    assert "fermigrid why P400 JOB" in text
    assert text.endswith("P400: 9 jobs, 2 held\nrun folder /runs/P400 on node1\n")


def test_metrics() -> None:
    text = write_metrics('P"4', 1800000000.7, False, [Counts("clump", "slac", {"done": 3})], [HELD, HELD])
    lines = text.splitlines()
    assert 'fermigrid_jobs{campaign="P\\"4",step="clump",site="slac",state="done"} 3' in lines
    assert 'fermigrid_looked_timestamp_seconds{campaign="P\\"4"} 1800000001' in lines
    assert 'fermigrid_alert{campaign="P\\"4",kind="held"} 2' in lines
    assert 'fermigrid_alert{campaign="P\\"4",kind="breaker"} 0' in lines
    assert text.endswith("\n")
    helped = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(helped) == len(set(helped)), "a metric has one TYPE line"
