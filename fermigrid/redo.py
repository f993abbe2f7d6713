"""What is to be done again, by a person's word: which jobs and runs, with which parameters, and what is against it.

A retry does failed and removed jobs again, a rollback whole runs from a step on. Both also do again what was made from
the outputs of those: the steps that come after, of the same runs.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fermigrid.accept import Items
from fermigrid.advance import Overrides, Withheld
from fermigrid.campaign import Campaign, Step, check_version
from fermigrid.check import find_problems
from fermigrid.config import nearest
from fermigrid.errors import ConfigError, NotFound, RedoRefused
from fermigrid.find_job import find_job, jobs_of_places, untouched
from fermigrid.placeholder import compile_text
from fermigrid.plan import constants_of, jobs_of, variables_of
from fermigrid.progress import names_of
from fermigrid.records import JobRecord
from fermigrid.retire import OldOutputs
from fermigrid.retry_book import RetryBook
from fermigrid.split import count_jobs, run_of
from fermigrid.states import State
from fermigrid.submit import certainly_not_sent, give_up
from fermigrid.units import show_count
from fermigrid.watch import Following
from fermigrid.withheld_book import WithheldBook

_SHOWN = 3
_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)\Z", re.DOTALL)
RETRY, ROLLBACK = "retry", "rollback"


@dataclass(frozen=True)
class Redo:
    """What is to be done again. `jobs`: those that do not count any more then; `overrides`: what replaces parameters
    from then on; `aside`, `untouched`: how many outputs are moved away, and where those are that stay."""

    kind: str
    why: str
    jobs: tuple[JobRecord, ...]
    overrides: Overrides = field(default_factory=dict)
    again: Mapping[str, int] = field(default_factory=dict)  # step -> jobs
    alive: int = 0
    aside: int = 0
    untouched: tuple[str, ...] = ()
    given_back: Mapping[tuple[str, str], int] = field(default_factory=dict)  # removed before it was sent -> jobs

    @property
    def words(self) -> Iterator[str]:
        """What will be done, for a person, a line each."""
        what = ", ".join(f"{step}: {show_count(count, 'job')}" for step, count in self.again.items())
        yield f"{self.kind}: {self.why}"
        if what or not self.given_back:
            yield f"done again: {what or 'nothing that was sent so far'}"
        if self.given_back:
            yield f"sent after all: {show_count(sum(self.given_back.values()), 'job')} removed before they were sent"
        if self.alive:
            yield f"{show_count(self.alive, 'job')} that did not end yet: removed first"
        if self.aside:
            yield f"{show_count(self.aside, 'output')} moved away, to retired/"
        if self.untouched:
            yield f"{show_count(len(self.untouched), 'output')} at storage sites, not touched:"
            yield from (f"  {place}" for place in self.untouched)
        for values, steps in self._changes().items():
            yield f"with {', '.join(f'{name}={value}' for name, value in values)}: {steps}"

    def _changes(self) -> dict[tuple[tuple[str, str], ...], str]:
        by_values = defaultdict[tuple[tuple[str, str], ...], dict[str, None]](dict)
        for (_, run), values in self.overrides.items():
            by_values[tuple(sorted(values.items()))][run] = None
        return {values: some(list(runs)) for values, runs in by_values.items()}

    @property
    def takes_away(self) -> bool:
        """Are results given up for it?"""
        return bool(self.alive or self.aside or self.untouched or any(job.state is State.DONE for job in self.jobs))


def some(names: Sequence[str]) -> str:
    """`r1, r2, r3 and 7 more`."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def plan_retry(
    f: Following, steps: Sequence[str], runs: Sequence[str], jobs: Sequence[str], only_failed: bool = False
) -> Redo:
    """The jobs that failed, were removed, or wait for a person outside the queue, of some steps or runs or by name,
    again; `only_failed`: only the first.

    The caller holds the writer's lock, and has looked. Raises RedoRefused for a job by name that is not to be retried.
    """
    _refuse_stopped(f)
    _known_steps(f, steps)
    known_runs(f, runs)
    chosen = [_lost_job(f, name) for name in dict.fromkeys(jobs)] if jobs else list(_lost(f, only_failed))
    batches = {batch.id: batch for batch in f.ledger.batches()}
    mine = []
    for job in chosen:
        step = batches[job.batch].step
        if (not steps or step in steps) and (not runs or _run(f, job, step) in runs):
            mine.append(job)
    places = {(batches[job.batch].step, _run(f, job, batches[job.batch].step)) for job in mine}
    after = {(later, run) for step, run in places for later in _after(f.assembled.campaign, [step])}
    _withdraw(f, after)
    dependants = list(jobs_of_places(f.ledger, f.folder, f.assembled, after))
    known = {(job.batch, job.index) for job in dependants}
    outputs = OldOutputs(f.ledger, f.folder, f.assembled, 0)
    stale = {_run(f, job, batches[job.batch].step) for job in dependants if any(outputs.of(job))}
    whole = {(step, run) for step, run in after if run in stale}
    every = [*(job for job in mine if (job.batch, job.index) not in known), *dependants]
    now = f.ledger.overrides()
    overrides = _versions(f, {place: now.get(place, {}) for place in whole}, {})
    back = {} if jobs or only_failed else _given_back(f, steps, runs)
    what = some([job.name for job in mine]) or some([f"{step}.{run}" for step, run in back])
    return replace(_redo(f, RETRY, what, every, overrides, whole), given_back=back)


