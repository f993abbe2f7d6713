"""Limits -> places: never more than a limit says, nothing idle that could be given, no more starts in a minute."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fermigrid.campaign import Limits
from fermigrid.rates import STEP_S, Growth, Need, Scope, Share, limits_of, scopes_of, share_out
from fermigrid.site import load_site
from tests.campaigns import SITES

POOL = load_site("pool", [SITES])[0]


def need(name: str, left: int, now: int = 0, site: str = "a", step: str = "go", **more: Any) -> Need:
    block, _, _ = name.partition(".")
    return Need(name, block, step, site, left, now, more.pop("most", 5000), more.pop("bound", now), **more)


def places(shares: dict[str, Share]) -> dict[str, int]:
    return {name: share.places for name, share in shares.items()}


def share(scopes: list[Scope], *needs: Need, **weights: int) -> dict[str, int]:
    return places(share_out(scopes, needs, weights or {"a": 1, "b": 1}, {}, 0.0)[0])


def test_earlier_blocks_come_first_and_sites_share_by_weight() -> None:
    top = Scope("limits", running=100)
    assert share([top], need("b1", 500), need("b0", 30)) == {"b0": 30, "b1": 70}
    shared = share([top], need("b0", 500), need("b1", 500, site="b"), a=3, b=1)
    assert sum(shared.values()) == 100 and abs(shared["b0"] - 75) <= 2
    assert share([top], need("b0", 10), need("b1", 500, site="b"), a=3, b=1) == {"b0": 10, "b1": 90}


def test_every_scope_counts() -> None:
    scopes = [
        Scope("limits", running=100),
        Scope("limits.steps.go", step="go", running=40),
        Scope("s", site="b", running=7),
    ]
    found = share(scopes, need("b0", 500), need("b1", 500, step="merge"), need("b2", 9, site="b"))
    assert found["b0"] + found["b2"] <= 40
    assert found["b2"] <= 7
    assert sum(found.values()) == 100


def test_a_batch_has_no_more_places_than_its_site_gives_and_jobs_are_left() -> None:
    assert share([Scope("limits", running=100)], need("b0", 500, most=20), need("b1", 3)) == {"b0": 20, "b1": 3}


def test_what_is_given_up_is_given_on_only_when_the_jobs_are_gone() -> None:
    scopes = [Scope("limits", running=100)]
    found = share(scopes, need("b0", 500, bound=0), need("b1", 500, now=100, bound=100))
    assert found == {"b0": 0, "b1": 0}, "b0 comes first, and the hundred of b1 are in the queue still"
    assert share(scopes, need("b0", 500), need("b1", 460, now=0, bound=60)) == {"b0": 40, "b1": 0}


def test_a_paused_batch_goes_on_only_when_all_its_waiting_jobs_have_room() -> None:
    scopes, waits = [Scope("limits", running=100)], replace(need("b1", 500, now=60, bound=5), paused=True)
    assert share(scopes, need("b2", 50, now=50), waits)["b1"] == 0
    assert share(scopes, need("b2", 40, now=40), waits)["b1"] == 60
    lower = [Scope("limits", running=20)]
    assert share(lower, waits) == {"b1": 20}, "of more places than there are by now, it keeps those"


def test_starts_grow_by_the_minute_and_a_place_is_kept_for_as_long_as_they_need() -> None:
    scopes = [Scope("limits", running=300, starts=50)]
    shares, grown = share_out(scopes, [need("b0", 1000)], {"a": 1}, {}, 0.0)
    assert shares["b0"] == Share(8, 70, 50)
    at_once, _ = share_out(scopes, [need("b0", 1000, now=8)], {"a": 1}, grown, STEP_S - 1)
    assert at_once["b0"].places == 8
    grown = {"limits": Growth(50, 0.0, 0.0)}
    shares, grown = share_out(scopes, [need("b0", 1000, now=50)], {"a": 1}, grown, 30.0)
    assert shares["b0"] == Share(75, 150, 50)
    late, grown = share_out(scopes, [need("b0", 1000, now=75)], {"a": 1}, grown, 3600.0)
    assert late["b0"] == Share(125, 210, 50), "a minute's at most, however long nobody looked"
    full, _ = share_out(scopes, [need("b0", 1000, now=300)], {"a": 1}, {"limits": Growth(300, 0, 3600)}, 4000.0)
    assert full["b0"] == Share(300, 360, 50)


def test_what_began_of_late_counts() -> None:
    scopes = [Scope("limits", running=300, starts=50)]
    grown = {"limits": Growth(50, 0.0, 0.0)}
    shares, _ = share_out(scopes, [need("b0", 1000, now=10, recent=45)], {"a": 1}, grown, 60.0)
    assert shares["b0"].places == 15


def test_a_clock_that_was_set_back_gives_nothing() -> None:
    scopes = [Scope("limits", starts=50)]
    shares, _ = share_out(scopes, [need("b0", 1000, now=50)], {"a": 1}, {"limits": Growth(50, 0, 5000)}, 0.0)
    assert shares["b0"].places == 50


def test_the_smaller_of_campaign_and_site_counts() -> None:
    limits = Limits.model_validate(
        {"running": "500", "sites": {"pool": {"running": "300"}}, "steps": {"go": {"starts": "9"}}}
    )
    site = POOL.model_copy(update={"limits": POOL.limits.model_copy(update={"running": 200, "starts": 30})})
    scopes = scopes_of(limits, {"pool": site})
    assert limits_of(scopes, "go", "pool") == (200, 9)
    assert limits_of(scopes, "merge", "pool") == (200, 30)
    assert limits_of(scopes, "merge", "other") == (500, None)
    assert scopes_of(Limits(), {"pool": POOL}) == []


# --- a batch system that does what it is told, second by second


@dataclass
class Batch:
    """Jobs of some length; `places` and `stay` as they were last told."""

    name: str
    site: str
    left: int  # to be made
    length: int
    places: int = 1
    stay: float = 0
    queue: list[list[float]] = field(default_factory=list)  # start or -1, end
    paused: bool = False

    @property
    def alive(self) -> int:
        return self.left + sum(1 for job in self.queue if job[2] == 0)


def play(
    batches: list[Batch], scopes: list[Scope], look_s: int, seconds: int, slots: int
) -> tuple[list[float], int, int]:
    """Starts, the most that ran at once, and jobs that are left over."""
    grown: dict[str, Growth] = {}
    starts: list[float] = []
    began: list[tuple[str, float]] = []
    most = 0
    bound = {batch.name: (1, batch.alive) for batch in batches}
    for now in range(seconds):
        for batch in batches:
            for job in batch.queue:
                if job[0] >= 0 and job[2] == 0 and now >= job[1]:
                    job[2] = 1
            batch.queue = [job for job in batch.queue if job[2] == 0 or now < job[0] + batch.stay]
        if now % look_s == 0:
            needs = []
            for batch in batches:
                was, left = bound[batch.name]
                upper = min(batch.alive, max(batch.places, was - (left - batch.alive)))
                recent = sum(name == batch.name and now - 60 <= at for name, at in began[-200:])
                if batch.paused:
                    upper = sum(1 for job in batch.queue if job[0] >= 0 and job[2] == 0)
                needs.append(
                    Need(
                        batch.name, batch.name, "go", batch.site, batch.alive, batch.places, 5000, upper, recent,
                        batch.paused,
                    )
                )  # fmt: skip
            alive = [one for one in needs if one.left]
            shares, grown = share_out(scopes, alive, {"a": 2, "b": 1}, grown, float(now))
            for batch, one in zip(batches, needs, strict=True):
                share = shares.get(batch.name)
                if share:
                    batch.paused = not share.places
                if share and share.places:
                    told = (
                        batch.places if share.places >= batch.alive and batch.places >= share.places else share.places
                    )
                    bound[batch.name] = max(told, batch.places, one.bound), batch.alive
                    batch.places, batch.stay = told, share.stay
        running = sum(1 for batch in batches for job in batch.queue if job[0] >= 0 and job[2] == 0)
        for batch in (one for one in batches if not one.paused):
            while batch.left and len(batch.queue) < batch.places:
                batch.left -= 1
                batch.queue.append([-1, 0, 0])
            for job in batch.queue:
                if job[0] < 0 and running < slots:
                    job[0], job[1] = now, now + batch.length
                    starts.append(now)
                    began.append((batch.name, now))
                    running += 1
        most = max(most, running)
    return starts, most, sum(batch.alive for batch in batches)


@pytest.mark.parametrize("length", [5, 50, 500])
@pytest.mark.parametrize("look_s", [2, 60])
def test_fifty_a_minute_three_hundred_at_a_time(length: int, look_s: int) -> None:
    batches = [Batch("b0", "a", 700, length), Batch("b1", "b", 300, length)]
    starts, most, left = play(batches, [Scope("limits", running=300, starts=50)], look_s, 3600, 400)
    assert left == 0
    assert most <= 300
    busiest = max(sum(at <= other < at + 60 for other in starts) for at in set(starts))
    assert busiest <= (1.25 * 50 if look_s == 2 else 2 * 50)
    assert len(starts) / (max(starts) / 60 + 1) <= 50
    assert Counter(int(at) // 60 for at in starts)[3] >= 40, "and not much less"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 300), st.sampled_from("ab")), min_size=1, max_size=5),
    st.integers(1, 120),
    st.one_of(st.none(), st.integers(1, 60)),
    st.integers(1, 50),
    st.integers(1, 90),
)
def test_never_more_at_once_than_the_limit(
    sizes: list[tuple[int, int, str]], running: int, starts: int | None, of_b: int, look_s: int
) -> None:
    batches = [Batch(f"b{i}", site, jobs, length) for i, (jobs, length, site) in enumerate(sizes)]
    sent = batches[: max(1, min(running, of_b))]  # as many as have a place
    scopes = [Scope("limits", running=running, starts=starts), Scope("limits.sites.b", site="b", running=of_b)]
    began, most, _ = play(sent, scopes, look_s, 900, 1000)
    assert most <= running
    if starts is not None:
        assert len(began) <= starts * (900 / 60 + 1) + 2 * len(sent) + 2
