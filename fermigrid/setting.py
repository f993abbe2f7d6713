"""What a person sets while a campaign goes on, `fermigrid set CAMPAIGN limits.running=50`: words -> settings -> the
campaign as it is now. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fermigrid.campaign import Campaign, Limits, Rate
from fermigrid.config import nearest
from fermigrid.errors import NotFound, SubmissionRefused
from fermigrid.plan import Assembled
from fermigrid.site import SiteLimits

DRAIN, UNDRAIN, NONE, DEFAULT = "drain", "undrain", "none", "default"
_MOST = {"running": 1_000_000, "starts": 100_000}


@dataclass(frozen=True)
class Change:
    """A key of the ledger's settings and its new value; None: it goes back to what the campaign says."""

    key: str
    value: str | None


@dataclass(frozen=True)
class Setting:
    """A value that was set: since when, and by whom."""

    key: str
    value: str
    since: str
    who: str


def read_changes(written: str, a: Assembled) -> Iterator[Change]:
    """`KEY=VALUE` -> what it changes. Raises NotFound for a key that there is not, SubmissionRefused for a value."""
    key, equals, value = (part.strip() for part in written.partition("="))
    if not equals or not value:
        raise SubmissionRefused(f"{written!r} sets nothing", f"Write {key or 'limits.running'}=VALUE.")
    _known(key, a)
    if key.startswith("sites."):
        yield from _weight(key, value, a)
    elif value == DEFAULT:
        yield Change(key, None)
    elif key == "priority":
        yield Change(key, str(_number(key, value, -1000, 1000)))
    else:
        yield Change(key, NONE if value == NONE else str(_number(key, value, 1, _MOST[key.rpartition(".")[2]])))


def keys_of(a: Assembled) -> list[str]:
    """All that can be set."""
    scopes = ["limits", *(f"limits.steps.{name}" for name in a.campaign.steps), *(f"limits.sites.{n}" for n in a.sites)]
    limits = [f"{scope}.{name}" for scope in scopes for name in ("running", "starts")]
    return [*limits, *(f"sites.{name}" for name in a.sites), "priority"]


def _known(key: str, a: Assembled) -> None:
    known = keys_of(a)
    if key not in known:
        raise NotFound(f"there is no {key!r} to be set{nearest(key, known)}", f"There are: {', '.join(known)}")


def _weight(key: str, value: str, a: Assembled) -> Iterator[Change]:
    drain = f"drain.{key.partition('.')[2]}"
    if value in (DRAIN, "0"):
        yield Change(drain, "yes")
    elif value in (UNDRAIN, DEFAULT):
        yield Change(drain, None)
        if value == DEFAULT:
            yield Change(key, None)
    elif not a.campaign.sites or set(a.campaign.sites) != set(a.sites):
        text = f"{key}: all of this campaign goes to {', '.join(a.sites)}: there is nothing to be shared out"
        raise SubmissionRefused(text, f"{key}=drain and {key}=undrain can be said.")
    else:
        yield Change(key, str(_number(key, value, 1, 1_000_000)))
        yield Change(drain, None)


def _number(key: str, value: str, least: int, most: int) -> int:
    digits = value.removeprefix("-")
    if digits.isascii() and digits.isdigit() and least <= int(value) <= most:
        return int(value)
    others = {"priority": "default"}.get(key, f"{NONE}, default" if key.startswith("limits.") else "drain, undrain")
    raise SubmissionRefused(f"{key}={value}: it takes a number from {least} to {most}, or {others}")


def as_set(a: Assembled, settings: Mapping[str, str]) -> Assembled:
    """The campaign as it is to be now."""
    campaign = a.campaign
    limits = _limits(campaign, a, settings)
    weights = {name: int(settings.get(f"sites.{name}", weight)) for name, weight in campaign.sites.items()}
    priority = int(settings.get("priority", campaign.accounting.priority))
    accounting = campaign.accounting.model_copy(update={"priority": priority})
    update = {"limits": limits, "sites": weights, "accounting": accounting}
    drained = frozenset(name for name in a.sites if f"drain.{name}" in settings)
    return replace(a, campaign=campaign.model_copy(update=update), drained=drained)


def _limits(campaign: Campaign, a: Assembled, settings: Mapping[str, str]) -> Limits:
    limits = campaign.limits
    steps = {name: _rate(f"limits.steps.{name}", limits.steps.get(name, Rate()), settings) for name in campaign.steps}
    sites = {name: _rate(f"limits.sites.{name}", limits.sites.get(name, Rate()), settings) for name in a.sites}
    top = _rate("limits", limits, settings)
    return Limits(running=top.running, starts=top.starts, steps=steps, sites=sites)


def _rate(scope: str, written: Rate, settings: Mapping[str, str]) -> Rate:
    return Rate(
        running=_value(settings.get(f"{scope}.running"), written.running),
        starts=_value(settings.get(f"{scope}.starts"), written.starts),
    )


def _value(said: str | None, written: int | None) -> int | None:
    if said is None:
        return written
    return None if said == NONE else int(said)


def value_of(a: Assembled, key: str) -> int | str | None:
    """What a key is in force as, of an `as_set` campaign; a site's own smaller limit is not in it."""
    top, *rest = key.split(".")
    if top == "priority":
        return a.campaign.accounting.priority
    if top == "sites":
        name = key.partition(".")[2]
        return DRAIN if name in a.drained else a.campaign.sites.get(name)
    name, what = ".".join(rest[1:-1]), rest[-1]
    groups: Mapping[str, Mapping[str, Rate]] = {"steps": a.campaign.limits.steps, "sites": a.campaign.limits.sites}
    rate = groups[rest[0]].get(name, Rate()) if len(rest) > 1 else a.campaign.limits
    found: int | None = getattr(rate, what)
    return found


def own_limit(limits: SiteLimits, key: str) -> int | None:
    """What the site itself says on a key such as `limits.sites.slac.running`."""
    found: int | None = getattr(limits, key.rpartition(".")[2])
    return found
