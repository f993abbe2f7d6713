"""The limits of a campaign -> how many places each batch has in the queue now, and how soon one is used anew. Pure.

A *place* is one job in the batch system's queue. The places of all batches in a limit's scope are never more than its
`running`. A place is not used anew before `stay` seconds after the start of its job have passed: so P places start no
more than P/stay jobs in a time. Places that a batch gets in addition are used at once: no more in a minute than
`starts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fermigrid.campaign import Limits, Rate
from fermigrid.site import Site

STEP_S = 10  # places are not added more often than this
MINUTE_S = 60
_PARTS = 64  # what there is to share is handed out in so many parts


@dataclass(frozen=True)
class Scope:
    """A limit and what it is about: all of a campaign, a step, or a site. `key`: where it is written, such as `limits`,
    `limits.sites.slac`. `starts`: a minute."""

    key: str
    step: str | None = None
    site: str | None = None
    running: int | None = None
    starts: int | None = None

    def has(self, place: Place) -> bool:
        """Is it about this batch?"""
        return self.step in (None, place.step) and self.site in (None, place.site)


class Place(Protocol):
    """What belongs to a step at a site."""

    @property
    def step(self) -> str: ...

    @property
    def site(self) -> str: ...


@dataclass(frozen=True)
class Need:
    """A batch that is sent, or is about to be. `left`: its jobs that have not ended; `given`: the places that it has;
    `most`: that it may have at its site. `bound`: the jobs that are in the queue at most, which may be more than its
    places for a while. `recent`: starts within the last minute. `paused`: its jobs are kept from
    starting, and only those that run are its `bound`. `fixed`: nobody can change its places, all of its jobs are in the
    queue."""

    id: str
    block: str
    step: str
    site: str
    left: int
    given: int
    most: int
    bound: int
    recent: int = 0
    paused: bool = False
    fixed: bool = False


@dataclass(frozen=True)
class Growth:
    """Of a scope with `starts`: the most places that its batches had since it was last idle, and how many more may be
    given them at `time` (s)."""

    high: int
    more: float
    time: float


@dataclass(frozen=True)
class Share:
    """What a batch may do now. `places`: 0, it is kept from starting; `stay`: seconds; `idle`: jobs that wait in the
    queue at most, None: as many as the site says."""

    places: int
    stay: float = 0
    idle: int | None = None


def scopes_of(limits: Limits, sites: Mapping[str, Site]) -> list[Scope]:
    """The limits of a campaign at its sites. Of the campaign's for a site and the site's own the smaller counts."""
    found = [Scope("limits", None, None, limits.running, limits.starts)]
    found += [Scope(f"limits.steps.{name}", name, None, r.running, r.starts) for name, r in limits.steps.items()]
    for name, site in sites.items():
        ours, theirs = limits.sites.get(name, Rate()), site.limits
        smaller = (_least(ours.running, theirs.running), _least(ours.starts, theirs.starts))
        found.append(Scope(f"limits.sites.{name}", None, name, *smaller))
    return [scope for scope in found if scope.running is not None or scope.starts is not None]


def _least(*numbers: int | None) -> int | None:
    return min((number for number in numbers if number is not None), default=None)


@dataclass(frozen=True)
class Spot:
    """A step at a site."""

    step: str
    site: str


def limits_of(scopes: Iterable[Scope], step: str, site: str) -> tuple[int | None, int | None]:
    """The smallest `running` and `starts` of those that are about a step at a site."""
    mine = [scope for scope in scopes if scope.has(Spot(step, site))]
    return _least(*(scope.running for scope in mine)), _least(*(scope.starts for scope in mine))


def room_in(scope: Scope, needs: Iterable[Need]) -> int | None:
    """How many more jobs may be in the queue; None: as many as there are."""
    if scope.running is None:
        return None
    return scope.running - sum(n.left if n.fixed else max(n.given, n.bound) for n in needs if scope.has(n))


def paid_at(sent: Iterable[tuple[float, int]], starts: int) -> float:
    """When (s) batches that are sent whole, at these times (s) with so many jobs, have made no more than `starts` a
    minute, so that the next may be sent."""
    paid = 0.0
    for time, jobs in sorted(sent):
        paid = max(paid, time) + jobs * MINUTE_S / starts
    return paid


def share_out(
    scopes: Sequence[Scope],
    needs: Sequence[Need],
    weights: Mapping[str, int],
    grown: Mapping[str, Growth],
    now: float,
) -> tuple[dict[str, Share], dict[str, Growth]]:
    """What each batch may do from now on, and how far the scopes have grown. `now`: s.

    Sites share what there is by their weights; at a site earlier blocks come first. What a batch is to give up another
    is given only when its jobs have left the queue.
    """
    order = sorted((need for need in needs if not need.fixed), key=lambda need: need.block)
    fixed = {need: need.left for need in needs if need.fixed}
    wanted = _fill({need: min(need.left, need.most) for need in order}, _rooms(scopes, fixed), scopes, weights)
    kept = {need: 0 if need.paused else min(need.given, wanted[need]) for need in order}
    use = {need: max(kept[need], need.bound) for need in order} | fixed
    for need in order:
        goes_on = min(need.given, wanted[need])
        if need.paused and goes_on and _has_room(need, goes_on, scopes, use):
            kept[need] = use[need] = goes_on
    growth = {scope.key: _regrown(grown.get(scope.key), scope.starts, now) for scope in scopes if scope.starts}
    rooms = _rooms(scopes, use)
    for scope in scopes:
        if scope.starts is not None:
            recent = sum(need.recent for need in needs if scope.has(need))
            rooms["more", scope.key] = max(0, math.floor(min(growth[scope.key].more, scope.starts - recent)))
    spare = {need: 0 if need.paused else max(0, wanted[need] - use[need]) for need in order}
    more = _fill(spare, rooms, scopes, weights)
    places = {need: use[need] + more[need] if more[need] else kept[need] for need in order}
    after = dict(_grow(scopes, growth, places, more))
    goals = {scope.key: sum(wanted[need] for need in order if scope.has(need)) for scope in scopes}
    return {n.id: Share(count, *_pace(scopes, after, goals, n)) for n, count in places.items() if n.left}, after


def _has_room(paused: Need, places: int, scopes: Iterable[Scope], use: Mapping[Need, int]) -> bool:
    """May what waits in the queue of a paused batch go on, all at once?"""
    rooms = _rooms([scope for scope in scopes if scope.has(paused)], {**use, paused: 0})
    return all(room >= places for room in rooms.values())


def _rooms(scopes: Iterable[Scope], use: Mapping[Need, int]) -> dict[tuple[str, str], float]:
    """What is left of each scope's `running`."""
    return {
        ("running", scope.key): max(0, scope.running - sum(count for need, count in use.items() if scope.has(need)))
        for scope in scopes
        if scope.running is not None
    }