def plan_rollback(f: Following, runs: Sequence[str], first: str | None, settings: Mapping[str, str]) -> Redo:
    """Runs again, from the step `first` on (None: from the beginning), and what comes after it.

    The caller holds the writer's lock, and has looked. Raises RedoRefused where new outputs would need the names of old
    ones that stay, ConfigError for a campaign that would be wrong with `settings`, NotFound.
    """
    _refuse_stopped(f)
    known_runs(f, runs)
    _known_steps(f, [first] if first else [])
    campaign = f.assembled.campaign
    steps = [first, *_after(campaign, [first])] if first else list(campaign.steps)
    _known_settings(f, settings, steps)
    places = {(step, run) for run in runs for step in steps}
    _withdraw(f, places)
    now = f.ledger.overrides()
    kept = {place: now.get(place, {}) for place in places}
    overrides = _versions(f, kept, settings)
    jobs = list(jobs_of_places(f.ledger, f.folder, f.assembled, places))
    text = f"{some(list(runs))} from {first} on" if first else f"{some(list(runs))}, all steps"
    given = "".join(f" {name}={value}" for name, value in settings.items())
    redo = _redo(f, ROLLBACK, text + (f" with{given}" if given else ""), jobs, overrides, places)
    return replace(redo, given_back=_given_back(f, steps, runs))


def decide(f: Following, redo: Redo) -> int:
    """Write it down: from here on it is done, whatever is killed. Returns the number of the decision."""
    if redo.given_back:
        WithheldBook(f.ledger).give_back(redo.given_back, f.hand.now(), f.hand.who, f"{redo.kind}: {redo.why}")
    return f.ledger.decide(redo.kind, redo.why, redo.jobs, redo.overrides, f.hand.now(), f.hand.who)


def _given_back(f: Following, steps: Sequence[str], runs: Sequence[str]) -> dict[tuple[str, str], int]:
    """What was removed before it was sent, of these steps and runs: with the number of jobs."""
    campaign, table = f.assembled.campaign, {run.name: run for run in f.assembled.runs}
    return {
        (step, run): count_jobs(campaign.steps[step], [table[run]])
        for (step, run), kind in WithheldBook(f.ledger).places().items()
        if kind is Withheld.REMOVED and (not steps or step in steps) and (not runs or run in runs)
    }


def _redo(
    f: Following, kind: str, why: str, jobs: Sequence[JobRecord], overrides: Overrides, whole: set[tuple[str, str]]
) -> Redo:
    batches = {batch.id: batch for batch in f.ledger.batches()}
    outputs = OldOutputs(f.ledger, f.folder, f.assembled, 0)
    aside, untouched, again = 0, list[str](), dict.fromkeys(f.assembled.campaign.steps, 0)
    staying = defaultdict[tuple[str, str, str], set[str]](set)
    for job in jobs:
        batch = batches[job.batch]
        place = batch.step, _run(f, job, batch.step)
        again[batch.step] += 1
        for old in outputs.of(job) if place in whole else ():
            if old.aside is None:
                staying[(*place, batch.site)].add(old.to)
            if old.sha256:
                aside, untouched = aside + (old.aside is not None), [*untouched, *([] if old.aside else [old.place])]
    for (step, run, site), names in staying.items():
        _refuse_same_names(f, site, step, run, names, overrides)
    gone = [_given_up(job) for job in jobs]
    alive = sum(not job.state.final for job in gone)
    counts = {step: count for step, count in again.items() if count}
    return Redo(kind, why, tuple(gone), overrides, counts, alive, aside, tuple(untouched))


def _given_up(job: JobRecord) -> JobRecord:
    """Of a job that the batch system does not know no end will be heard."""
    if job.state is not State.UNKNOWN:
        return job
    return replace(job, state=State.REMOVED, reason=f"given up: {job.reason or 'the batch system did not know it'}")


