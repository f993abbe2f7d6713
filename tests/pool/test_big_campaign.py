"""A campaign over real LAT runs through everything that goes wrong in months: it ends, each event once, each job once.

Holds, kills of fermigrid and of the pool's daemons, a node that fails every job, a program with a bug, a rollback to
another release. The short form is in `make test`, the long one (thousands of jobs, hundreds of kills) in `make drill`.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.pool.big import NAME, Big, big_pool, write_big
from tests.pool.chaos import SCHEDD, SHADOW, STARTER, WATCH, Chaos, Watcher
from tests.pool.conftest import pool_folder
from tests.pool.recount import query, recount_events, recount_files, recount_jobs

pytestmark = pytest.mark.pool


@dataclass(frozen=True)
class Form:
    """How large: `pace`: whom chaos kills, and seconds between two deaths on average; `kills`: how many at least."""

    jobs: int
    block: int
    broken: int  # one crumb of so many fails at first
    cpus: int
    pace: dict[str, float]
    kills: int
    submit_kills: int
    rollbacks: int
    limit_s: float
    retry_every_s: float  # between two looks of the operator's at what failed


SHORT = Form(60, 2, 12, 24, {WATCH: 6, STARTER: 6, SHADOW: 20, SCHEDD: 40}, 5, 1, 1, 300, 1)
LONG = Form(5000, 40, 60, 16, {WATCH: 15, STARTER: 4, SHADOW: 15, SCHEDD: 60}, 300, 12, 4, 3600, 60)


@dataclass
class Story:
    """One campaign on its way, and the operator who looks after it."""

    big: Big
    chaos: Chaos
    form: Form
    chance: random.Random
    began: float = field(default_factory=time.monotonic)
    watcher: Watcher | None = None
    told: list[str] = field(default_factory=list)

    def tell(self, text: str) -> None:
        """Into the log of the test."""
        self.told.append(f"{time.monotonic() - self.began:6.0f} s  {text}")
        print(self.told[-1], flush=True)

    def standing(self) -> dict[str, Any]:
        """What `status --json` says; a schedd that is just dead does not matter to it."""
        found: dict[str, Any] = json.loads(self.big.product.run("status", "run", "--json", timeout=120).stdout)
        return found

    def wait_for(self, what: str, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Until it holds of the standing, within the time of the whole."""
        while True:
            standing = self.standing()
            if holds(standing):
                return standing
            assert time.monotonic() - self.began < self.form.limit_s, f"not in time: {what}"
            time.sleep(0.5)

    def do(self, *arguments: str, done: Callable[[], object]) -> None:
        """A command of the operator's, who is killed while it works, and types it again until it is done."""
        if self.chance.random() < 0.5 and not done():
            process = self.big.product.start(*arguments)
            time.sleep(self.chance.uniform(0.2, 1.2))
            process.kill()
            process.communicate()
            self.chaos.kills[f"fermigrid {arguments[0]}"] += 1
        while not done():
            # another fermigrid may be at work on it just now (15), the schedd may just be dead
            said = self.big.fermigrid(*arguments, code=None)
            self.tell(f"{' '.join(arguments)}: {said.strip()}")
            assert time.monotonic() - self.began < self.form.limit_s, f"not in time: {arguments}\n{said}"

    def watch(self) -> None:
        """Begin to watch, again and again."""
        self.watcher = self.chaos.watcher = Watcher(self.big.product, "run")

    def watching(self) -> bool:
        """Is there still something to wait for?"""
        assert self.watcher is not None
        assert time.monotonic() - self.began < self.form.limit_s, "watch does not end"
        if not self.watcher.alive:
            self.tell(f"watch ended with {self.watcher.code} after {self.watcher.starts} starts")
        return self.watcher.alive


@contextmanager
def told_when_it_fails(story: Story) -> Iterator[None]:
    """What an operator would look at first, as notes of the failure."""
    try:
        yield
    except BaseException as error:
        story.chaos.watcher = None
        error.add_note("\n".join(story.told))
        for command in (("status", "run"), ("status", "run", "--failed"), ("status", "run", "--history")):
            error.add_note(f"$ fermigrid {' '.join(command)}\n{story.big.fermigrid(*command, code=None)[-3000:]}")
        left = query(story.big, "SELECT name FROM job WHERE state NOT IN ('done') AND retired IS NULL LIMIT 3")
        for (name,) in left:
            error.add_note(story.big.fermigrid("why", "run", name, code=None))
        if story.watcher is not None:
            error.add_note("watch said last:\n" + "\n".join(story.watcher.said[-30:]))
        error.add_note(story.big.product.pool.last_words())
        raise
    finally:
        if story.watcher is not None:
            story.watcher.end()


