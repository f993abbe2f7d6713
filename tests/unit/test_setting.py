"""`fermigrid set`, `ban` and drains: what becomes of them in the ledger, at the batch system, and for what is sent later."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermigrid import backends
from fermigrid.advance import block_name
from fermigrid.assemble import assemble_file
from fermigrid.errors import NotFound, SubmissionRefused
from fermigrid.explain import explain_job
from fermigrid.find_job import find_job
from fermigrid.live import ban_nodes, in_force, limits_words, set_values, unban_nodes
from fermigrid.plan import Assembled
from fermigrid.runfolder import RunFolder
from fermigrid.setting import as_set, read_changes
from fermigrid.settings_book import SettingsBook
from fermigrid.submit import begin, prepare, sites_of_blocks
from fermigrid.unsent import explain_unsent
from fermigrid.watch import Following, watch_once
from tests.campaigns import NOW, SITES, SMALL, assemble, complaints, make_hand, write
from tests.stand_in import Killed, Memory, end_job
from tests.unit.test_submit import campaign, system

__all__ = ["system"]
MANY = SMALL.replace("count: 2", "count: 12") + "block: 2\n"
FARM = """\
site: {name}
title: made up
contact: nobody
manual: https://example.org/
backend: htcondor
htcondor: {{late_above: 1}}
container: {{launch: worker}}
output: {{kind: transfer}}
{more}"""


@contextmanager
def at_sites(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, **more: str) -> Iterator[Following]:
    """A campaign at two sites of the stand-in."""
    monkeypatch.setitem(backends.BACKENDS, "htcondor", "tests.stand_in")
    own = folder / "sites"
    own.mkdir(exist_ok=True)
    for name in ("east", "west"):
        (own / f"{name}.yaml").write_text(FARM.format(name=name, more=more.get(name, "")))
    a = assemble_file(write(folder, text), None, {}, (own, SITES))
    prepare(run := RunFolder(folder / "run"))
    hand = make_hand()
    with closing(begin(a, run, None, [str(own), str(SITES)], hand)) as ledger:
        yield Following(ledger, run, a, None, hand)


def later(f: Following, seconds: float) -> Following:
    return replace(f, hand=replace(f.hand, now=lambda: NOW + timedelta(seconds=seconds)))


def value(f: Following, key: str) -> object:
    return next(one.value for one in in_force(f) if one.key == key)


# --- words


def test_what_cannot_be_set_is_refused_with_what_can(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path) as f:
        with pytest.raises(NotFound, match=r"no 'limits.runing' to be set; did you mean 'limits.running'"):
            set_values(f, ["limits.runing=5"])
        with pytest.raises(NotFound, match=r"limits.steps.og.starts"):
            set_values(f, ["limits.steps.og.starts=5"])
        for wrong in (
            "limits.running=0",
            "limits.starts=many",
            "priority=2000",
            "limits.running=1.5",
            "limits.running=",
        ):
            with pytest.raises(SubmissionRefused):
                set_values(f, ["limits.starts=7", wrong])
        with pytest.raises(SubmissionRefused, match="nothing to be shared out"):
            set_values(f, ["sites.local=5"])
        assert not SettingsBook(f.ledger).settings(), "all or nothing"


def test_what_was_set_is_in_force_and_in_the_history(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, SMALL + "limits: {running: 5}\n") as f:
        said = set_values(f, ["limits.running=3", "limits.steps.go.starts=7", "priority=5"])
        assert "limits.running = 3 (was 5)" in said
        assert (value(f, "limits.running"), value(f, "limits.steps.go.starts"), value(f, "priority")) == (3, 7, 5)
        assert "set by me@here" in next(one.source for one in in_force(f) if one.key == "priority")
        assert f.ledger.journal()[-1][1:] == (
            "me@here",
            "set limits.running = 3 (was 5); limits.steps.go.starts = 7 (was none); priority = 5 (was 0)",
        )
        assert set_values(f, ["priority=5"]) == ["it is so already"]
        set_values(f, ["limits.running=none"])
        assert value(f, "limits.running") is None
        set_values(f, ["limits.running=default"])
        assert value(f, "limits.running") == 5
        assert next(one.source for one in in_force(f) if one.key == "limits.running").endswith("campaign.yaml:8")


def test_limits_of_what_there_is_not_are_refused_with_their_line(tmp_path: Path) -> None:
    text = SMALL + "limits: {running: 5, steps: {og: {starts: 2}}, sites: {locl: {running: 1}}}\n"
    said = complaints(tmp_path, text)
    assert said[0].startswith("campaign.yaml:8: limits.sites.locl: no site 'locl'; did you mean 'local'?"), said
    assert said[1].startswith("campaign.yaml:8: limits.steps.og: no step 'og'. There are: go"), said


# --- at the batch system


def test_batches_are_told_what_they_may_do(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, MANY + "limits: {running: 3}\n") as f:
        watch_once(f)
        assert [batch.options["places"] for batch in system.landed] == [1, 1], "two blocks have jobs enough for three"
        told = {name: allowed.places for name, allowed in system.allowed.items()}
        assert told == {"small.b0000.go.g0": 2}, "and the other has its one"
        set_values(f, ["limits.running=1"])
        assert ("pause", "small.b0001.go.g0", None) in system.said
        set_values(f, ["limits.running=4"])
        end_job(system.landed[0], 0)
        end_job(system.landed[0], 1)
        watch_once(later(f, 30))
        assert ("resume", "small.b0001.go.g0", None) in system.said


def test_everything_is_done_once_within_the_limits(tmp_path: Path, system: Memory) -> None:
    """Whatever is set when: no job is lost or sent twice."""
    rng = random.Random(5)
    with campaign(tmp_path, MANY + "limits: {running: 3}\n") as f:
        ended: set[tuple[str, int]] = set()
        for turn in range(200):
            if watch_once(later(f, 11 * turn)).finished:
                break
            waiting = [(b, i) for b in system.landed for i in range(b.jobs) if (b.batch_id, i) not in ended]
            for batch, index in rng.sample(waiting, min(len(waiting), rng.randint(0, 2))):
                end_job(batch, index)
                ended.add((batch.batch_id, index))
            if rng.random() < 0.3:
                chosen = rng.choice(
                    ["limits.running=1", "limits.running=none", "limits.starts=2", "limits.starts=none"]
                )
                set_values(later(f, 11 * turn), [chosen])
        names = Counter(job.name for batch in f.ledger.batches() for job in f.ledger.jobs_of(batch.id))
        assert len(names) == 12 and set(names.values()) == {1}


@pytest.mark.parametrize("answer", ["no", "silent"])
def test_what_the_batch_system_does_not_take_is_tried_again(tmp_path: Path, system: Memory, answer: str) -> None:
    with campaign(tmp_path, SMALL) as f:
        watch_once(f)
        system.answer = answer
        said = set_values(f, ["limits.running=1"])
        assert any("are not in force yet" in words for words in said)
        assert "`fermigrid watch` tries it again" in said[-1]
        assert value(f, "limits.running") == 1
        system.answer = "yes"
        watch_once(f)
        assert system.allowed["small.b0000.go.g0"].places == 1


def test_killed_between_ledger_and_batch_system_the_next_look_makes_it_so(tmp_path: Path, system: Memory) -> None:
    with campaign(tmp_path, SMALL) as f:
        watch_once(f)
        system.answer = "killed"
        with pytest.raises(Killed):
            set_values(f, ["priority=7"])
    system.allowed.clear()
    system.answer = "yes"
    with campaign(tmp_path, SMALL) as f:
        watch_once(f)
        assert system.allowed["small.b0000.go.g0"].priority == 7
        system.allowed.clear()
        watch_once(f)
        assert not system.allowed, "told once"


# --- drains, weights, nodes


def test_a_drained_site_gets_no_more(tmp_path: Path, system: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    text = MANY + "sites: {east: 1, west: 1}\nlimits: {running: 2}\n"
    with at_sites(tmp_path, text, monkeypatch) as f:
        watch_once(f)
        assert [batch.site for batch in f.ledger.batches()] == ["east", "west"]
        assert "east is drained: no new work goes there" in set_values(f, ["sites.east=drain"])
        assert ("pause", "small.b0000.go.g0", None) in system.said
        job = find_job(f.ledger, f.folder, "go.0000")[-1]
        drained = "east is drained: nothing more starts there until `fermigrid set sites.east=undrain`"
        assert list(explain_job(f, job)) == [drained], "what machines and limits say of it does not matter now"
        f.ledger.halt("breaker", "3 of 4 failed", NOW, "me")
        stopped, *rest = explain_job(f, job)
        assert stopped.startswith("nothing more starts until `fermigrid resume`, since ") and rest == [drained]
        f.ledger.lift("breaker", NOW, "me", "fine")
        for batch in list(system.landed)[1:]:
            end_job(batch, 0)
            end_job(batch, 1)
        watch_once(later(f, 20))
        assert [batch.site for batch in f.ledger.batches()] == ["east", "west", "west"]
        assert any(line.startswith("drained: east") for line in limits_words(f))
        set_values(later(f, 30), ["sites.east=undrain"])
        for index in (0, 1):
            end_job(system.landed[2], index)
        watch_once(later(f, 40))
        assert not f.ledger.paused() & {f.ledger.batches()[0].id}


def test_why_a_block_waits(tmp_path: Path, system: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_sites(tmp_path, MANY + "sites: {east: 1, west: 1}\nlimits: {running: 2}\n", monkeypatch) as f:
        watch_once(f)
        (why,) = explain_unsent(f, "go.0011")
        assert why == "not sent yet: limits.running is 2, and blocks before it have jobs enough for that"
        set_values(f, ["sites.east=drain", "sites.west=drain"])
        (why,) = explain_unsent(f, "go.0011")
        assert why.endswith("is drained: no new work goes there")
        assert not watch_once(f).finished


def test_a_banned_node_is_told_to_batches_and_sent_with_later_ones(
    tmp_path: Path, system: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_sites(tmp_path, MANY + "sites: {east: 1, west: 1}\nlimits: {running: 2}\n", monkeypatch) as f:
        watch_once(f)
        with pytest.raises(SubmissionRefused, match="east or of west"):
            ban_nodes(f, ["n1"], None, "")
        assert ban_nodes(f, ["n1"], "east", "its disk") == ["no more jobs to n1 of east"]
        assert system.allowed["small.b0000.go.g0"].banned == ("n1",)
        assert f.ledger.bans()[0][:3] == ("east", "n1", "its disk")
        for turn in range(1, 4):
            for index in (0, 1):
                end_job(system.landed[turn - 1], index)
            watch_once(later(f, 20 * turn))
        sent = [(batch.site, batch.options["banned"]) for batch in f.ledger.batches()]
        assert sent == [("east", []), ("west", []), ("east", ["n1"]), ("west", []), *sent[4:]]
        assert [told for site, told in sent[4:] if site == "east"] in ([], [["n1"]])
        with pytest.raises(NotFound, match="n2 is not banned"):
            unban_nodes(f, ["n2"], None)
        unban_nodes(f, ["n1"], None)
        assert not f.ledger.bans()
        with pytest.raises(SubmissionRefused, match="no name of a node"):
            ban_nodes(f, ['n1", "n2'], "east", "")


@settings(max_examples=60, deadline=None)
@given(st.integers())
def test_no_block_is_lost_or_moved_whenever_weights_change(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    a, rng = _weighted(tmp_path_factory), random.Random(seed)
    said: dict[str, str] = {}
    begun: dict[str, str] = {}
    before: frozenset[str] = frozenset()
    blocks = [block_name(number) for number in range(len(a.runs))]
    for _ in range(30):
        if rng.random() < 0.5:
            key = rng.choice(["sites.local", "sites.pool"])
            value = rng.choice(["1", "50", "drain", "undrain"])
            for change in read_changes(f"{key}={value}", a):
                said.pop(change.key, None) if change.value is None else said.update({change.key: change.value})
            before = frozenset(begun)
        now = as_set(a, said)
        found = sites_of_blocks(now, None, begun, before)
        assert found == sites_of_blocks(now, None, begun, before), "the same each time"
        assert len(found) == len(blocks) and set(found) <= {"local", "pool"}
        assert all(found[blocks.index(block)] == site for block, site in begun.items()), "what has begun stays"
        free = [block for block in blocks if block not in begun]
        drained = len(now.drained) == 2
        assert drained or all(found[blocks.index(block)] not in now.drained for block in free)
        for block in free[: rng.randint(0, 3)]:
            begun[block] = found[blocks.index(block)]


_KNOWN: list[Assembled] = []


def _weighted(factory: pytest.TempPathFactory) -> Assembled:
    if not _KNOWN:
        text = SMALL.replace("count: 2", "count: 12") + "block: 1\nsites: {local: 3, pool: 1}\n"
        _KNOWN.append(assemble(factory.mktemp("weights"), text, site=None))
    return _KNOWN[0]


def test_without_changes_it_is_as_it_was(tmp_path_factory: pytest.TempPathFactory) -> None:
    a = _weighted(tmp_path_factory)
    order = sites_of_blocks(a, None)
    assert Counter(order) == {"local": 9, "pool": 3}
    for count in range(len(order)):
        assert sites_of_blocks(a, None, {block_name(i): order[i] for i in range(count)}) == order