# --- which jobs


def _lost(f: Following, only_failed: bool) -> Iterator[JobRecord]:
    yield from f.ledger.jobs_in(State.FAILED)
    if only_failed:
        return
    yield from asked_jobs(f)
    yield from f.ledger.jobs_in(State.REMOVED)
    items, counts = Items(f.folder), f.ledger.counts()
    for batch in f.ledger.batches():
        if batch.removed and sum(counts.get(batch.id, {}).values()) < batch.counted:
            rows = {job.index for job in f.ledger.jobs_of(batch.id)}
            for index, name in enumerate(items.names(batch)):
                if index not in rows:
                    yield untouched(batch, index, name)


def asked_jobs(f: Following) -> Iterator[JobRecord]:
    """The jobs that left the queue and wait for a person: as removed ones, for nothing more comes of them."""
    for asked in RetryBook(f.ledger).asked():
        job = f.ledger.job(asked.batch, asked.index)
        if job is not None:
            yield replace(job, state=State.REMOVED)


def _lost_job(f: Following, name: str) -> JobRecord:
    found = find_job(f.ledger, f.folder, name)[-1]
    job, batch = found.record, found.batch
    run = _run(f, job, batch.step)
    if job.retired is not None:
        text = f"{name} is done again already: {_sent(f, job)}"
        raise RedoRefused(text, f"`fermigrid why` {name} tells how far it is.")
    if job.state is State.DONE:
        hint = f"To do it again all the same: `fermigrid rollback --run {run} --from-step {batch.step}`."
        raise RedoRefused(f"{name} has an accepted result", hint)
    if job.state in (State.FAILED, State.REMOVED, State.UNKNOWN):
        return job
    if batch.removed:
        return untouched(batch, job.index, name)
    if asked := next((one for one in asked_jobs(f) if (one.batch, one.index) == (job.batch, job.index)), None):
        return asked
    raise RedoRefused(f"{name} is {job.state}: it may still end well", "To give it up: `fermigrid remove --job` first.")


def _sent(f: Following, job: JobRecord) -> str:
    successor = next((batch.name for batch in f.ledger.batches() if batch.id == job.successor), None)
    return f"in {successor}" if successor else "it is sent as soon as nothing is in its way"


def _run(f: Following, job: JobRecord, step: str) -> str:
    return run_of(job.name, step, f.assembled.campaign.steps[step])


def _withdraw(f: Following, places: set[tuple[str, str]]) -> None:
    """Batches of these steps and runs that are in doubt: adopted, or withdrawn where they did not land."""
    for batch in certainly_not_sent(f.ledger, f.folder, f.hand):
        if any((batch.step, run) in places for run in names_of(f.assembled, batch)):
            give_up(f.ledger, f.folder, batch, f.hand, "a run of it is rolled back before it was sent")


def _after(campaign: Campaign, steps: Iterable[str]) -> list[str]:
    """The steps that come after these, directly or not."""
    found = set(steps)
    first = set(found)
    for name, step in campaign.steps.items():
        if found & set(step.after):
            found.add(name)
    return [name for name in campaign.steps if name in found - first]


# --- what is against it


def _refuse_stopped(f: Following) -> None:
    if stopped := f.ledger.campaign().stopped:
        text = f"{f.assembled.campaign.campaign} was removed on {stopped}: nothing more of it is sent"
        raise RedoRefused(text, "To submit it again, give another folder with --run-dir.")


def _known_steps(f: Following, steps: Iterable[str]) -> None:
    known = f.assembled.campaign.steps
    for name in steps:
        if name not in known:
            raise NotFound(f"no step {name!r}{nearest(name, list(known))}", f"There are: {', '.join(known)}")


def known_runs(f: Following, runs: Iterable[str]) -> None:
    """Raises NotFound for a run that the campaign does not have."""
    known = {run.name for run in f.assembled.runs}
    for name in runs:
        if name not in known:
            raise NotFound(f"no run {name!r} in the run table{nearest(name, sorted(known))}")