@pytest.mark.parametrize("form", [SHORT, pytest.param(LONG, marks=pytest.mark.drill)], ids=["short", "long"])
def test_a_campaign_goes_through_all_that_goes_wrong(
    form: Form, record_property: Callable[[str, object], None]
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
    print(f"seed {seed}: CHAOS_SEED={seed} kills at the same moments")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    with big_pool(pool_folder().with_name(f"{pool_folder().name}-big-{worker}"), form.cpus) as pool:
        big = write_big(pool, pool.work / "big", form.jobs, form.block, form.broken)
        assert big.jobs >= form.jobs
        story = Story(big, Chaos(pool, seed, form.pace), form, random.Random(seed + 1))
        with told_when_it_fails(story):
            go_through(story)
            recount(story)
        kills = ", ".join(f"{count} {whom}" for whom, count in story.chaos.kills.most_common())
        record_property("figures", f"{story.told[-1].strip()}. {story.chaos.kills.total()} kills: {kills}. Seed {seed}")
        assert story.chaos.kills.total() >= form.kills


def go_through(story: Story) -> None:
    """From the first submission to the last job."""
    submit_killed(story)
    hold_and_mend(story)
    with story.chaos.at_work():
        story.watch()
        roll_back(story)
        look_after(story)
    assert story.big.fermigrid("watch", "run", timeout=story.form.limit_s)  # nobody kills any more


def submit_killed(story: Story) -> None:
    """Submit, killed at random moments, and again: what is in the queue is there once."""
    command = ("submit", "l1proc/campaign.yaml", "--sites", "sites", "--run-dir", "run")
    for _ in range(story.form.submit_kills):
        process = story.big.product.start(*command)
        time.sleep(story.chance.uniform(0.3, 2.5))
        if process.poll() is None:
            process.kill()
            story.chaos.kills["fermigrid submit"] += 1
        process.communicate()
    story.tell(story.big.fermigrid(*command).splitlines()[-1])


def hold_and_mend(story: Story) -> None:
    """What the jobs of a batch are to be sent is missing: they are held, `why` says so; mended, they are released. It is
    the batch that was sent last: of others nothing may be left by now."""
    big = story.big
    ((block,),) = query(big, "SELECT block FROM batch ORDER BY rowid DESC LIMIT 1")
    name, place = big.run_dir / f"blocks/{block}/digi.g0/plan/bundle.tar.gz", big.product.folder / "hidden"
    big.fermigrid("hold", "run", "--step", "digi")
    name.rename(place)
    big.fermigrid("release", "run", "--step", "digi")
    story.wait_for("jobs are held", lambda standing: standing["states"]["held"] >= 5)
    (job,) = query(big, "SELECT name FROM job WHERE state = 'held' LIMIT 1")
    said = big.fermigrid("why", "run", job[0])
    story.tell(said)
    assert "bundle.tar.gz" in said
    place.rename(name)
    while story.standing()["states"]["held"]:  # more of them may have been on their way into it
        big.fermigrid("release", "run", "--step", "digi")
        time.sleep(3)


def roll_back(story: Story) -> None:
    """Some runs, of all blocks, on another release while the campaign is on its way."""
    runs, rollbacks = list(story.big.runs), story.form.rollbacks
    for number in range(rollbacks):
        share, run = 0.25 + 0.5 * number / rollbacks, runs[-1 - len(runs) * number // rollbacks]
        roll_back_at(story, share * story.big.jobs, run, f"release=R{number + 2}")


def roll_back_at(story: Story, done: float, run: str, setting: str) -> None:
    """One of them, when so many jobs are done."""
    story.wait_for("it is on its way", lambda standing: standing["states"]["done"] >= done)
    words = ("rollback", "run", "--run", run, "--set", setting, "--yes")
    story.do(*words, done=lambda: any(why.startswith(f"{run},") for why in decided(story.big, "rollback")))


def decisions(big: Big) -> list[Any]:
    return query(big, "SELECT id, kind, why, finished FROM decision")


def decided(big: Big, kind: str) -> list[str]:
    """What people decided so, in words; the rules for retries decide meanwhile, too."""
    return [why for _, each, why, _ in decisions(big) if each == kind]


def look_after(story: Story) -> None:
    """Until all is done: the crumbs that failed are done again, with all that was made without them."""
    retries = 0
    while True:
        while story.watching():
            retries += mend_program(story)
            time.sleep(story.form.retry_every_s)
        if story.watcher and story.watcher.code == 0:
            break
        retries += mend_program(story)
        story.watch()
    assert retries


def mend_program(story: Story) -> bool:
    """What failed so far is to be done again; was there anything?"""
    if not (failed := story.standing()["states"]["failed"]):
        return False
    story.tell(f"{failed} failed")
    before = len(decided(story.big, "retry"))
    story.do("retry", "run", "--yes", done=lambda: len(decided(story.big, "retry")) > before)
    return True


def recount(story: Story) -> None:
    """The audit, and everything counted again without fermigrid."""
    big = story.big
    began = time.monotonic()
    said = big.fermigrid("audit", "run", timeout=1200)
    story.tell(f"audit, {time.monotonic() - began:.0f} s: {said.strip()}")
    assert f"{NAME}: clean: {len(big.runs)} runs, {big.jobs} jobs, {big.jobs} outputs read" in said
    assert "not looked at" not in said
    recount_jobs(big)
    assert recount_files(big) == big.jobs
    assert recount_events(big) == sum(big.runs.values())
    by_release(story)
    bad_node(story)
    story.tell(f"{big.jobs} jobs, each accepted once, in {(time.monotonic() - story.began) / 60:.1f} minutes")


def bad_node(story: Story) -> None:
    """The machine without a container runtime is named, and was banned (in the short form perhaps not yet), and no other."""
    standing = story.standing()
    times = {one["host"].partition("@")[0]: one["times"] for one in standing["nodes"]}
    banned = [(ban["site"], ban["node"].partition("@")[0]) for ban in standing["banned"]]
    story.tell(f"failures by node {times}, banned {banned}")
    assert set(times) == {"sited"}
    assert banned == [("south", "sited")] or (not banned and story.form is SHORT)


def by_release(story: Story) -> None:
    """The crumbs of the runs that were rolled back were made by the other release, all others by the first."""
    wanted = {}
    for _, kind, why, finished in decisions(story.big):
        assert finished
        if kind == "rollback":
            wanted[why.partition(",")[0]] = why.rpartition("release=")[2]
    accepted = query(
        story.big, "SELECT job, report FROM attempt WHERE accepted = 1 AND retired IS NULL AND job LIKE 'recon.%'"
    )
    for job, report in accepted:
        assert json.loads(report)["summary"]["release"] == wanted.get(job.split(".")[1], "R1"), job
    assert len(wanted) == story.form.rollbacks
