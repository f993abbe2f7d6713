"""Whatever happens in whatever order: each job is accepted once in the end, nothing is forgotten, nothing done twice.

A small world in the place of ledger and batch system: jobs end well or badly, people retry and roll back at any time.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermigrid.advance import Known, Progress, RunState, Work, block_name, blocks_of, parts_of, work_needed
from fermigrid.campaign import Campaign, Step
from fermigrid.runs import Run
from fermigrid.split import chosen_pieces, pieces_of

CLUMP = {"command": ["x"], "foreach": "clump", "split": {"events": 10}}
GRAPHS: dict[str, dict[str, object]] = {
    "chain": {"clump": CLUMP, "merge": {"command": ["x"], "after": ["clump"]}, "ship": {"command": ["x"], "after": ["merge"]}},
    "the good ones": {
        "clump": CLUMP,
        "merge": {"command": ["x"], "after": {"clump": "done"}},
        "ship": {"command": ["x"], "after": ["merge"]},
    },
    "diamond": {
        "digi": {"command": ["x"]},
        "recon": {**CLUMP, "after": ["digi"]},
        "monitor": {"command": ["x"], "after": ["digi"]},
        "merge": {"command": ["x"], "after": {"recon": "accepted", "monitor": "done"}},
        "check": {"command": ["x"], "after": {"merge": "done"}},
    },
}  # fmt: skip
Job = tuple[str, str, str]  # step, run, piece


@dataclass
class Life:
    """One job of one batch. `works`: what it was made from; `state`: going, held, good, bad."""

    job: Job
    batch: tuple[str, str, int]
    parameters: Mapping[str, str]
    sources: frozenset[int]
    state: str = "going"
    retired: bool = False
    successor: bool = False


@dataclass
class World:
    """What the ledger knows, job by job: the slow and simple way of saying it."""

    campaign: Campaign
    runs: tuple[Run, ...]
    lives: list[Life] = field(default_factory=list)
    covered: dict[tuple[str, str], list[Work]] = field(default_factory=lambda: defaultdict(list))
    overrides: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    def jobs(self, step: str, run: Run) -> list[Job]:
        return [(step, run.name, piece.name) for piece in pieces_of(self.campaign.steps[step], run)]

    def living(self, job: Job) -> list[Life]:
        return [life for life in self.lives if life.job == job and not life.retired]

    def known(self) -> Known:
        """What `advance` is told, by the words of its contract."""
        found = {}
        for index, part in enumerate(parts_of(self.campaign, self.runs)):
            for step in self.campaign.steps:
                works = self.covered[block_name(index), step]
                if works:
                    states, pieces = {}, {}
                    for run in part:
                        states[run.name], some = self._state(step, run, works)
                        if some:
                            pieces[run.name] = some
                    rest = Counter(states.values()).most_common(1)[0][0]
                    exceptions = {run: state for run, state in states.items() if state is not rest}
                    found[block_name(index), step] = Progress(len(works), rest, exceptions, pieces)
        return found

    def _state(self, step: str, run: Run, works: list[Work]) -> tuple[RunState, frozenset[str]]:
        if run.name not in {each.name for work in works for each in work.runs}:
            return RunState.NEEDED, frozenset()
        jobs = self.jobs(step, run)
        again = {job[2] for job in jobs if not self.living(job)}
        if again:
            return RunState.NEEDED, frozenset(again) if len(again) < len(jobs) else frozenset()
        states = {life.state for job in jobs for life in self.living(job)}
        if "held" in states:
            return RunState.RESTING, frozenset()
        if "going" in states:
            again = any(life.batch[2] for job in jobs for life in self.living(job) if life.state == "going")
            return RunState.AGAIN if again else RunState.PENDING, frozenset()
        return (RunState.FAILED if "bad" in states else RunState.DONE), frozenset()

    def works(self) -> list[Work]:
        sites = ["here"] * blocks_of(self.campaign, self.runs)
        return list(work_needed(self.campaign, self.runs, sites, self.known(), 0, self.overrides))

    def send(self, work: Work) -> None:
        """A batch is submitted. What is already there is not done once more; its sources are all settled."""
        works = self.covered[work.block, work.step]
        assert work.generation == len(works), "generations count the batches of a step of a block"
        works.append(work)
        step = self.campaign.steps[work.step]
        for run in work.runs:
            pieces = list(chosen_pieces(step, run, work.pieces))
            sources = self._sources(step, run) if pieces else []  # a run without events waits for nothing
            assert dict(work.parameters) == self.overrides.get((work.step, run.name), {})
            for piece in pieces:
                job = (work.step, run.name, piece.name)
                assert not self.living(job), f"{job} is done twice"
                batch = (work.block, work.step, work.generation)
                self.lives.append(Life(job, batch, work.parameters, frozenset(map(id, sources))))

    def _sources(self, step: Step, run: Run) -> list[Life]:
        found = []
        for other, until in step.after.items():
            for job in self.jobs(other, run):
                (life,) = self.living(job)
                assert life.state == "good" or (until == "done" and life.state == "bad"), (job, life)
                found.append(life)
        return found

    def end(self, life: Life, good: bool) -> None:
        life.state = "good" if good else "bad"

    def after(self, steps: set[str]) -> set[str]:
        found = set(steps)
        for name, step in self.campaign.steps.items():
            if found & set(step.after):
                found.add(name)
        return found - steps

    def retry(self, chosen: list[Life]) -> None:
        """Failed jobs again, and what was made without them."""
        for life in chosen:
            life.retired = True
            self.retire(self.after({life.job[0]}), life.job[1])

    def rollback(self, run: str, first: str, parameters: dict[str, str]) -> None:
        steps = {first, *self.after({first})}
        for step in steps:
            self.overrides[step, run] = {**self.overrides.get((step, run), {}), **parameters}
        self.retire(steps, run)

    def retire(self, steps: set[str], run: str) -> None:
        for life in self.lives:
            if life.job[0] in steps and life.job[1] == run:
                life.retired = True


def worlds(graph: str, events: list[int], block: int) -> World:
    data = {"campaign": "c", "image": "light", "runs": {"count": 5}, "block": block, "steps": GRAPHS[graph]}
    return World(Campaign.model_validate(data), tuple(Run(f"r{i}", count) for i, count in enumerate(events)))


@given(
    st.sampled_from(list(GRAPHS)), st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 4), st.data()
)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_each_job_is_accepted_once(
    graph: str, events: list[int], block: int, data: st.DataObject
) -> None:
    world = worlds(graph, events, block)
    for _ in range(data.draw(st.integers(5, 40), label="events")):
        works, going = world.works(), [life for life in world.lives if life.state == "going" and not life.retired]
        lost = [life for life in world.lives if life.state == "bad" and not life.retired]
        held = [life for life in world.lives if life.state == "held" and not life.retired]
        what = data.draw(st.sampled_from(["send", "end", "end", "hold", "release", "retry", "rollback"]), label="event")
        if what == "send":
            for work in works[: data.draw(st.integers(0, len(works)))]:
                world.send(work)
        elif what == "end" and going:
            world.end(data.draw(st.sampled_from(going)), data.draw(st.booleans()))
        elif what == "hold" and going:
            data.draw(st.sampled_from(going)).state = "held"
        elif what == "release" and held:
            data.draw(st.sampled_from(held)).state = "going"
        elif what == "retry" and lost:
            world.retry(data.draw(st.lists(st.sampled_from(lost), min_size=1, max_size=3, unique_by=id)))
        elif what == "rollback":
            again = data.draw(st.sampled_from(world.runs)).name
            first = data.draw(st.sampled_from(list(world.campaign.steps)))
            world.rollback(again, first, {"p": str(len(world.lives))} if data.draw(st.booleans()) else {})
    _to_the_end(world)
    for step in world.campaign.steps:
        for run in world.runs:
            for job in world.jobs(step, run):
                lives = world.living(job)
                assert len(lives) == 1, f"{job} was done {len(lives)} times"
                assert lives[0].state == "good"
                assert dict(lives[0].parameters) == world.overrides.get((step, run.name), {})
                for life in world.lives:
                    if id(life) in lives[0].sources:
                        assert not life.retired, f"{job} was made from {life.job}, which does not count any more"


def _to_the_end(world: World) -> None:
    """From now on people are patient: what failed is retried once, and all ends well. That is over soon."""
    steps, runs = len(world.campaign.steps), len(world.runs)
    for _ in range(4 * steps * (runs + 2)):
        world.retry([life for life in world.lives if life.state == "bad" and not life.retired])
        going = [life for life in world.lives if life.state in ("going", "held") and not life.retired]
        for life in going:
            world.end(life, True)
        works = world.works()
        for work in works:
            world.send(work)
        if not works and not going:
            return
    raise AssertionError("it never ends")


def test_a_failure_without_a_retry_ends_too() -> None:
    world = worlds("chain", [15, 5], 2)
    for _ in range(6):
        works = world.works()
        for work in works:
            world.send(work)
        going = [life for life in world.lives if life.state == "going"]
        for life in going:
            world.end(life, life.job != ("clump", "r0", "c001"))
        if not works and not going:
            break
    else:
        pytest.fail("it never ends")
    assert Counter(life.job[:2] for life in world.lives) == {
        ("clump", "r0"): 2, ("clump", "r1"): 1, ("merge", "r1"): 1, ("ship", "r1"): 1,
    }  # fmt: skip


def test_three_million_jobs_are_quick() -> None:
    """28,500 runs x 107 clumps with merges, half-way, with failures, a rollback and retries: well under a second."""
    steps = {"clump": CLUMP, "merge": {"command": ["x"], "after": ["clump"]}}
    data = {"campaign": "c", "image": "light", "runs": {"count": 5}, "block": 500, "steps": steps}
    campaign = Campaign.model_validate(data)
    runs = tuple(Run(f"r{i:09d}", 1070) for i in range(28_500))
    known: dict[tuple[str, str], Progress] = {}
    for index, part in enumerate(parts_of(campaign, runs)):
        names = [run.name for run in part]
        failed = dict.fromkeys(names[:20], RunState.FAILED)
        again = {names[30]: frozenset({"c003"}), names[31]: frozenset({"c000", "c106"})}
        clump = Progress(3, RunState.DONE, {**failed, **dict.fromkeys(again, RunState.NEEDED)}, again)
        known[block_name(index), "clump"] = clump if index < 40 else Progress(1, RunState.PENDING)
    began = time.perf_counter()
    works = list(work_needed(campaign, runs, ["here"] * blocks_of(campaign, runs), known))
    assert time.perf_counter() - began < 1.0
    assert [work.step for work in works] == ["clump", "merge"] * 40
    assert all(work.generation == 3 and len(work.runs) == 2 for work in works if work.step == "clump")
    assert all(len(work.runs) == 500 - 22 for work in works[1:-2:2]), "a run that is done again costs no other time"
