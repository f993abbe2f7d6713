"""What the reports of a campaign add up to: times, memory, images, failures, over time and by step and site. Pure.

A `Tally` takes in one attempt after the other, in the order of the jobs' names, and grows with the number of steps,
sites, nodes and causes, not with that of the jobs.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fermigrid.attempt import Attempt
from fermigrid.campaign import Campaign
from fermigrid.histogram import Histogram
from fermigrid.metrics import Counts
from fermigrid.pace import Pace
from fermigrid.report import cause_of
from fermigrid.timeline import Timeline

SOURCES = {  # what served the image, in words
    "site": "by the site",
    "path": "CVMFS or a site's disk",
    "cache": "the node's cache",
    "http": "HTTP",
    "registry": "a registry",
    "none": "no image",
}
TOP = 20  # slowest runs, slowest jobs
_CAUSES, _NODES = 2000, 50_000  # that are told apart; what comes then is one more
_OTHERS = "(others)"


@dataclass
class Group:
    """The attempts of one step at one site. `wall`, `cpu`, `output`: of the accepted ones; `lost`: s of the others."""

    accepted: int = 0
    failed: int = 0
    surplus: int = 0  # good, and another one counts
    wall: Histogram = field(default_factory=Histogram)
    cpu: Histogram = field(default_factory=Histogram)
    output: Histogram = field(default_factory=Histogram)
    memory: Histogram = field(default_factory=Histogram)  # of jobs that ended, as the batch system measured it
    lost: float = 0.0
    read: int = 0
    kept: int = 0
    reported: int = 0  # of the accepted ones, those that told how many events they read
    phases: dict[str, float] = field(default_factory=dict)
    images: dict[str, Histogram] = field(default_factory=dict)  # rung -> s
    fetched: int = 0  # bytes of images that came over the network

    @property
    def attempts(self) -> int:
        """All of them."""
        return self.accepted + self.failed + self.surplus

    def efficiency(self, cpus: int) -> float | None:
        """CPU time used of what was reserved, of the accepted attempts that told their CPU time."""
        whole = self.wall.mean * self.cpu.count * cpus
        return self.cpu.total / whole if whole else None

    def add(self, one: Attempt) -> None:
        """One more attempt."""
        self.images.setdefault(one.rung, Histogram()).add(one.image_seconds)
        self.fetched += one.image_bytes if one.rung in ("http", "registry") else 0
        for name, seconds in one.phases.items():
            self.phases[name] = self.phases.get(name, 0.0) + seconds
        if not one.accepted:
            self.lost += one.wall
            self.failed += one.exit != 0
            self.surplus += one.exit == 0
            return
        self.accepted += 1
        self.wall.add(one.wall)
        self.output.add(one.output)
        if one.cpu is not None:
            self.cpu.add(one.cpu)
        if one.read is not None:
            self.read, self.kept, self.reported = self.read + one.read, self.kept + (one.kept or 0), self.reported + 1

    def merge(self, other: Group) -> None:
        """Take in all of another."""
        for name in ("accepted", "failed", "surplus", "lost", "read", "kept", "reported", "fetched"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("wall", "cpu", "output", "memory"):
            getattr(self, name).merge(getattr(other, name))
        for phase, seconds in other.phases.items():
            self.phases[phase] = self.phases.get(phase, 0.0) + seconds
        for rung, histogram in other.images.items():
            self.images.setdefault(rung, Histogram()).merge(histogram)


@dataclass(frozen=True, order=True)
class Failure:
    """So many of a step at a site failed for one cause. `what`: an `attempt` that failed, a job with `no result`
    though it ended, one that was `removed`, or is `held` now. `example`: one of them."""

    what: str
    site: str
    step: str
    cause: str


@dataclass(frozen=True)
class Node:
    """Attempts on one machine, and starts there that failed for the machine's own reasons (code -> times)."""

    host: str
    attempts: int
    failed: int
    starts: Mapping[int, int]


@dataclass(frozen=True, order=True)
class SlowRun:
    """A run in one step: s from its first begin to its last end, s of all its attempts, and of the longest."""

    seconds: float
    step: str
    run: str
    attempts: int
    wall: float
    longest: float


@dataclass(frozen=True, order=True)
class SlowJob:
    """A job by the wall time of its accepted attempt."""

    wall: float
    job: str
    site: str
    host: str
    cpu: float | None = field(compare=False)


