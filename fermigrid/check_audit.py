"""What is wrong with the `audit` of a campaign. Pure; returns every problem."""

from __future__ import annotations

from collections.abc import Iterator

from fermigrid.campaign import EventAudit
from fermigrid.config import nearest
from fermigrid.errors import Problem
from fermigrid.event_source import READERS, number_of, output_of, reader_of, source_of
from fermigrid.plan import Assembled


def find_audit_problems(a: Assembled) -> Iterator[Problem]:
    """Steps, outputs and sources of events that are not there; runs without a number."""
    steps = a.campaign.steps
    for name, asked in a.campaign.audit.events.items():
        key = ("audit", "events", name)
        step = steps.get(name)
        if step is None:
            text = f"no step {name!r}{nearest(name, list(steps))} There are: {', '.join(steps)}"
            yield a.source.problem(key, text)
            continue
        output = output_of(step, asked)
        known = ", ".join(step.outputs) or "none"
        if output is None:
            yield a.source.problem((*key, "of"), f"is required: {name!r} has not one output but {known}")
        elif output not in step.outputs:
            text = f"{name!r} has no output {output!r}{nearest(output, list(step.outputs))} It has: {known}"
            yield a.source.problem((*key, "of"), text)
        elif reader_of(step.outputs[output]) is None:
            text = f"events of {step.outputs[output]!r} cannot be read: its name must end with {', '.join(READERS)}"
            yield a.source.problem((*key, "of"), text)
        yield from _source(a, name, asked)
        if asked.run and (without := next((run.name for run in a.runs if number_of(run.name) is None), None)):
            text = f"the run {without!r} has no number at its end to be found in a column"
            yield a.source.problem((*key, "run"), text)


def _source(a: Assembled, name: str, asked: EventAudit) -> Iterator[Problem]:
    key, steps = ("audit", "events", name, "from"), a.campaign.steps
    found = source_of(a.campaign, name, asked)
    if found is not None and found[0] and found[0] not in _before(a, name):
        yield a.source.problem(key, f"{found[0]!r} does not come before {name!r}")
    if found is not None:
        return
    if asked.source in steps and asked.source != name:
        outputs = ", ".join(steps[asked.source].outputs) or "none"
        yield a.source.problem(key, f"{asked.source!r} has not one output but {outputs}: gather the one that is meant")
        return
    known = [*steps[name].inputs, *steps[name].gather, *_before(a, name)]
    text = f"{name!r} has no input, gathered folder or step before it {asked.source!r}{nearest(asked.source, known)}"
    yield a.source.problem(key, f"{text} There are: {', '.join(known) or 'none'}")


def _before(a: Assembled, name: str) -> list[str]:
    """The steps that a step comes after, and those that these come after."""
    found, waiting = dict[str, None](), list(a.campaign.steps[name].after)
    while waiting:
        step = waiting.pop()
        if step in a.campaign.steps and step not in found:
            found[step] = None
            waiting += a.campaign.steps[step].after
    return list(found)
