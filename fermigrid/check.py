"""Campaign x sites x images: what can be known to be wrong before anything is sent. Pure; returns every problem."""

from __future__ import annotations

from collections.abc import Iterator

from fermigrid.campaign import Split, Step
from fermigrid.check_audit import find_audit_problems
from fermigrid.check_fit import count_all_jobs, find_misfits
from fermigrid.check_outputs import find_output_problems
from fermigrid.check_site import find_site_problems
from fermigrid.config import nearest
from fermigrid.credential import find_credentials
from fermigrid.errors import Problem
from fermigrid.placeholder import compile_text
from fermigrid.plan import Assembled, constants_of, variables_of
from fermigrid.retry_rule import contradictions
from fermigrid.split import CHUNKS, CLUMPS, count_chunks, unrelated
from fermigrid.units import show_bytes, show_count


def find_problems(a: Assembled) -> tuple[Problem, ...]:
    """Everything wrong with the assembled campaign, in the order of its file."""
    problems = [*_names(a), *_steps(a), *_rules(a), *_limits(a), *find_audit_problems(a), *find_credentials(a)]
    if not problems:
        problems += [*find_output_problems(a), *_messages(a)]
        for site in a.sites.values():
            problems += find_site_problems(site, a.site_sources[site.site], a.catalogue)
            problems += find_misfits(a, site)
    return tuple(sorted(set(problems)))


def _names(a: Assembled) -> Iterator[Problem]:
    """Images and software that the catalogue does not have."""
    c = a.campaign
    if c.image not in a.catalogue.images:
        known = sorted(a.catalogue.images)
        yield a.source.problem(
            ("image",), f"no image {c.image!r}{nearest(c.image, known)} There are: {', '.join(known)}"
        )
    for index, name in enumerate(c.software):
        if name not in a.catalogue.software:
            known = sorted(a.catalogue.software)
            text = f"no software {name!r}{nearest(name, known)} There are: {', '.join(known) or 'none'}"
            yield a.source.problem(("software", index), text)


def _rules(a: Assembled) -> Iterator[Problem]:
    """Rules of retries that say two things of one end."""
    for index, why in contradictions(a.campaign.retries.rules):
        yield a.source.problem(("retries", "rules", index), why)
    least = min(step.resources.memory for step in a.campaign.steps.values())
    for index, rule in enumerate(a.campaign.retries.rules):
        if rule.most is not None and rule.most <= least:
            text = f"{show_bytes(rule.most)} is not more than what each step asks for: {show_bytes(least)} or more"
            yield a.source.problem(("retries", "rules", index, "most"), text)


def _limits(a: Assembled) -> Iterator[Problem]:
    """Limits of steps and sites that are not the campaign's."""
    c = a.campaign
    sites = sorted({*c.sites, *a.sites})
    for kind, written, known in (("steps", c.limits.steps, list(c.steps)), ("sites", c.limits.sites, sites)):
        for name in written:
            if name not in known:
                text = f"no {kind[:-1]} {name!r}{nearest(name, known)} There are: {', '.join(known) or 'none'}"
                yield a.source.problem(("limits", kind, name), text)


def _steps(a: Assembled) -> Iterator[Problem]:
    steps = a.campaign.steps
    fixed = frozenset({"campaign", "version", "step", "site", "piece", "chunk", "crumb", "job",
                       "first_event", "event_count"})  # fmt: skip
    reserved = fixed | {"run", "events"}
    columns = frozenset(next(iter(a.runs)).columns or ())
    for name in sorted(fixed & columns):
        yield a.source.problem(("runs", "table"), f"its column {name!r} has the name of a placeholder: rename it")
    constants = constants_of(a.campaign, "", "")
    for name, text in a.campaign.environment.items():
        try:
            compile_text(text, constants, frozenset())
        except ValueError as error:
            yield a.source.problem(("environment", name), str(error))
    for name in sorted(set(a.campaign.parameters) & (reserved | columns)):
        yield a.source.problem(("parameters", name), "is the name of a placeholder that exists already")
    for name, step in steps.items():
        for index, before in enumerate(step.after):
            if before not in steps:
                text = f"no step {before!r}{nearest(before, list(steps))} There are: {', '.join(steps)}"
                yield a.source.problem(("steps", name, "after", index), text)
            elif list(steps).index(before) >= list(steps).index(name):
                yield a.source.problem(("steps", name, "after", index), f"{before!r} must be written above {name!r}")
        yield from _pieces(a, name, step)
        yield from _gathers(a, name, step)
        r = step.resources
        if r.output is not None and r.output > r.disk:
            text = f"{show_bytes(r.output)} of expected output does not fit into the job's {show_bytes(r.disk)} of disk"
            yield a.source.problem(("steps", name, "resources", "output"), text)
        yield from _texts(a, name, step)


