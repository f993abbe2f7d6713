"""What is said of jobs that are not sent, of those that are held, and of those that were given up."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fermigrid.assemble import assemble_kept
from fermigrid.backends import JobSeen
from fermigrid.commands.following import tell_holds
from fermigrid.control import control
from fermigrid.explain import comes_back, explain_job
from fermigrid.find_job import find_job
from fermigrid.runfolder import RunFolder
from fermigrid.standing import standing_of, top_failures
from fermigrid.states import Seen, State
from fermigrid.submit import begin, prepare
from fermigrid.summary_campaign import lines_of_jobs, summarize
from fermigrid.unsent import explain_unsent
from fermigrid.watch import Following, watch_once
from tests.campaigns import SITES, SMALL, assemble, make_hand
from tests.stand_in import TIME, Memory, end_job
from tests.unit.test_submit import CHAIN, TABLE, campaign, system

__all__ = ["system"]
SHIP = CHAIN + '  ship:\n    after: [merge]\n    command: [/bin/true, "{run}"]\n'


def test_what_waits_for_a_failed_job_is_counted_and_told(tmp_path: Path, system: Memory) -> None:
    """The clumps of r1 are two; one fails. The merging of r1 and what comes after that never come, r2 goes on."""
    with campaign(tmp_path, SHIP, TABLE) as f:
        watch_once(f)
        before = "not sent yet: it waits for the end of clump in block b0000 (so far 0 of 3)"
        assert explain_unsent(f, "merge.r1") == (before,)
        assert explain_unsent(f, "ship.r1") == (
            "not sent yet: it waits for the end of merge in block b0000, which is not sent yet",
        )
        for index, code in enumerate((0, 3, 0)):
            end_job(system.landed[0], index, code)
        watch_once(f)
        because = ("not sent, because clump.r1.c001 failed (the payload ended with exit code 3)",)
        assert explain_unsent(f, "merge.r1") == explain_unsent(f, "ship.r1") == because
        standing = standing_of(f)
        assert (standing.jobs, standing.unsent, standing.blocked) == (4, 3, 2)
        assert standing.headline == (
            "7 jobs, 2 done, 1 waiting, 1 failed, 1 not sent yet, 2 never sent\nnever sent, because what comes before failed or was removed: 2 jobs"
        )
        for name in ("merge.r3", "merge.r", "merge.r1.c000", "clump.r1", "other.r1", ""):
            assert explain_unsent(f, name) == ()
        end_job(system.landed[1], 0)
        watch_once(f)
        end_job(system.landed[2], 0)
        assert watch_once(f).finished
        standing = standing_of(f)
        assert (standing.jobs, standing.unsent, standing.blocked) == (5, 2, 2)


def test_in_a_campaign_in_which_all_is_well_nothing_is_left_out(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        standing = standing_of(f)
        assert (standing.headline, standing.unsent, standing.blocked) == ("5 jobs, 3 waiting, 2 not sent yet", 2, 0)


def test_what_a_halted_campaign_does_not_send_waits_for_a_person(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        for index in range(3):
            end_job(system.landed[0], index, 0)
        f.ledger.halt("breaker", "20 of the last 200 failed", TIME, "me")
        watch_once(f)
        (why,) = explain_unsent(f, "merge.r1")
        assert why.startswith("not sent yet: nothing more starts until `fermigrid resume`, since ")
        assert why.endswith(": 20 of the last 200 failed")
        standing = standing_of(f)
        assert standing.pace.why_not == "not all is sent"
        assert standing.headline.startswith("5 jobs, 3 done, 2 not sent yet\nnothing more starts until ")
        assert standing.words == "3 done, 2 not sent yet; stopped by the circuit breaker"


@pytest.mark.parametrize(("text", "unsent"), [(SMALL, 0), (CHAIN, 2)])
def test_a_removal_speaks_of_what_was_not_sent_only_where_there_is_such(
    tmp_path: Path, system: Memory, text: str, unsent: int
) -> None:
    with campaign(tmp_path, text, TABLE if text is CHAIN else None) as f:
        watch_once(f)
        control(f, "remove", [], [])
        watch_once(f)
        _, *more = standing_of(f).headline.splitlines()
        assert standing_of(f).unsent == unsent
        assert more == ["it was removed: nothing more of it is sent"] * (unsent > 0)
        assert standing_of(f).words == ("3 removed, 2 never sent; removed" if unsent else "2 removed")
        if unsent:
            assert explain_unsent(f, "merge.r1")[0].startswith("not sent: the campaign was removed on ")


def test_what_waits_for_jobs_that_a_person_removed(tmp_path: Path, system: Memory) -> None:
    """The whole step, of which the batch system does not tell every job."""
    with campaign(tmp_path, CHAIN, TABLE) as f:
        watch_once(f)
        (batch,) = f.ledger.batches()
        f.ledger.remove(batch.id, f.hand.now(), "me")
        watch_once(f)
        assert standing_of(f).blocked == 2
        assert explain_unsent(f, "merge.r2")[0].startswith("not sent, because two.b0000.clump.g0 was removed on ")


def test_each_reason_of_a_hold_is_told_once_and_equal_ones_together(tmp_path: Path, system: Memory) -> None:
    said: list[str] = []
    told: set[str] = set()
    with campaign(tmp_path, SMALL.replace("count: 2", "count: 4"), said=said) as f:
        watch_once(f)
        said.clear()

        def hold(index: int, reason: str) -> None:
            system.news.append(JobSeen(system.landed[0].batch_id, index, Seen.HELD, TIME, reason=reason, code="12/2"))
            watch_once(f)
            tell_holds(f, told)

        hold(0, "")
        assert said.pop() == "1 job held: no reason given (fermigrid why small go.0000)"
        system.news += [
            JobSeen(system.landed[0].batch_id, 1, Seen.HELD, TIME, reason="no disk on slot1_1@n1.grid", code="12/2")
        ]
        hold(2, "no disk on slot1_2@other.grid")
        assert said == ["2 jobs held: no disk on slot1_1@n1.grid (fermigrid why small go.0001)"]
        hold(3, "no disk on slot2@n3")
        assert len(said) == 1


def test_a_key_that_decides_is_told_with_its_line(tmp_path: Path, system: Memory) -> None:
    """Of the person's own site file while that is what was submitted; of the run folder's copy when it has changed."""
    own = tmp_path / "own"
    own.mkdir()
    site = (SITES / "local.yaml").read_text() + "htcondor:\n  timeout: 5 s\n"
    (own / "local.yaml").write_text(site)
    site_line = len(site.splitlines()) - 1
    text = SMALL + "    resources:\n      memory: 1 GiB\n"
    run, hand = RunFolder(tmp_path / "run"), make_hand([])
    prepare(run)
    assembled = assemble(tmp_path, text, own=[own])
    ledger = begin(assembled, run, "local", [str(own), str(SITES)], hand)
    f = Following(ledger, run, assembled, "local", hand)
    f = replace(f, assembled=assemble_kept(run, ledger.campaign()))
    watch_once(f)
    for seen in (Seen.HELD, Seen.REMOVED):
        system.news.append(
            JobSeen(system.landed[0].batch_id, 0, seen, TIME, reason=str(seen), code="0/7" * (seen == "held"))
        )
    watch_once(f)

    def told() -> list[str]:
        return list(explain_job(f, find_job(f.ledger, f.folder, "go.0000")[-1]))

    memory_line = f"{run.campaign}:{text.splitlines().index('      memory: 1 GiB') + 1}"
    reason, advice = told()
    assert reason == "removed"
    assert (
        advice == f"0/7: removed (htcondor.grid.queue, {own}/local.yaml:{site_line}) (resources.memory, {memory_line})"
    )
    (own / "local.yaml").write_text("site: local\n")
    assert f"(htcondor.grid.queue, {run.sites}/0/local.yaml:{site_line})" in told()[1]
    ledger.close()


def test_a_reason_is_told_with_a_job_that_has_it_and_exit_codes_are_reasons(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, SMALL.replace("count: 2", "count: 4")) as f:
        watch_once(f)
        for index, code in enumerate((7, 3, 3, 139)):
            end_job(system.landed[0], index, code)
        watch_once(f)
        assert [(jobs, first) for _, jobs, first in top_failures(f, standing_of(f))] == [
            (2, "go.0001"),
            (1, "go.0000"),
            (1, "go.0003"),
        ]
        assert [
            "exit code 3" in top_failures(f, standing_of(f))[0][0],
            "exit code 7" in top_failures(f, standing_of(f))[1][0],
        ] == [True, True]


WAITS = SHIP + "retries: {rules: [{when: {exit: 7}, do: wait, after: 10 min}]}\n"


def test_what_a_rule_begins_again_later_waits_and_has_not_failed(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, WAITS, TABLE) as f:
        watch_once(f)
        for index, code in enumerate((7, 3, 0)):
            end_job(system.landed[0], index, code)
        watch_once(f)
        standing = standing_of(f)
        assert standing.headline == (
            "7 jobs, 1 done, 2 waiting, 1 failed, 3 not sent yet\n"
            "again by a rule, from 2027-03-04 05:16 UTC on: 1 job, such as clump.r1.c000: "
            "the payload ended with exit code 7"
        )
        assert standing.words.endswith("3 not sent yet; 1 again from 2027-03-04 05:16 UTC on")
        assert [(why, jobs) for why, jobs, _ in top_failures(f, standing)] == [
            ("the payload ended with exit code 3", 1)
        ]
        assert standing.is_open and not standing.stuck and standing.batches[0].words == "submitted"
        told = {str(line[0]): line[6] for line in lines_of_jobs(f)}
        assert told == {"clump.r1.c000": "waiting", "clump.r1.c001": "failed", "clump.r2.c000": "done"}
        states = summarize(f).counts[0].states
        assert (states["done"], states["waiting"], states["failed"]) == (1, 1, 1), "of clump"
        (found,) = find_job(f.ledger, f.folder, "clump.r1.c000")
        assert next(iter(explain_job(f, found))) == (
            "it ended badly (exit 7), and a rule begins it again from 2027-03-04 05:16 UTC on"
        )
        assert comes_back(f, found) and not comes_back(f, find_job(f.ledger, f.folder, "clump.r1.c001")[0])
        assert explain_unsent(f, "merge.r1") == (
            "not sent, because clump.r1.c001 failed (the payload ended with exit code 3)",
        )
        control(f, "remove", [], [])
        assert standing_of(f).returning == () and standing_of(f).counts[State.FAILED] == 2


def test_what_comes_after_a_job_that_a_rule_begins_again_is_not_given_up(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, WAITS, TABLE) as f:
        watch_once(f)
        for index, code in enumerate((7, 0, 0)):
            end_job(system.landed[0], index, code)
        watch_once(f)
        assert standing_of(f).blocked == 0
        assert explain_unsent(f, "merge.r1") == (
            "not sent yet: it waits for the end of clump.r1.c000, which a rule begins again from 2027-03-04 05:16 UTC on "
            "(exit 7)",
        )
        watch_once(replace(f, hand=replace(f.hand, now=lambda: TIME + timedelta(minutes=11))))
        assert standing_of(f).returning == () and standing_of(f).headline.startswith("7 jobs, 2 done, 2 waiting, 3 not")
