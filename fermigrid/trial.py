"""A trial: some runs first, then what their jobs took, and what that makes of all the others. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fermigrid.campaign import Campaign
from fermigrid.plan import Assembled
from fermigrid.rates import Scope
from fermigrid.runs import Run
from fermigrid.units import exact_bytes, exact_seconds, show_bytes, show_count, show_seconds

MEMORY_MARGIN, DISK_MARGIN, WALLTIME_MARGIN = 1.3, 1.5, 2.0
_MEMORY_STEP, _DISK_STEP, _WALLTIME_STEP = 128 * 2**20, 2**30, 600  # what is suggested is a multiple of these
ADJUSTABLE = ("memory", "disk", "walltime")


def choose_runs(runs: Sequence[Run], number: int) -> tuple[str, ...]:
    """Runs for a trial, in the order of the table: the first, the last, the largest, the smallest, and others at even
    distances."""
    chosen = dict.fromkeys((0, len(runs) - 1))
    if runs[0].events is not None:
        by_size = sorted(range(len(runs)), key=lambda index: runs[index].events or 0)
        chosen |= dict.fromkeys((by_size[-1], by_size[0]))
    steps = max(1, number - 1)
    evenly = [index * (len(runs) - 1) // steps for index in range(number)]
    chosen |= dict.fromkeys([*evenly, *range(len(runs))])
    return tuple(runs[index].name for index in sorted(list(chosen)[:number]))


def as_adjusted(assembled: Assembled, trial: Sequence[str], adjusted: Mapping[tuple[str, str], int]) -> Assembled:
    """The campaign with the runs of its trial first, and with the resources that a person changed since."""
    first = {name: place for place, name in enumerate(trial)}
    runs = sorted(assembled.runs, key=lambda run: first.get(run.name, len(first))) if first else assembled.runs
    steps = dict(assembled.campaign.steps)
    for (name, resource), value in adjusted.items():
        if name in steps and resource in ADJUSTABLE:
            resources = steps[name].resources.model_copy(update={resource: value})
            steps[name] = steps[name].model_copy(update={"resources": resources})
    campaign = assembled.campaign.model_copy(update={"steps": steps})
    return replace(assembled, campaign=campaign, runs=tuple(runs), trial=len(first))


@dataclass(frozen=True)
class Usage:
    """What one good job took. Times in s, sizes in bytes; None: not measured. `weight`: its share of a run's events (1
    for a whole run where the run table has no events)."""

    step: str
    wall: float
    cpu: float
    memory: int | None
    disk: int | None
    output: int
    weight: float


@dataclass(frozen=True)
class Measured:
    """What the good jobs of a step took, and what is suggested for others. `rest_...`: for the jobs that are left."""

    step: str
    jobs: int
    good: int
    wall: float  # median
    wall_most: float
    cpu_share: float
    memory_most: int | None
    disk_most: int | None
    output: float  # of a job, on average
    suggested: Mapping[str, int]
    rest_jobs: float
    rest_wall: float
    rest_output: float


def measure(
    campaign: Campaign, jobs: Mapping[str, int], usages: Sequence[Usage], rest: Mapping[str, float]
) -> Iterator[Measured]:
    """Step by step; `jobs`: how many jobs the trial has of it; `rest`: the weight of all jobs that are left."""
    for name, step in campaign.steps.items():
        ours = [usage for usage in usages if usage.step == name]
        if not ours:
            continue
        wall, weight = sum(usage.wall for usage in ours), sum(usage.weight for usage in ours) or 1.0
        memory, disk = _most(usage.memory for usage in ours), _most(usage.disk for usage in ours)
        most = max(usage.wall for usage in ours)
        yield Measured(
            step=name,
            jobs=jobs.get(name, 0),
            good=len(ours),
            wall=statistics.median(usage.wall for usage in ours),
            wall_most=most,
            cpu_share=sum(usage.cpu for usage in ours) / (wall * step.resources.cpus or 1.0),
            memory_most=memory,
            disk_most=disk,
            output=sum(usage.output for usage in ours) / len(ours),
            suggested=_suggest(memory, disk, most),
            rest_jobs=len(ours) / weight * rest.get(name, 0.0),
            rest_wall=wall / weight * rest.get(name, 0.0),
            rest_output=sum(usage.output for usage in ours) / weight * rest.get(name, 0.0),
        )


def _most(values: Iterator[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _suggest(memory: int | None, disk: int | None, wall: float) -> dict[str, int]:
    found = {"walltime": _round_up(wall * WALLTIME_MARGIN, _WALLTIME_STEP)}
    if memory is not None:
        found["memory"] = _round_up(memory * MEMORY_MARGIN, _MEMORY_STEP)
    if disk is not None:
        found["disk"] = _round_up(disk * DISK_MARGIN, _DISK_STEP)
    return found


def _round_up(value: float, step: int) -> int:
    return max(1, math.ceil(value / step)) * step


def table_of(measured: Sequence[Measured]) -> tuple[list[str], list[list[object]]]:
    """The trial as a table: header and rows."""
    header = ["step", "jobs", "good", "time", "longest", "cpu", "memory", "disk", "output"]
    rows: list[list[object]] = [
        [
            one.step,
            one.jobs,
            one.good,
            show_seconds(one.wall),
            show_seconds(one.wall_most),
            f"{100 * one.cpu_share:.0f} %",
            _bytes(one.memory_most),
            _bytes(one.disk_most),
            show_bytes(round(one.output)),
        ]
        for one in measured
    ]
    return header, rows


def _bytes(value: int | None) -> str:
    return "not measured" if value is None else show_bytes(value)


def suggestions(campaign: Campaign, measured: Sequence[Measured]) -> Iterator[str]:
    """What to ask for instead, step by step, next to what is asked for now."""
    for one in measured:
        now = campaign.steps[one.step].resources
        new = [
            f"{name} {_exact(name, value)} ({_exact(name, getattr(now, name))} now)"
            for name, value in sorted(one.suggested.items())
            if value != getattr(now, name)
        ]
        yield f"{one.step}: {', '.join(new) or 'what it asks for now'}"


def _exact(name: str, value: int) -> str:
    return exact_seconds(value) if name == "walltime" else exact_bytes(value)


def total_in_words(
    campaign: Campaign, measured: Sequence[Measured], runs: int, scopes: Sequence[Scope], shares: Mapping[str, float]
) -> Iterator[str]:
    """What the rest will take, all in all. `scopes`: the limits that hold; `shares`: what of it each site gets."""
    if not runs:
        yield "nothing is left: the trial was the whole campaign"
        return
    cores = sum(one.rest_wall * campaign.steps[one.step].resources.cpus for one in measured)
    output = sum(one.rest_output for one in measured)
    yield f"the other {runs} runs: {cores / 3600:,.1f} core hours, {show_bytes(round(output))} of output"
    takes = [pair for scope in scopes for pair in _takes(scope, measured, shares)]
    if takes:
        seconds, limit = max(takes, key=lambda pair: pair[0])
        yield f"with {limit}: {show_seconds(seconds)}"
    missing = sorted(set(campaign.steps) - {one.step for one in measured})
    if missing:
        yield f"no job of {', '.join(missing)} is good: it is not in these figures"


def _takes(scope: Scope, measured: Sequence[Measured], shares: Mapping[str, float]) -> Iterator[tuple[float, str]]:
    """How long a limit alone makes the rest last (s), with its words."""
    share = 1.0 if scope.site is None else shares.get(scope.site, 0.0)
    ours = [one for one in measured if scope.step in (None, one.step)]
    what, where = f" of {scope.step}" if scope.step else "", f" at {scope.site}" if scope.site else ""
    if scope.running is not None:
        wall = sum(one.rest_wall for one in ours) * share
        yield wall / scope.running, f"{show_count(scope.running, 'job')}{what} at a time{where}"
    if scope.starts is not None:
        jobs = sum(one.rest_jobs for one in ours) * share
        yield jobs / scope.starts * 60, f"{show_count(scope.starts, 'start')}{what} a minute{where}"


def adjusted_by(measured: Sequence[Measured]) -> dict[tuple[str, str], int]:
    """The suggestions as the ledger keeps them."""
    return {(one.step, name): value for one in measured for name, value in one.suggested.items()}