def _known_settings(f: Following, settings: Mapping[str, str], steps: Sequence[str]) -> None:
    """Raises ConfigError where the campaign would be wrong with these, or they would change nothing of `steps`."""
    campaign, source = f.assembled.campaign, f.assembled.source
    known = sorted({*campaign.parameters, "version"})
    problems = [
        source.problem(("parameters",), f"--set {name}: no such parameter{nearest(name, known)}")
        for name in settings
        if name not in known
    ]
    used = {name for step in steps for text in _texts(campaign, campaign.steps[step]) for name in _names_in(text)}
    for name in sorted(set(settings) & set(known) - used):
        what = f"--set {name}: nothing of {', '.join(steps)} says {{{name}}}, so it would change nothing"
        problems.append(source.problem(("version",) if name == "version" else ("parameters", name), what))
    try:
        check_version(settings.get("version", ""))
    except ValueError as error:
        problems.append(source.problem(("version",), f"--set version={settings['version']!r}: a version {error}"))
    if not problems:
        changed = {name: value for name, value in settings.items() if name != "version"}
        update = {
            "parameters": {**campaign.parameters, **changed},
            "version": settings.get("version", campaign.version),
        }
        problems = list(find_problems(replace(f.assembled, campaign=campaign.model_copy(update=update))))
    if problems:
        raise ConfigError(problems)


def _versions(f: Following, kept: Overrides, settings: Mapping[str, str]) -> dict[tuple[str, str], dict[str, str]]:
    """What replaces the parameters of these steps and runs from now on: what did, the settings, and a new version where
    what is done again tells its version."""
    campaign = f.assembled.campaign
    steps = {step for step, _ in kept}
    tells = [name for name in campaign.steps if name in steps and _tells_version(campaign, campaign.steps[name])]
    bumps = bool(tells) and "version" not in settings
    if bumps:
        _refuse_unclear(campaign, steps, tells)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for run in dict.fromkeys(run for _, run in kept):
        mine = {step: kept[step, run] for step in steps if (step, run) in kept}
        newest = max((before.get("version", campaign.version) for before in mine.values()), key=_order)
        own = dict(settings, version=_next(newest)) if bumps else dict(settings)
        for step, before in mine.items():
            if values := {**before, **own}:
                found[step, run] = values
    return found


def _order(version: str) -> tuple[str, int, str]:
    match = _NUMBER.match(version)
    return (match[1], int(match[2]), match[3]) if match else (version, -1, "")


def _next(version: str) -> str:
    """`400` -> `401`, `v009b` -> `v010b`. Raises RedoRefused for one without a number."""
    match = _NUMBER.match(version)
    if not match:
        text = f"the next version after {version!r} is not known: it has no number"
        raise RedoRefused(text, "Say it: --set version=...; the same again is allowed, too.")
    return f"{match[1]}{int(match[2]) + 1:0{len(match[2])}d}{match[3]}"


def _texts(campaign: Campaign, step: Step) -> Iterator[str]:
    yield from (*step.command, *step.environment.values(), *campaign.environment.values())
    yield from (*step.outputs, *step.outputs.values(), *step.inputs)
    yield from (place for places in step.inputs.values() for place in places)


def _tells_version(campaign: Campaign, step: Step) -> bool:
    return any(_has_version(text) for text in _texts(campaign, step))


def _has_version(text: str) -> bool:
    return "version" in _names_in(text)


def _names_in(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def _refuse_unclear(campaign: Campaign, steps: set[str], tells: Sequence[str]) -> None:
    """Is the version in an input's name that of this step, or of one before it, which keeps its own?"""
    for name in tells:
        step = campaign.steps[name]
        inputs = [place for places in step.inputs.values() for place in places if _has_version(place)]
        if inputs and (before := [other for other in step.after if other not in steps]):
            text = f"the input {inputs[0]} of {name} has the version in its name, and {before[0]} is not done again"
            raise RedoRefused(text, f"Say the version: --set version=..., or roll back --from-step {before[0]}.")


def _refuse_same_names(f: Following, site: str, step: str, run: str, names: set[str], overrides: Overrides) -> None:
    """An output that cannot be moved from here keeps its name: a new one needs another."""
    new = _names(f, site, step, run, overrides.get((step, run), {}))
    if same := next((name for name in new if name in names), None):
        root = f.assembled.sites[site].output.root
        text = f"{root}/{same} stays there, because it cannot be moved from here, and the new one would have its name"
        hint = "Put {version} into the names of outputs at such sites; or --set a parameter that is in them."
        raise RedoRefused(text, hint)


def _names(f: Following, site: str, step: str, run: str, parameters: Mapping[str, str]) -> Iterator[str]:
    """The outputs of a step of a run, by the campaign."""
    a, what = f.assembled, f.assembled.campaign.steps[step]
    one = next(each for each in a.runs if each.name == run)
    constants, variables = constants_of(a.campaign, step, site, parameters), variables_of(what, one)
    forms = [compile_text(to, constants, variables) for to in what.outputs.values()]
    yield from (form.format_map(values) for values in jobs_of(step, what, [one]) for form in forms)