def _fill(
    spare: Mapping[Need, int], rooms: dict[tuple[str, str], float], scopes: Sequence[Scope], weights: Mapping[str, int]
) -> dict[Need, int]:
    """Hand out what there is room for. Sites in proportion to their weights, at each the first batch first."""
    given = dict.fromkeys(spare, 0)
    mine = {need: [key for s in scopes if s.has(need) for key in (("running", s.key), ("more", s.key)) if key in rooms]
            for need in spare}  # fmt: skip
    queues = {site: [need for need in spare if need.site == site] for site in sorted({need.site for need in spare})}
    taken = dict.fromkeys(queues, 0.0)
    part = max(1, math.ceil(sum(spare.values()) / _PARTS))
    if (least := min(rooms.values(), default=math.inf)) < math.inf:
        part = max(1, min(part, math.ceil(least / _PARTS)))
    while queues:
        site = min(queues, key=lambda name: (taken[name] / max(1, weights.get(name, 1)), name))
        while queues[site]:
            need = queues[site][0]
            room = min((rooms[key] for key in mine[need]), default=math.inf)
            if amount := int(min(part, spare[need] - given[need], room)):
                break
            queues[site].pop(0)
        else:
            del queues[site]
            continue
        given[need] += amount
        taken[site] += amount
        for key in mine[need]:
            rooms[key] -= amount
    return given


def _regrown(before: Growth | None, starts: int, now: float) -> Growth:
    """What may be added by now: what may start in the time since the last look, or in a minute, where that was less.
    What was not used then is not made up for: that would be many starts at once."""
    if before is None:
        return Growth(0, max(1, starts * STEP_S / MINUTE_S), now)
    passed = now - before.time
    if 0 <= passed < STEP_S:
        return before
    part = before.more % 1  # of a start
    return Growth(before.high, min(starts, part + starts * max(0.0, passed) / MINUTE_S), now)


def _grow(
    scopes: Iterable[Scope], growth: Mapping[str, Growth], places: Mapping[Need, int], more: Mapping[Need, int]
) -> Iterator[tuple[str, Growth]]:
    """What is left of that. A scope in which no batch has anything left begins anew."""
    for scope in scopes:
        inside = [need for need in places if scope.has(need) and need.left]
        if scope.starts is not None and inside:
            each = growth[scope.key]
            high = max(each.high, sum(places[need] for need in inside))
            if scope.running is not None:
                high = min(high, scope.running)
            yield scope.key, Growth(high, each.more - sum(more[need] for need in inside), each.time)


def _pace(
    scopes: Iterable[Scope], growth: Mapping[str, Growth], goals: Mapping[str, int], need: Need
) -> tuple[float, int | None]:
    """How long a place stays taken after a start (s), and how many jobs may wait: those that may start in a minute.

    While places are added it is a minute more: none is used anew meanwhile.
    """
    stay, idle = 0.0, None
    for scope in scopes:
        if scope.starts is not None and scope.has(need):
            high = growth[scope.key].high
            places = max(high, min(high + scope.starts, goals[scope.key]))
            stay, idle = max(stay, places / scope.starts * MINUTE_S), _least(idle, scope.starts)
    return math.ceil(stay), idle
