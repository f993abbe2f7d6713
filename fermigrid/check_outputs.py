"""That no two jobs of a campaign publish the same output, and none where it must not. Pure.

The outputs of a million jobs are not compared with each other. All outputs of a run begin alike; where what they begin
with is no beginning of what those of another run begin with, the two have none in common. So the beginnings are put in
order, and only outputs of runs and steps whose beginnings go together are looked at one by one: as a rule those of one
run. In memory are the beginnings, and a number for each output of runs that go together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fermigrid.errors import Problem
from fermigrid.jobtext import JobText
from fermigrid.placeholder import compile_text, fields_of
from fermigrid.plan import Assembled, constants_of, variables_of
from fermigrid.site import Site

_OUTSIDE = re.compile(r"(?:^|/)\.{0,2}(?:/|\Z)|[\x00-\x1f\x7f]")
_URL_NAME = re.compile(r"[A-Za-z0-9._+=@,:~/-]+")


def find_output_problems(a: Assembled) -> Iterator[Problem]:
    """The first thing that is wrong with where outputs go."""
    named = _named(a)
    for each in named:
        if len(a.runs) > 1 and not fields_of(each.compiled) & {"run", "job"}:
            text = f"{each.written!r} is the same for every run: put {{run}} or {{job}} into it"
            yield a.source.problem(each.key, text)
            return
    wrong = next(_wrong_names(a, named), None) or next(_same_names(a, named), None)
    if wrong:
        each, text = wrong
        yield a.source.problem(each.key, text)


@dataclass(frozen=True)
class _Named:
    """An output of a step: the name `local` that the job writes, and the final one, for all jobs."""

    step: str
    local: str
    written: str
    compiled: str
    final: JobText
    jobs: JobText

    @property
    def key(self) -> tuple[str, ...]:
        return "steps", self.step, "outputs", self.local


_Wrong = tuple[_Named, str]


def _named(a: Assembled) -> list[_Named]:
    found = []
    for name, step in a.campaign.steps.items():
        constants, variables = constants_of(a.campaign, name, ""), variables_of(step, a.runs[0])
        for local, to in step.outputs.items():
            compiled = compile_text(to, constants, variables)
            found.append(_Named(name, local, to, compiled, JobText(compiled, name, step), JobText("{job}", name, step)))
    return found


def _wrong_names(a: Assembled, named: Sequence[_Named]) -> Iterator[_Wrong]:
    """What is wrong with a name by itself. Names of pieces, and their numbers, hold only letters and digits, and are
    never empty: what is wrong with one output of a run is wrong with all."""
    remote = next((site for site in a.sites.values() if site.output.is_remote), None)
    for each in named:
        for run in a.runs:
            output = each.final.first(run)
            if output is not None and (why := _wrong(output, remote)):
                yield each, f"{each.jobs.first(run)} would write the output {output!r}{why}"


def _wrong(output: str, remote: Site | None) -> str:
    if _OUTSIDE.search(output):
        return ": it must be a relative path without '..' or control characters"
    if output.startswith("retired/"):
        return ": in retired/ lies what a rollback moved away"
    if remote and not _URL_NAME.fullmatch(output):
        where = f"site {remote.site!r} ({remote.output.kind})"
        return f"; in a URL of {where} there may be letters, digits and ._+=@,:~-/"
    return ""


def _same_names(a: Assembled, named: Sequence[_Named]) -> Iterator[_Wrong]:
    """Two outputs with one name, or one that is a folder for another."""
    for group in _groups(a, named):
        if len(group) == 1 and named[group[0] // len(a.runs)].final.is_single:
            continue
        if _is_suspect(a, named, group):
            taken: dict[str, str] = {}
            for number in group:
                for output, job in _jobs(a, named, number):
                    if why := _claim(output, job, taken):
                        yield named[number // len(a.runs)], why


def _groups(a: Assembled, named: Sequence[_Named]) -> Iterator[list[int]]:
    """Outputs (number: place in `named` x runs + run) of which one may be, or be a folder for, another."""
    heads = [each.final.head(run) for each in named for run in a.runs]
    group, first = list[int](), ""
    for number in sorted(range(len(heads)), key=heads.__getitem__):
        if group and not heads[number].startswith(first):
            yield sorted(group)
            group = []
        if not group:
            first = heads[number]
        group.append(number)
    if group:
        yield sorted(group)


def _is_suspect(a: Assembled, named: Sequence[_Named], group: Sequence[int]) -> bool:
    """May two outputs of a group be the same, or one a folder for another? Certain only where they are not."""
    names, folders, depths, count = set[int](), set[int](), set[int](), 0
    for number in group:
        for outputs in _texts(a, named, number):
            count += len(outputs)
            names.update(map(hash, outputs))
            depths.add(outputs[0].count("/"))  # the same for all of a run
    if len(depths) > 1:
        for number in group:
            for outputs in _texts(a, named, number):
                above = {output.rpartition("/")[0] for output in outputs}
                folders.update(hash(folder) for each in above for folder in (each, *_folders_above(each)))
    return len(names) < count or not names.isdisjoint(folders)


def _texts(a: Assembled, named: Sequence[_Named], number: int) -> Iterator[list[str]]:
    return named[number // len(a.runs)].final.of([a.runs[number % len(a.runs)]])


def _jobs(a: Assembled, named: Sequence[_Named], number: int) -> Iterator[tuple[str, str]]:
    """(output, job) of each job of a run."""
    jobs = named[number // len(a.runs)].jobs.of([a.runs[number % len(a.runs)]])
    for outputs, names in zip(_texts(a, named, number), jobs, strict=True):
        yield from zip(outputs, names, strict=True)


def _claim(output: str, job: str, taken: dict[str, str]) -> str | None:
    if other := taken.get(output):
        if other == job:
            return f"{job} would write the output {output!r} twice"
        return f"two jobs would write the same output {output!r}: {other} and {job}"
    if other == "":
        return f"{job} would write the output {output!r}, which is a folder for other outputs"
    taken[output] = job
    for folder in _folders_above(output):
        if folder in taken and not taken[folder]:
            break  # known as a folder, and so are those above it
        if other := taken.get(folder):
            return f"{other} would write the output {folder!r}, which is a folder for {output!r} of {job}"
        taken[folder] = ""
    return None


def _folders_above(output: str) -> Iterator[str]:
    while "/" in output:
        output = output.rpartition("/")[0]
        yield output
