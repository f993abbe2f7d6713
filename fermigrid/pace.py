"""How fast a campaign goes, and when it will have ended if it goes on so: an interval, or nothing. Pure.

Jobs end in waves, and a night is not like a day. So rates are taken over several stretches of time up to now, each with
its statistical error; the end is told as the interval that holds what all of them say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from fermigrid.units import show_count, show_seconds

HOUR = timedelta(hours=1)
STRETCHES = (HOUR, 6 * HOUR, 24 * HOUR)  # up to now
YOUNG = timedelta(minutes=10)  # until then a campaign has no rate: jobs that end in waves would tell any
ENOUGH = 20  # jobs of a step must have ended in a stretch, or it says nothing
_FARTHEST = 1e6  # h: what lies beyond is no estimate
_ROUND = ((2, 1), (24, 10), (240, 60))  # h between both ends of the interval, min to which these are rounded
_DAY_MIN = 1440


@dataclass(frozen=True)
class Ended:
    """The jobs of a step at a site that came to their end in one minute (`2027-03-04T05:06`, UTC)."""

    minute: str
    step: str
    site: str
    good: int
    failed: int


@dataclass(frozen=True)
class Pace:
    """Jobs an hour, over the last hour or since the campaign was begun, and between when and when the last one ends.

    `young`: it was begun a moment ago, and has no rates.
    `soonest`, `latest`: None when nothing tells it; `why_not` then says why, if there is something to come. `untold`:
    steps of which too few jobs have ended: it ends after `soonest`, and `latest` is None. `aside`: jobs that wait for a
    person, or of which nobody knows: they are not in it.
    """

    good: float = 0.0
    failed: float = 0.0
    rates: Mapping[tuple[str, str], float] = field(default_factory=dict)  # step, site -> jobs that came to their end
    soonest: datetime | None = None
    latest: datetime | None = None
    untold: Sequence[str] = ()
    aside: int = 0
    why_not: str = ""
    young: bool = False

    @property
    def goes_on(self) -> bool:
        """Is something still to come by itself?"""
        return self.soonest is not None or bool(self.why_not)


def since_when(begun: datetime, now: datetime) -> datetime:
    """The beginning of the time of which `pace_of` wants to know what ended."""
    return max(now - STRETCHES[-1], min(begun, now))


def pace_of(
    ended: Iterable[Ended],
    left: Mapping[str, int],
    begun: datetime,
    now: datetime,
    *,
    aside: int = 0,
    stopped: str = "",
) -> Pace:
    """`ended`: since `since_when`; `left`: step -> jobs that are still to end; `stopped`: why no end can be told."""
    known = list(ended)
    told = replace(_rates(known, begun, now), aside=aside)
    open_ = {step: count for step, count in left.items() if count > 0}
    if not open_:
        return told
    if stopped:
        return replace(told, why_not=stopped)
    stretches = list(_stretches(known, begun, now))
    spans = {step: span for step, count in open_.items() if (span := _span(step, count, stretches))}
    if not spans or max(high for _, high in spans.values()) > _FARTHEST:
        why = f"fewer than {ENOUGH} jobs of a step have ended in the last day" if not spans else "next to nothing ends"
        return replace(told, why_not=why)
    soonest, latest = (now + max(span[i] for span in spans.values()) * HOUR for i in (0, 1))
    untold = tuple(step for step in open_ if step not in spans)
    if sum(open_[step] for step in untold) > sum(open_[step] for step in spans):
        why = f"too few jobs of {', '.join(untold)} have ended, and most of what is left is of these"
        return replace(told, why_not=why)
    return replace(told, soonest=soonest, latest=None if untold else latest, untold=untold)


def _rates(ended: Iterable[Ended], begun: datetime, now: datetime) -> Pace:
    if now - begun < YOUNG:
        return Pace(young=True)
    lately = _Stretch(ended, max(now - HOUR, begun), now)
    rates = {key: (good + bad) / lately.hours for key, (good, bad) in lately.counts.items()}
    good, failed = (sum(pair[i] for pair in lately.counts.values()) / lately.hours for i in (0, 1))
    return Pace(good, failed, rates)


class _Stretch:
    """What ended from a moment on: (step, site) -> (good, failed), in so many `hours`."""

    def __init__(self, ended: Iterable[Ended], begin: datetime, now: datetime) -> None:
        self.hours = max(now - begin, timedelta(minutes=1)) / HOUR
        self.counts: dict[tuple[str, str], tuple[int, int]] = {}
        self.steps = Counter[str]()
        first = f"{begin.astimezone(UTC):%Y-%m-%dT%H:%M}"
        for one in ended:
            if one.minute >= first:
                good, failed = self.counts.get((one.step, one.site), (0, 0))
                self.counts[one.step, one.site] = good + one.good, failed + one.failed
                self.steps[one.step] += one.good + one.failed


def _stretches(ended: Sequence[Ended], begun: datetime, now: datetime) -> Iterator[_Stretch]:
    """The last hour, ..., none from before the campaign; and, as soon as it is as long, that from the first end on:
    before it nothing could end."""
    begins = {max(now - length, min(begun, now)) for length in STRETCHES}
    if ended:
        first = datetime.fromisoformat(min(one.minute for one in ended)).replace(tzinfo=UTC)
        if now - first >= first - begun >= timedelta(0):
            begins.add(first)
    return (_Stretch(ended, begin, now) for begin in sorted(begins))


def _span(step: str, left: int, stretches: Iterable[_Stretch]) -> tuple[float, float] | None:
    """Between how many hours the jobs of a step that are left end: by the fastest and by the slowest stretch, each with
    two standard deviations of what ended in it."""
    known = [(stretch.steps[step], stretch.hours) for stretch in stretches if stretch.steps[step] >= ENOUGH]
    if not known:
        return None
    lows, highs = ([left * hours / (n + sign * 2 * math.sqrt(n)) for n, hours in known] for sign in (1, -1))
    return min(lows), max(highs)


# --- in words


def rate_words(pace: Pace) -> str:
    """`420 jobs/h done, 3/h failed`; "" where no rate can be told yet."""
    if pace.young:
        return ""
    if not pace.rates:
        return "no job came to its end in the last hour"
    return f"{show_rate(pace.good)} jobs/h done" + (f", {show_rate(pace.failed)}/h failed" if pace.failed else "")


def end_words(pace: Pace, now: datetime) -> str:
    """`ends between 2027-03-05 12:00 and 15:00 UTC (in 1 d 4 h to 1 d 7 h) if it goes on as in the last day`, or why
    that cannot be told; "" when nothing is to come."""
    without = f", without {show_count(pace.aside, 'job')} held or unknown" if pace.aside else ""
    if pace.soonest is None:
        return f"no estimate of the end: {pace.why_not}" if pace.why_not else ""
    if pace.latest is None:
        at, _ = _rounded(pace.soonest, pace.soonest, now)
        steps = ", ".join(pace.untold)
        return f"ends not before {_moment(at)} UTC{without}: too few jobs of {steps} have ended to tell more"
    soonest, latest = _rounded(pace.soonest, pace.latest, now)
    near, far = (show_seconds((at - now).total_seconds()) for at in (soonest, latest))
    late = f"{latest:%H:%M}" if latest.date() == soonest.date() else _moment(latest)
    between = f"between {_moment(soonest)} and {late} UTC (in {near} to {far})"
    return f"ends {between}{without}, if it goes on as in the last day"


def show_rate(value: float) -> str:
    """`420`, `3.5`: jobs an hour."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _rounded(soonest: datetime, latest: datetime, now: datetime) -> tuple[datetime, datetime]:
    """Outwards, as far as the interval's own width makes sensible; of one moment, as its distance does."""
    width = (latest - soonest) / HOUR or (latest - now) / HOUR
    minutes = next((minutes for hours, minutes in _ROUND if width < hours), _DAY_MIN)
    size = minutes * 60
    low, high = soonest.timestamp() // size * size, -(-latest.timestamp() // size) * size
    return max(now, datetime.fromtimestamp(low, UTC)), datetime.fromtimestamp(high, UTC)


def _moment(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def as_data(pace: Pace) -> dict[str, Any]:
    """The same for programs."""
    return {
        "good": None if pace.young else pace.good,
        "failed": None if pace.young else pace.failed,
        "rates": [{"step": step, "site": site, "jobs": rate} for (step, site), rate in sorted(pace.rates.items())],
        "soonest": pace.soonest.isoformat() if pace.soonest else None,
        "latest": pace.latest.isoformat() if pace.latest else None,
        "untold": list(pace.untold),
        "aside": pace.aside,
        "why_not": pace.why_not,
    }