def _pieces(a: Assembled, name: str, step: Step) -> Iterator[Problem]:
    """Runs that cannot be cut into the step's pieces."""
    if step.foreach == "run":
        return
    if a.runs[0].events is None:
        text = f"{step.foreach}s need the column 'events' in the run table"
        yield a.source.problem(("steps", name, "foreach"), text)
        return
    size = (step.split or Split()).events
    what, most = ("clumps", CLUMPS) if step.foreach == "clump" else ("chunks", CHUNKS)
    large = [run for run in a.runs if count_chunks(run.events or 0, size) > most]
    if large:
        first, others = large[0], f" (and {show_count(len(large) - 1, 'more run')})" if len(large) > 1 else ""
        text = (
            f"{first.name} has {first.events} events: {count_chunks(first.events or 0, size)} {what} of {size} at most"
            f"{others}. A run has {most} {what} at most: make them larger with split: {{events: N}}"
        )
        yield a.source.problem(("steps", name, "foreach"), text)


def _gathers(a: Assembled, name: str, step: Step) -> Iterator[Problem]:
    """What a step cannot be given, or not under this name."""
    taken = {**dict.fromkeys(step.inputs, "an input"), **dict.fromkeys(a.bundle.names if a.bundle else (), "the code")}
    places: dict[str, str] = {}
    for local, what in taken.items():
        places.setdefault(local.partition("/")[0], what)
    for folder, gather in step.gather.items():
        key = ("steps", name, "gather", folder)
        for made in (folder, f"{folder}.csv", f"{folder}.missing.csv"):
            if made in places:
                yield a.source.problem(key, f"its {made} has the same name as {places[made]}")
            places[made] = f"what is made for gather: {folder}"
        source = a.campaign.steps.get(gather.step)
        if source is None:
            known = list(a.campaign.steps)
            text = f"no step {gather.step!r}{nearest(gather.step, known)} There are: {', '.join(known)}"
            yield a.source.problem((*key, "step"), text)
            continue
        if gather.step not in step.after:
            text = f"{name!r} does not come after {gather.step!r}: write after: [{gather.step}] as well"
            yield a.source.problem((*key, "step"), text)
        if gather.output not in source.outputs:
            known = list(source.outputs)
            what = f"{gather.step!r} has no output {gather.output!r}{nearest(gather.output, known)}"
            yield a.source.problem((*key, "output"), f"{what} It has: {', '.join(known) or 'none'}")
        if why := unrelated(step, source):
            yield a.source.problem((*key, "step"), f"{gather.step!r} cannot be gathered by {name!r}: {why}")


def _texts(a: Assembled, name: str, step: Step) -> Iterator[Problem]:
    """Every placeholder of a step, every name of an input and output."""
    constants, variables = constants_of(a.campaign, name, ""), variables_of(step, a.runs[0])
    texts: list[tuple[tuple[str | int, ...], str]] = [(("command", i), t) for i, t in enumerate(step.command)]
    texts += [(("environment", key), value) for key, value in step.environment.items()]
    for local, places in step.inputs.items():
        texts += [(("inputs", local), text) for text in (local, *places)]
    for local, to in step.outputs.items():
        texts += [(("outputs", local), text) for text in (local, to)]
    for key, text in texts:
        try:
            compile_text(text, constants, variables)
        except ValueError as error:
            yield a.source.problem(("steps", name, *key), str(error))
    for kind, names in (("inputs", step.inputs), ("outputs", step.outputs)):
        for local in names:
            if not _inside(local):
                yield a.source.problem(
                    ("steps", name, kind, local), "must be a relative path without '..', not .fermigrid"
                )
    taken = a.bundle.names if a.bundle else frozenset[str]()
    for local in sorted(set(step.inputs) & taken):
        yield a.source.problem(("steps", name, "inputs", local), "has the same name as a file of the campaign's code")


def _inside(path: str) -> bool:
    return bool(path) and not any(part in ("", ".", "..") for part in path.split("/")) and path[:10] != ".fermigrid"


def _messages(a: Assembled) -> Iterator[Problem]:
    """Messages are of one process instance, which is one job."""
    if a.campaign.messages and (jobs := count_all_jobs(a)) != 1:
        text = f"messages are of one process instance of the pipeline, so of one job; this campaign has {jobs}"
        yield a.source.problem(("messages",), text)
