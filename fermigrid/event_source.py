"""Which events are compared with which, as the `audit` of a campaign says. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fermigrid.campaign import Campaign, EventAudit, Step

# endings of the files whose events can be read -> the module that does
READERS: Mapping[str, str] = dict.fromkeys((".fit", ".fits", ".fit.gz", ".fits.gz"), "fermigrid.events_fits")
_DIGITS = re.compile(r"([0-9]{1,18})\Z")


def reader_of(name: str) -> str | None:
    """The module that reads events of a file with this name; None: none does."""
    return next((module for ending, module in READERS.items() if name.lower().endswith(ending)), None)


def number_of(run: str) -> int | None:
    """The number of a run, as events carry it: the digits that its name ends with."""
    found = _DIGITS.search(run)
    return int(found[1]) if found else None


def output_of(step: Step, asked: EventAudit) -> str | None:
    """The output whose events are compared, by its local name; None: it is not said, and there is not one only."""
    return asked.of or (next(iter(step.outputs)) if len(step.outputs) == 1 else None)


def source_of(campaign: Campaign, name: str, asked: EventAudit) -> tuple[str, str] | None:
    """Where the events come from: ("", an input of the step), or (a step before it, its output); None: nowhere."""
    step = campaign.steps[name]
    if asked.source in step.inputs:
        return "", asked.source
    if gather := step.gather.get(asked.source):
        return gather.step, gather.output
    before = campaign.steps.get(asked.source)
    if before is None or asked.source == name or len(before.outputs) != 1:
        return None
    return asked.source, next(iter(before.outputs))
