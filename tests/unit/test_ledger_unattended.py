"""What the ledger keeps for a campaign that nobody looks at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fermigrid.backends import Cursor
from fermigrid.breaker import Result
from fermigrid.campaign import WINDOW_MOST
from fermigrid.ledger import Ledger, create_ledger
from fermigrid.records import Halt, Told, Watching
from fermigrid.states import State
from tests.campaigns import NOW
from tests.unit.test_ledger import CAMPAIGN, batch, job, report

WHO = "me@here"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(create_ledger(tmp_path / "ledger.sqlite", CAMPAIGN, NOW, WHO)) as made:
        made.intend(batch(), NOW, WHO)
        yield made


def test_results_come_in_as_jobs_end_and_begin_anew_when_a_person_says_so(ledger: Ledger) -> None:
    good, bad, lost = (job(index=index, state=State.ENDED) for index in range(3))
    ledger.take_in([(replace(good, state=State.DONE), report(good, "g0.s1.aaaaaaaa", outputs=True))])
    ledger.take_in([(replace(bad, state=State.FAILED), report(bad, "g0.s1.bbbbbbbb", 3))])
    ledger.take_in([(replace(lost, state=State.FAILED), None)])
    ledger.apply([], Cursor(), results=[Result(failed=True)])
    assert ledger.results(9) == [Result(True), Result(True), Result(True, "path"), Result(False, "path")]
    assert ledger.results(1) == [Result(True)]
    assert ledger.produced() == {batch().id: (1, 1)}
    ledger.halt("trial", "first", NOW, WHO)
    ledger.lift("trial", NOW, WHO, "seen")
    assert len(ledger.results(9)) == 4
    ledger.lift("breaker", NOW, WHO, "mended")
    assert ledger.results(9) == []


def test_the_window_is_bounded(ledger: Ledger) -> None:
    for _ in range(3):
        ledger.apply([], Cursor(), results=[Result(failed=True)] * (WINDOW_MOST - 1))
    ledger.apply([], Cursor(), results=[Result(failed=False)])
    kept = ledger.results(10 * WINDOW_MOST)
    assert (len(kept), kept[0].failed, kept[1].failed) == (WINDOW_MOST, False, True)


def test_a_halt_keeps_its_time_and_its_words_until_it_is_lifted(ledger: Ledger) -> None:
    ledger.halt("breaker", "40 failed", NOW, WHO)
    ledger.halt("breaker", "41 failed", NOW.replace(year=2030), WHO)
    assert ledger.halts() == [Halt("breaker", NOW.isoformat(), "40 failed")]
    ledger.lift("breaker", NOW, WHO, "mended")
    ledger.lift("breaker", NOW, WHO, "mended")
    told = [what for _, _, what in ledger.journal() if "breaker" in what]
    assert told == ["stopped (breaker): 40 failed", "goes on (breaker): mended"]


def test_a_trial_is_there_with_its_halt(ledger: Ledger) -> None:
    assert ledger.trial() == ()
    ledger.begin_trial(("r9", "r1"), NOW, WHO)
    assert ledger.trial() == ("r9", "r1")
    assert [halt.kind for halt in ledger.halts()] == ["trial"]


def test_what_was_seen_told_paused_and_changed(ledger: Ledger) -> None:
    assert ledger.watching() is None
    ledger.watched(Watching("a", "b"))
    ledger.watched(seen := Watching("c", "b", "c", "a", "gone"))
    assert ledger.watching() == seen
    one, two = Told("held", "", "webhook", 5, True), Told("held", "", "mail a@b", 5, False)
    ledger.tell([one, two])
    ledger.tell([replace(two, told=True)], over=[one])
    assert ledger.told() == [replace(two, told=True)]
    ledger.pause(batch().id)
    ledger.pause(batch().id)
    assert ledger.paused() == {batch().id}
    ledger.unpause(batch().id)
    assert ledger.paused() == set()
    ledger.adjust({("go", "memory"): 1, ("slac", "quota"): 2}, NOW, WHO, "why")
    ledger.adjust({("go", "memory"): 3}, NOW, WHO, "why")
    assert ledger.adjusted() == {("go", "memory"): 3, ("slac", "quota"): 2}
    assert ledger.doubtful() == [(batch().name, NOW.isoformat())]


def test_why_jobs_are_held(ledger: Ledger) -> None:
    held = [job(index=index, state=State.HELD, reason=why) for index, why in enumerate("abb")]
    ledger.apply(held, Cursor())
    assert list(ledger.held_reasons().items()) == [("b", 2), ("a", 1)]
