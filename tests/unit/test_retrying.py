"""What `watch` makes of jobs that did not end well: in the ledger, with a batch system that does as the test says."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from fermigrid import backends
from fermigrid.alerts import View, find_concerns
from fermigrid.backends import GIVEN_UP, TRIED_AGAIN, RenderedBatch
from fermigrid.campaign import Alerts
from fermigrid.control import control
from fermigrid.explain import explain_job
from fermigrid.find_job import find_job
from fermigrid.records import Watching
from fermigrid.redo import decide, plan_retry
from fermigrid.retry_book import RetryBook
from fermigrid.runfolder import RunFolder
from fermigrid.standing import standing_of
from fermigrid.states import Seen, State
from fermigrid.submit import begin, prepare
from fermigrid.watch import Following, watch_once
from tests import stand_in
from tests.campaigns import NOW, SITES, SMALL, assemble, make_hand
from tests.stand_in import Memory, end_job, tell
from tests.unit.test_submit import CHAIN, TABLE, campaign, states, system

__all__ = ["system"]
GIB = 2**30
GOOD_ONES = CHAIN.replace("after: [clump]", "after: {clump: done}")
UNCURED = f"{GIVEN_UP}, and no release cured it: over its walltime"


def rules(*lines: str, most: int = 3) -> str:
    text = "".join(f"    - {line}\n" for line in lines)
    return f"retries:\n  max: {most}\n" + (f"  rules:\n{text}" if lines else "")


def later(f: Following, seconds: float) -> Following:
    """The same campaign, some time after."""
    return replace(f, hand=replace(f.hand, now=lambda: NOW + timedelta(seconds=seconds)))


def sent(f: Following) -> list[str]:
    return [batch.name for batch in f.ledger.batches()]


def leave_held(batch: RenderedBatch, index: int, code: str) -> None:
    """A job is held, and the batch system's own policy takes it out of the queue."""
    tell(batch, index, Seen.STARTED)
    tell(batch, index, Seen.HELD, reason="too long")
    stand_in.memory.news[-1] = replace(stand_in.memory.news[-1], code=code)
    tell(batch, index, Seen.REMOVED, reason=UNCURED)


# --- ends


