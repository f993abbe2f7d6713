"""A run that comes late costs no other run time: what `watch` sends while jobs of a block are held or still on their way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fermigrid.errors import SubmissionRefused
from fermigrid.records import BatchRecord
from fermigrid.resume import resume
from fermigrid.states import Seen
from fermigrid.trial import as_adjusted
from fermigrid.unsent import explain_unsent
from fermigrid.watch import watch_once
from tests.campaigns import NOW
from tests.stand_in import Memory, end_job, tell
from tests.unit.test_submit import CHAIN, campaign, system

__all__ = ["system"]
RUNS = 41
MANY = CHAIN.replace("block: 10", "block: 100")
EVENTS = "run,events\n" + "".join(f"r{index:02},5\n" for index in range(RUNS))


def of_merges(batches: list[BatchRecord]) -> list[int]:
    """How many runs each batch of merges has."""
    return [RUNS if batch.runs is None else len(batch.runs) for batch in batches if batch.step == "merge"]


@pytest.mark.parametrize(("late", "first"), [(1, 40), (2, 39), (40, 1)])
def test_nobody_waits_for_what_is_held(tmp_path: Path, system: Memory, late: int, first: int) -> None:
    with campaign(tmp_path, MANY, EVENTS) as f:
        watch_once(f)
        (clumps,) = system.landed
        for index in range(late):
            tell(clumps, index, Seen.STARTED)
            tell(clumps, index, Seen.HELD, reason="proxy expired")
        for index in range(late, RUNS):
            end_job(clumps, index)
        watch_once(f)
        assert of_merges(f.ledger.batches()) == [first]
        assert " ".join(explain_unsent(f, "merge.r00")) == (
            "not sent yet: it waits for the end of clump.r00.c000, which is held (proxy expired)"
        )
        for index in range(late):
            tell(clumps, index, Seen.RELEASED)
            tell(clumps, index, Seen.STARTED)
        watch_once(f)
        assert of_merges(f.ledger.batches()) == [first], "nothing twice"
        for index in range(late):
            end_job(clumps, index, attempt="g0.s2.aaaaaaaa")
        watch_once(f)
        assert of_merges(f.ledger.batches()) == [first, late]


@pytest.mark.parametrize(("late", "sent"), [(1, [40]), (2, []), (3, [])])
def test_the_last_few_are_not_waited_for(tmp_path: Path, system: Memory, late: int, sent: list[int]) -> None:
    with campaign(tmp_path, MANY, EVENTS) as f:
        watch_once(f)
        (clumps,) = system.landed
        for index in range(RUNS):
            tell(clumps, index, Seen.STARTED)
        for index in range(late, RUNS):
            end_job(clumps, index)
        watch_once(f)
        assert of_merges(f.ledger.batches()) == sent
        for index in range(late):
            end_job(clumps, index)
        watch_once(f)
        assert sum(of_merges(f.ledger.batches())) == RUNS


def test_the_steps_of_a_trial_wait_for_no_resume(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, "run,events\nr1,5\nr2,5\n") as begun:
        begun.ledger.begin_trial(["r1"], NOW, "me")
        f = replace(begun, assembled=as_adjusted(begun.assembled, ("r1",), {}))
        watch_once(f)
        assert [batch.jobs for batch in system.landed] == [1]
        assert explain_unsent(f, "merge.r1") == (
            "not sent yet: it waits for the end of clump in block b0000 (so far 0 of 1)",
        )
        (words,) = explain_unsent(f, "clump.r2.c000")
        assert words.startswith("not sent yet: the rest waits for `fermigrid resume`")
        with pytest.raises(SubmissionRefused) as refused:
            resume(f, "", {}, suggested=False, early=False)
        assert "`fermigrid watch` brings it to its end" in refused.value.hint
