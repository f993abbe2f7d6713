"""How long a job may need its secrets, and whether they last: arithmetic that a person can follow. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fermigrid.campaign import Step
from fermigrid.site import Site
from fermigrid.units import show_seconds

MARGIN_S = 900  # transfers before and after the worker, a slow start, clocks that differ


@dataclass(frozen=True)
class Part:
    """One part of the time that a job may take, in s, and what it is."""

    seconds: int
    what: str


def time_of_job(step: Step, site: Site) -> tuple[Part, ...]:
    """From now to the end of a job that is submitted now. Stage-in and stage-out are in its walltime."""
    parts = [Part(site.queue_wait, "in the queue")] if site.queue_wait else []
    return (*parts, Part(step.resources.walltime, "of walltime"), Part(MARGIN_S, "to spare"))


def find_shortfall(what: str, ends: datetime, step: str, parts: Sequence[Part], now: datetime) -> str | None:
    """What to say of a secret that ends before the job may; None when it lasts. Times are aware."""
    total = sum(part.seconds for part in parts)
    if ends >= now + timedelta(seconds=total):
        return None
    left = (ends - now).total_seconds()
    if left <= 0:
        return f"{what} ended at {show_time(ends)}: renew it"
    terms = " + ".join(f"{show_seconds(part.seconds)} {part.what}" for part in parts)
    need = f"a job of step {step} may take {terms} = {show_seconds(total)}"
    return f"{what} ends at {show_time(ends)}, in {show_seconds(left)}; {need}: renew it"


def find_early(what: str, begins: datetime, now: datetime) -> str | None:
    """What to say of a secret that is not valid yet; None when it is."""
    if begins <= now:
        return None
    return f"{what} is valid only from {show_time(begins)} on, in {show_seconds((begins - now).total_seconds())}"


def show_time(time: datetime) -> str:
    """A time for a person: to the minute, UTC."""
    return f"{time:%Y-%m-%d %H:%M} UTC"