class Tally:
    """Adds attempts up. `earliest`, `latest`: what lies outside is the fault of a node's clock, and on no time line."""

    def __init__(self, earliest: int, latest: int) -> None:
        self._earliest, self._latest = earliest, latest
        self.groups: dict[tuple[str, str], Group] = {}  # by step and site
        self.timeline = Timeline()
        self.failures: Counter[Failure] = Counter()
        self.examples: dict[Failure, str] = {}
        self.out_of_time = 0
        self._hosts: dict[str, list[int]] = {}  # attempts, failed
        self._starts: dict[str, Counter[int]] = {}
        self._runs: list[SlowRun] = []
        self._jobs: list[SlowJob] = []
        self._run: tuple[str, str] | None = None
        self._of_run: list[float] = []

    def add(self, one: Attempt) -> None:
        """One more attempt; those of a run in a step come one after the other."""
        group = self.groups.get((one.step, one.site))
        if group is None:
            group = self.groups[one.step, one.site] = Group()
        group.add(one)
        if one.exit:
            self.fail(Failure("attempt", one.site, one.step, _cause(one.exit)), one.job)
        self._add_to_host(one)
        if one.accepted:
            _push(self._jobs, SlowJob(one.wall, one.job, one.site, one.host, one.cpu))
        in_time = self._earliest <= one.begin <= one.end <= self._latest
        self._add_to_run(one, in_time)
        if in_time:
            self._add_to_time(one)
        else:
            self.out_of_time += 1

    def _add_to_host(self, one: Attempt) -> None:
        known = one.host in self._hosts or len(self._hosts) < _NODES
        counts = self._hosts.setdefault(one.host if known else _OTHERS, [0, 0])
        counts[0] += 1
        counts[1] += one.exit != 0

    def _add_to_run(self, one: Attempt, in_time: bool) -> None:
        if self._run != (one.step, one.run):
            self._end_run()
            self._run, self._of_run = (one.step, one.run), [math.inf, 0.0, 0.0, 0.0, 0.0]
        totals = self._of_run
        if in_time:
            totals[0], totals[1] = min(totals[0], one.begin), max(totals[1], one.end)
        totals[2] += 1
        totals[3] += one.wall
        totals[4] = max(totals[4], one.wall)

    def _end_run(self) -> None:
        if self._run is not None:
            first, last, attempts, wall, longest = self._of_run
            _push(self._runs, SlowRun(max(0.0, last - first), *self._run, int(attempts), wall, longest))
        self._run = None

    def _add_to_time(self, one: Attempt) -> None:
        line, site = self.timeline, one.site
        line.add(("began", site), one.begin)
        line.add(("began at", site), one.begin, one.begin)
        line.add(("ended", site), one.end)
        line.add(("ended at", site), one.end, one.end)
        if one.accepted:
            line.add(("accepted", one.step), one.end)
            line.add(("accepted at", site), one.end)
            if one.read:
                line.add(("events", one.step), one.end, one.read)
        elif one.exit:
            line.add(("failed",), one.end)

    def fail(self, failure: Failure, example: str, times: int = 1) -> None:
        """Something failed so many times for one cause."""
        if failure not in self.failures and len(self.failures) >= _CAUSES:
            failure = Failure(failure.what, failure.site, failure.step, _OTHERS)
        self.failures[failure] += times
        self.examples.setdefault(failure, example)

    def fail_node(self, host: str, code: int, times: int) -> None:
        """Starts on a machine ended with an exit code that charges it."""
        self._starts.setdefault(host, Counter())[code] += times

    def measure(self, step: str, site: str, memory: Histogram) -> None:
        """The batch system measured the most memory of jobs, in bytes."""
        self.groups.setdefault((step, site), Group()).memory.merge(memory)

    def nodes(self) -> list[Node]:
        """The machines on which something failed, the worst first."""
        names = {*self._starts, *(host for host, (_, failed) in self._hosts.items() if failed)}
        counts = {host: self._hosts.get(host, [0, 0]) for host in names}
        nodes = [Node(host, of[0], of[1], self._starts.get(host, Counter())) for host, of in counts.items()]
        return sorted(nodes, key=lambda node: (-node.failed - sum(node.starts.values()), node.host))

    @property
    def hosts(self) -> int:
        """How many machines there were."""
        return len(self._hosts)

    def slow_runs(self) -> list[SlowRun]:
        """The runs that took longest in a step, the slowest first."""
        self._end_run()
        return sorted(self._runs, reverse=True)

    def slow_jobs(self) -> list[SlowJob]:
        """The jobs whose accepted attempts took longest, the slowest first."""
        return sorted(self._jobs, reverse=True)


def _cause(code: int) -> str:
    return f"{cause_of(code)} ({code})" if 79 <= code <= 99 else cause_of(code)


def _push(heap: list[Any], item: Any) -> None:
    if len(heap) < TOP:
        heapq.heappush(heap, item)
    elif item > heap[0]:
        heapq.heapreplace(heap, item)


def merged(groups: Iterable[Group]) -> Group:
    """All of them as one."""
    total = Group()
    for group in groups:
        total.merge(group)
    return total


@dataclass(frozen=True)
class Summary:
    """Everything that a report on a campaign tells. `created`: when the campaign was begun; `made`: the report.

    `jobs`: by step, all there will be; `counts`: those that were sent, by step, site and state; `state`: in words;
    `notes`: what is to be known of it, such as that it was a rehearsal, or why it stands still."""

    campaign: Campaign
    folder: str
    created: datetime
    made: datetime
    jobs: Mapping[str, int]
    counts: tuple[Counts, ...]
    state: str
    pace: Pace
    tally: Tally
    notes: Sequence[str] = ()

    @property
    def name(self) -> str:
        """`P400 400`: the campaign and its version, if it has one."""
        return f"{self.campaign.campaign} {self.campaign.version}".strip()

    def of_step(self, step: str) -> Group:
        """A step at all of its sites."""
        return merged(group for (name, _), group in self.tally.groups.items() if name == step)

    def of_site(self, site: str) -> Group:
        """All steps at a site."""
        return merged(group for (_, name), group in self.tally.groups.items() if name == site)

    @property
    def steps(self) -> list[str]:
        """The steps of which there are reports, in the campaign's order."""
        known = {step for step, _ in self.tally.groups}
        return [step for step in self.campaign.steps if step in known]

    @property
    def sites(self) -> list[str]:
        """The sites of which there are reports."""
        return sorted({site for _, site in self.tally.groups})