def test_a_killed_payload_gets_more_memory_and_is_good(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        end_job(system.landed[0], 0, 137)
        end_job(system.landed[0], 1)
        watch_once(f)
        assert sent(f) == ["small.b0000.go.g0", "small.b0000.go.g1"]
        assert [batch.options["memory"] for batch in f.ledger.batches()] == [2 * GIB, 3 * GIB]
        end_job(system.landed[1], 0, 137, attempt="g1.s1.aaaaaaaa")
        watch_once(f)
        assert f.ledger.batches()[-1].options["memory"] == 4.5 * GIB
        end_job(system.landed[2], 0, attempt="g2.s1.aaaaaaaa")
        assert watch_once(f).finished
        assert standing_of(f).good
        kinds = [(d.kind, d.why) for d in f.ledger.decisions()]
        assert kinds[0] == ("rule", "more-memory for 1 job such as go.0000: signal KILL: 3 GiB instead of 2 GiB")


def test_what_failed_for_the_infrastructure_is_begun_again_as_often_as_it_may(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, SMALL + rules(most=2)) as f:
        for generation in range(3):
            watch_once(f)
            end_job(system.landed[-1], 0, 82, attempt=f"g{generation}.s1.aaaaaaaa")
            if not generation:
                end_job(system.landed[-1], 1)
        assert watch_once(f).finished
        assert len(sent(f)) == 3
        assert states(f) == {"go.0000": State.FAILED, "go.0001": State.DONE}


def test_a_payload_that_fails_is_not_repeated(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        for index in (0, 1):
            end_job(system.landed[0], index, 3)
        assert watch_once(f).finished
        assert len(sent(f)) == 1
        assert not RetryBook(f.ledger).unjudged()


def test_starts_and_releases_of_the_batch_system_count(tmp_path: Path, system: Memory) -> None:
    """Two of three retries were its own: the next generation has none left, and there is no other."""
    with campaign(tmp_path) as f:
        watch_once(f)
        (first,) = system.landed
        tell(first, 0, Seen.STARTED)
        tell(first, 0, Seen.EVICTED, 82, reason="the worker ended with exit code 82")
        tell(first, 0, Seen.STARTED)
        tell(first, 0, Seen.EVICTED, reason="the machine went away")  # no end of the worker: no retry
        tell(first, 0, Seen.STARTED)
        tell(first, 0, Seen.HELD, reason="disk full")
        tell(first, 0, Seen.RELEASED, reason=TRIED_AGAIN)
        end_job(first, 0, 82)
        end_job(first, 1)
        watch_once(f)
        assert f.ledger.batches()[-1].options["retries"] == 0
        assert RetryBook(f.ledger).tries(["go.0000", "go.0001"]) == {"go.0000": 3}
        end_job(system.landed[1], 0, 82, attempt="g1.s1.aaaaaaaa")
        assert watch_once(f).finished
        assert len(sent(f)) == 2
        decide(f, plan_retry(f, (), (), ()))
        assert RetryBook(f.ledger).tries(["go.0000"]) == {}, "a person wants it: counted anew"


def test_failures_of_a_block_are_done_again_together(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        end_job(system.landed[0], 0, 82)
        tell(system.landed[0], 1, Seen.STARTED)
        assert not watch_once(f).finished
        assert len(sent(f)) == 1, "another job of the block still runs"
        end_job(system.landed[0], 1, 82)
        watch_once(f)
        assert [(batch.name, batch.jobs) for batch in f.ledger.batches()][1:] == [("small.b0000.go.g1", 2)]


def test_a_job_that_runs_for_long_keeps_nobody_waiting(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        watch_once(f)
        end_job(system.landed[0], 0, 82)
        tell(system.landed[0], 1, Seen.STARTED)
        watch_once(f)
        watch_once(later(f, 602))
        assert [batch.jobs for batch in f.ledger.batches()] == [2, 1]


def test_a_rule_that_waits_does_and_nothing_of_the_run_goes_on_without_the_job(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, GOOD_ONES + rules("{when: {exit: 7}, do: wait, after: 10 min}"), TABLE) as f:
        watch_once(f)
        end_job(system.landed[0], 0, 7)
        for index in (1, 2):
            end_job(system.landed[0], index)
        assert not watch_once(f).finished
        assert not watch_once(later(f, 500)).finished
        assert sent(f)[1:] == ["two.b0000.merge.g0"]
        assert f.ledger.batches()[1].runs == ("r2",), "the other run does not wait"
        watch_once(later(f, 602))
        assert sent(f)[2:] == ["two.b0000.clump.g1"]


@pytest.mark.parametrize(
    ("steps", "jobs", "runs", "gone"),
    [
        (("clump",), (), (), True),
        ((), ("clump.r1.c000",), (), True),
        (("clump",), (), ("r1",), True),
        (("clump",), (), ("r2",), False),
        (("merge",), (), (), False),
    ],
)
def test_what_a_person_removes_no_rule_begins_again(
    tmp_path: Path, system: Memory, steps: tuple[str, ...], jobs: tuple[str, ...], runs: tuple[str, ...], gone: bool
) -> None:
    with campaign(tmp_path, GOOD_ONES + rules("{when: {exit: 7}, do: wait, after: 10 min}"), TABLE) as f:
        watch_once(f)
        for index in range(3):
            end_job(system.landed[0], index, 7 * (index == 0))
        watch_once(f)
        control(f, "remove", steps, jobs, runs)
        watch_once(later(f, 602))
        assert ("two.b0000.clump.g1" in sent(f)) is not gone
        assert standing_of(f).counts[State.FAILED] == int(gone)


def test_another_site_takes_a_run_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("local", "htcondor"):
        monkeypatch.setitem(backends.BACKENDS, name, "tests.stand_in")
    memory = stand_in.forget()
    sites = tmp_path / "sites"
    sites.mkdir()
    text = "title: t\ncontact: c\nmanual: https://example.org/\nbackend: local\ncontainer: {launch: worker, rehearsal: true}\n"
    for name in ("here", "there"):
        (sites / f"{name}.yaml").write_text(f"site: {name}\n{text}output: {{kind: transfer}}\n")
    wanted = SMALL + "sites: {here: 2, there: 1}\n" + rules("{when: {worker: 82}, do: other-site}")
    assembled = assemble(tmp_path, wanted, site=None, own=[sites])
    run = RunFolder(tmp_path / "run")
    prepare(run)
    with closing(begin(assembled, run, None, [str(sites), str(SITES)], make_hand())) as ledger:
        f = Following(ledger, run, assembled, None, make_hand())
        watch_once(f)
        end_job(memory.landed[0], 0, 82)
        end_job(memory.landed[0], 1)
        watch_once(f)
        assert [(batch.site, batch.jobs) for batch in f.ledger.batches()] == [("here", 2), ("there", 1)]
        end_job(memory.landed[1], 0, 82, attempt="g1.s1.aaaaaaaa")
        watch_once(f)
        (asked,) = RetryBook(f.ledger).asked()
        assert (asked.name, asked.why) == ("go.0000", "worker 82: there is no other site for it")


# --- held, and for a person to decide


def test_what_no_release_cures_waits_for_a_person_outside_the_queue(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, GOOD_ONES, TABLE) as f:
        watch_once(f)
        leave_held(system.landed[0], 0, "47/0")
        for index in (1, 2):
            end_job(system.landed[0], index)
        assert not watch_once(f).finished
        assert states(f)["clump.r1.c000"] is State.HELD
        assert sent(f)[1:] == ["two.b0000.merge.g0"]
        assert f.ledger.batches()[1].runs == ("r2",), "held is not failed: what comes after it waits, and nobody else"
        end_job(system.landed[1], 0)
        watch_once(f)
        standing = standing_of(f)
        assert standing.stuck and not standing.good, "nothing else is left: `submit --wait` ends"
        assert (
            "for a person to decide: 1 held job, such as clump.r1.c000: hold 47/0: retry, or remove"
            in standing.headline
        )
        (said,) = [line for line in explain_job(f, find_job(f.ledger, f.folder, "clump.r1.c000")[-1]) if "left" in line]
        assert said.endswith(f"(hold 47/0): {UNCURED}")
        redo = plan_retry(f, (), (), ())
        assert [job.name for job in redo.jobs] == ["clump.r1.c000"] and not redo.takes_away
        decide(f, redo)
        watch_once(f)
        assert sent(f)[2:] == ["two.b0000.clump.g1"]
        end_job(system.landed[2], 0, attempt="g1.s1.aaaaaaaa")
        watch_once(f)
        assert sent(f)[3:] == ["two.b0000.merge.g1"]
        assert f.ledger.batches()[3].runs == ("r1",)
        assert not RetryBook(f.ledger).asked()


@pytest.mark.parametrize(
    ("steps", "runs", "jobs"), [((), (), ("clump.r1.c000",)), (("clump",), ("r1",), ()), (("clump",), (), ())]
)
def test_a_person_gives_it_up_or_releases_it(
    tmp_path: Path, system: Memory, steps: tuple[str, ...], runs: tuple[str, ...], jobs: tuple[str, ...]
) -> None:
    with campaign(tmp_path, GOOD_ONES, TABLE) as f:
        watch_once(f)
        leave_held(system.landed[0], 0, "47/0")
        for index in (1, 2):
            end_job(system.landed[0], index)
        watch_once(f)
        assert control(f, "release", steps, jobs, runs) == 1
        watch_once(f)
        assert sent(f)[1:] == ["two.b0000.merge.g0", "two.b0000.clump.g1"]
        leave_held(system.landed[2], 0, "47/0")
        watch_once(f)
        assert control(f, "remove", steps, jobs, runs) == 1
        watch_once(f)
        assert standing_of(f).counts[State.REMOVED] == 1
        assert sent(f)[3:] == ["two.b0000.merge.g1"], "given up: the merge goes on with the good ones"


def test_a_held_job_that_a_rule_gives_up_has_failed_and_a_person_who_removes_is_obeyed(
    tmp_path: Path, system: Memory
) -> None:
    with campaign(tmp_path, SMALL + rules("{when: {hold: 47}, do: give-up}")) as f:
        watch_once(f)
        leave_held(system.landed[0], 0, "47/0")
        control(f, "remove", (), ("go.0001",))
        assert watch_once(f).finished
        assert states(f) == {"go.0000": State.REMOVED, "go.0001": State.REMOVED}
        assert len(sent(f)) == 1 and not RetryBook(f.ledger).asked()
        assert f.ledger.job(f.ledger.batches()[0].id, 0).reason == UNCURED  # type: ignore[union-attr]


def test_where_the_batch_system_has_no_rules_watch_releases(tmp_path: Path, system: Memory) -> None:
    """`local` holds a job that it cannot begin or bring back: released as often as it may, then left to a person."""
    with campaign(tmp_path, SMALL + rules(most=2)) as f:
        watch_once(f)
        (batch,) = system.landed
        end_job(batch, 1)
        for turn in range(1, 4):
            tell(batch, 0, Seen.STARTED)
            tell(batch, 0, Seen.HELD, reason="no space")
            system.news[-1] = replace(system.news[-1], code="12/28")
            watch_once(f)
            assert len([one for one in system.said if one[0] == "release"]) == turn - 1, "it waits a minute"
            watch_once(later(f, 62))
            watch_once(f)
            assert len([one for one in system.said if one[0] == "release"]) == min(turn, 2)
        assert states(f)["go.0000"] is State.HELD
        assert RetryBook(f.ledger).tries(["go.0000"]) == {"go.0000": 2}
        control(f, "release", (), ("go.0000",))
        end_job(batch, 0)
        assert watch_once(f).finished


# --- stuck jobs


STUCK = "retries: {stuck: {times: 5, after: 10 s, cpu: 0.01}%s}\n"


def test_jobs_that_do_nothing_are_told_of(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, SMALL.replace("count: 2", "count: 24") + STUCK % "") as f:
        watch_once(f)
        (batch,) = system.landed
        for index in range(21):
            end_job(batch, index, phases={"total": 20.0})
        for index in (21, 22):
            tell(batch, index, Seen.STARTED)
        system.cpu = {21: 0.2, 22: 50.0}
        watch_once(f)
        assert standing_of(f).idle == (), "too early"
        f = later(f, 200)
        watch_once(f)
        (stuck,) = standing_of(f).idle
        assert (stuck.name, stuck.host) == ("go.0021", "n1")
        assert stuck.why == "it runs for 3 min 19 s with 0 s of CPU; half of the others took 20 s"
        assert "stuck: 1 job, such as go.0021 on n1: it runs" in standing_of(f).headline
        assert f"it is stuck: {stuck.why}" in list(explain_job(f, find_job(f.ledger, f.folder, "go.0021")[-1]))
        stamp = NOW.isoformat()
        view = View(NOW, Watching(stamp, stamp), (), {}, 2, 1, (), (), 3600, stuck=(stuck,))
        assert [concern.kind for concern in find_concerns(view, Alerts())] == ["stuck"]
        end_job(batch, 21, phases={"total": 220.0})
        watch_once(f)
        assert standing_of(f).idle == ()
        assert len(sent(f)) == 1, "told of, nothing else"


def test_a_rule_begins_a_stuck_job_anew(tmp_path: Path, system: Memory) -> None:
    more = ", max: 1, rules: [{when: {stuck: true}, do: other-node}]"
    with campaign(tmp_path, SMALL.replace("count: 2", "count: 21") + STUCK % more) as f:
        watch_once(f)
        for index in range(20):
            end_job(system.landed[0], index, phases={"total": 1.0})
        tell(system.landed[0], 20, Seen.STARTED)
        watch_once(f)
        f = later(f, 200)
        for _ in range(2):
            watch_once(f)
        assert ("remove", "small.b0000.go.g0", [20]) in system.said
        assert sent(f)[1:] == ["small.b0000.go.g1"]
        tell(system.landed[1], 0, Seen.STARTED)
        watch_once(f)
        f = later(f, 500)
        watch_once(f)
        assert len(sent(f)) == 2 and standing_of(f).idle, "once, no more: a person is told"


# --- nodes that fail


def test_a_node_that_keeps_failing_is_banned_once_others_are_known_to_be_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "htcondor", "tests.stand_in")
    memory = stand_in.forget()
    (tmp_path / "sites").mkdir()
    site = "site: farm\ntitle: t\ncontact: c\nmanual: https://example.org/\nbackend: htcondor\n"
    (tmp_path / "sites/farm.yaml").write_text(f"{site}container: {{launch: worker}}\noutput: {{kind: transfer}}\n")
    text = SMALL.replace("count: 2", "count: 30") + "retries: {max: 20, ban: {failures: 3, within: 1 h, share: 0.1}}\n"
    assembled = assemble(tmp_path, text, site="farm", own=[tmp_path / "sites"])
    run = RunFolder(tmp_path / "run")
    prepare(run)
    with closing(begin(assembled, run, "farm", [str(tmp_path / "sites"), str(SITES)], make_hand())) as ledger:
        f = Following(ledger, run, assembled, "farm", make_hand())
        watch_once(f)
        (batch,) = memory.landed

        def fail(index: int, node: str, times: int) -> None:
            for _ in range(times):
                tell(batch, index, Seen.STARTED, host=f"slot1_1@{node}")
                tell(batch, index, Seen.EVICTED, 82, host="")
            watch_once(f)

        fail(0, "bad1", 3)
        assert f.ledger.banned("farm") == (), "no node is known to be good: it may be the image, or the site"
        tell(batch, 1, Seen.STARTED, host="slot1@good")
        tell(batch, 1, Seen.ENDED, 0, host="")
        fail(2, "bad2", 2)
        assert f.ledger.banned("farm") == ("bad1",)
        ((_, _, why, _),) = standing_of(f).bans
        assert why == "3 failures of its own within 1 h, 0 good jobs"
        assert "banned since 2027-03-04T05:06:07+00:00: bad1 of farm: 3 failures" in standing_of(f).headline
        fail(3, "bad2", 3)
        assert f.ledger.banned("farm") == ("bad1",), "a tenth of the good nodes, but one always"
        f.ledger.allow("farm", "bad1", NOW, "me")
        watch_once(f)
        assert f.ledger.banned("farm") == ("bad2",), "bad1 has to fail anew"
        for index in range(4, 30):
            tell(batch, index, Seen.REMOVED, reason="by hand")
        tell(batch, 0, Seen.STARTED, host="slot1_1@bad2")
        end_job(batch, 0, 137)
        for index in (2, 3):
            end_job(batch, index)
        watch_once(f)
        assert f.ledger.batches()[-1].generation == 1
        assert f.ledger.batches()[-1].options["banned"] == ["bad2"]


# --- whatever happens


@pytest.mark.parametrize("seed", range(12))
def test_every_job_comes_to_an_end(tmp_path: Path, system: Memory, seed: int) -> None:
    """Ends, holds and restarts of the batch system in any order, a clock that goes on: each job is accepted, has failed
    or waits for a person, and none was begun again oftener than it may."""
    dice = random.Random(seed)
    most = dice.randrange(4)
    table = rules("{when: {exit: 7}, do: wait, after: 1 min}", "{when: {hold: 47}, do: give-up}", most=most)
    with campaign(tmp_path, GOOD_ONES + table, TABLE) as f:
        clock = 0.0
        for _ in range(60):
            clock += dice.choice((1, 30, 700))
            if watch_once(later(f, clock)).finished or standing_of(f).stuck:
                break
            for batch in system.landed:
                record = next(one for one in f.ledger.batches() if one.id == batch.batch_id)
                used = dict.fromkeys(range(batch.jobs), 0)
                for index in range(batch.jobs):
                    job = f.ledger.job(batch.batch_id, index)
                    if (job and (job.state.final or job.state is State.HELD)) or dice.random() < 0.3:
                        continue
                    while dice.random() < 0.5 and used[index] < int(str(record.options["retries"])):
                        tell(batch, index, Seen.STARTED)
                        tell(batch, index, Seen.EVICTED, 82)
                        used[index] += 1
                    code = dice.choice((0, 0, 3, 7, 82, 137))
                    if dice.random() < 0.2:
                        leave_held(batch, index, dice.choice(("47/0", "13/2", "34/104", "34/102")))
                    else:
                        end_job(batch, index, code, attempt=f"g{record.generation}.s{used[index] + 1}.aaaaaaaa")
        else:
            raise AssertionError("it never ends")
        every = {job.name for state in State for job in f.ledger.jobs_in(state)}
        tries = RetryBook(f.ledger).tries(sorted(every))
        assert max(tries.values(), default=0) <= most
        asked = {one.name for one in RetryBook(f.ledger).asked()}
        for name, state in states(f).items():
            assert state.final or name in asked, (name, state)
        for name in every:
            assert len(f.ledger.jobs_named(name)) <= most + 1


def test_a_hold_that_the_queue_does_not_show_yet_is_told_by_the_event_log(tmp_path: Path, system: Memory) -> None:
    """HTCondor's gridmanager writes the event some seconds before the schedd has the hold."""
    with campaign(tmp_path) as f:
        watch_once(f)
        tell(system.landed[0], 0, Seen.STARTED)
        tell(system.landed[0], 0, Seen.HELD, reason="Job disappeared from remote schedd")
        watch_once(f)
        (found,) = find_job(f.ledger, f.folder, "go.0000")
        told = list(explain_job(f, found))
        assert "its event log says that it is held, the queue not yet: Job disappeared from remote schedd" in told


def test_a_job_that_a_person_must_decide_about_keeps_no_retry_waiting(tmp_path: Path, system: Memory) -> None:
    """And `watch` does not end before the retry is made."""
    text = SMALL + rules("{when: {exit: 7}, do: wait, after: 40 s}", "{when: {hold: 46}, do: ask}")
    with campaign(tmp_path, text) as f:
        watch_once(f)
        leave_held(system.landed[0], 0, "46/0")
        end_job(system.landed[0], 1, 7)
        watch_once(f)
        assert RetryBook(f.ledger).asked() and not standing_of(f).stuck
        watch_once(later(f, 60))
        assert sent(f) == ["small.b0000.go.g0", "small.b0000.go.g1"]
        end_job(system.landed[1], 0, attempt="g1.s1.aaaaaaaa")
        watch_once(later(f, 61))
        assert standing_of(f).stuck
