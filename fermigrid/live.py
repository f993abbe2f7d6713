"""`fermigrid set`, `ban`, `unban`: what a person changes of a campaign that is under way, and what is in force now."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fermigrid.config import Place
from fermigrid.dirac_site import NAME as DIRAC_SITE
from fermigrid.errors import NotFound, SubmissionRefused
from fermigrid.setting import Change, as_set, keys_of, own_limit, read_changes, value_of
from fermigrid.settings_book import SettingsBook
from fermigrid.throttle import keep_limits, out_of_reach
from fermigrid.units import show_count
from fermigrid.watch import Following

_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,252}\Z")


@dataclass(frozen=True)
class InForce:
    """A key, its value (None: no limit), and where it comes from, in words."""

    key: str
    value: int | str | None
    source: str


def set_values(f: Following, written: Sequence[str]) -> list[str]:
    """Set them, and make them true where that can be done now; returns what was done, in words.

    The caller holds the writer's lock. Raises NotFound and SubmissionRefused: then nothing is set.
    """
    _refuse_stopped(f)
    changes = [change for text in written for change in read_changes(text, f.assembled)]
    before = {one.key: one for one in in_force(f)}
    now = SettingsBook(f.ledger).values()
    said = [text for change in changes if (text := _words(change, before, now))]
    if not said:
        return ["it is so already"]
    SettingsBook(f.ledger).change(changes, f.hand.now(), f.hand.who, f"set {'; '.join(said)}")
    return [*said, *apply_now(f)]


def _words(change: Change, before: dict[str, InForce], now: dict[str, str]) -> str:
    """What a change does; empty when it is so already."""
    if now.get(change.key) == change.value:
        return ""
    kind, _, name = change.key.partition(".")
    if kind == "drain":
        return f"{name} is drained: no new work goes there" if change.value else f"{name} is drained no more"
    known = before[change.key]
    return f"{change.key} = {change.value or 'as the campaign says'} (was {_show(known.value)})"


def apply_now(f: Following) -> list[str]:
    """Make true what the ledger says; what is in the way of that, in words."""
    problems = keep_limits(f)
    if problems:
        problems.append("what was set is written down: `fermigrid watch` tries it again")
    return [*problems, *out_of_reach(f)]


def _show(value: int | str | None) -> str:
    return "none" if value is None else str(value)


def _refuse_stopped(f: Following) -> None:
    if f.ledger.campaign().stopped:
        raise SubmissionRefused("the campaign was removed: there is nothing left to set")


def in_force(f: Following) -> list[InForce]:
    """Everything that can be set, as it is now, and where that comes from."""
    settings = SettingsBook(f.ledger).settings()
    a = as_set(f.assembled, {key: setting.value for key, setting in settings.items()})
    source_of, found = a.source, []
    for key in keys_of(a):
        value, source = value_of(a, key), "built in"
        keys: tuple[str | int, ...] = ("accounting", key) if key == "priority" else tuple(_split(key))
        if keys in source_of.places:
            source = str(source_of.place(keys))
        drain = settings.get(f"drain.{key.partition('.')[2]}") if key.startswith("sites.") else None
        if setting := drain or settings.get(key):
            source = f"set by {setting.who}, {setting.since}"
        if key.startswith("limits.sites."):
            name = _split(key)[2]
            own = own_limit(a.sites[name].limits, key)
            if own is not None and (not isinstance(value, int) or own < value):
                value, source = own, str(_place(f, name, key))
        found.append(InForce(key, value, source))
    return found


def _split(key: str) -> list[str]:
    """`limits.sites.in2p3.v2.running` -> its parts: a site's name may have a point in it."""
    parts = key.split(".")
    if parts[0] == "limits" and len(parts) > 2:
        return [*parts[:2], ".".join(parts[2:-1]), parts[-1]]
    return [parts[0], ".".join(parts[1:])] if parts[0] == "sites" else parts


def _place(f: Following, site: str, key: str) -> Place:
    place = f.assembled.site_sources[site].place(("limits", key.rpartition(".")[2]))
    return Place(Path(place.file).name, place.line)


def limits_words(f: Following) -> Iterator[str]:
    """The limits, weights and drains that were set or limit something, a line each: for `status`."""
    for one in in_force(f):
        if one.key.startswith("limits") and one.value is not None:
            yield f"{one.key}: {one.value} ({one.source})"
        elif one.source.startswith("set by"):
            if one.value == "drain":
                yield f"drained: {one.key.partition('.')[2]}: no new work goes there ({one.source})"
            else:
                yield f"{one.key}: {_show(one.value)} ({one.source})"


# --- nodes


def ban_nodes(f: Following, nodes: Sequence[str], site: str | None, why: str) -> list[str]:
    """No more jobs to these nodes; returns what was done, in words. Raises NotFound and SubmissionRefused."""
    _refuse_stopped(f)
    said = []
    for node, where in [(node, _site_of(f, node, site)) for node in nodes]:
        if node in f.ledger.banned(where):
            said.append(f"{node} of {where} is banned already")
            continue
        f.ledger.ban(where, node, why or "by a person", f.hand.now(), f.hand.who)
        said.append(f"no more jobs to {node} of {where}")
    return [*said, *apply_now(f)]


def unban_nodes(f: Following, nodes: Sequence[str], site: str | None) -> list[str]:
    """These nodes get jobs again."""
    said = []
    for node in nodes:
        where = [name for name in f.assembled.sites if site in (None, name) and node in f.ledger.banned(name)]
        if not where:
            raise NotFound(f"{node} is not banned" + (f" at {site}" if site else ""), _banned_now(f))
        for name in where:
            f.ledger.allow(name, node, f.hand.now(), f.hand.who)
            said.append(f"{node} of {name} gets jobs again")
    return [*said, *apply_now(f)]


def _banned_now(f: Following) -> str:
    names = [f"{node} of {site}" for site, node, _, _ in f.ledger.bans()]
    return f"Banned are: {', '.join(names)}" if names else "No node is banned."


def _site_of(f: Following, node: str, site: str | None) -> str:
    """The site of a node: the one given, the only one, or the only one where jobs of the campaign were on it."""
    if not _NODE.match(node):
        raise SubmissionRefused(f"{node!r} is no name of a node", "`fermigrid status` and `why` name them.")
    sites = [name for name, one in f.assembled.sites.items() if one.backend != "local"]
    if site is not None and site not in f.assembled.sites:
        raise NotFound(f"the campaign has no site {site!r}", f"It has: {', '.join(f.assembled.sites)}")
    if site is not None and site not in sites:
        raise SubmissionRefused(f"{site} is this machine: it has no other node to send jobs to")
    if not sites:
        raise SubmissionRefused("the campaign runs on this machine: it has no other node to send jobs to")
    seen = [name for name in sites if node in SettingsBook(f.ledger).nodes(name)]
    found = [site] if site else sites if len(sites) == 1 else seen
    if len(found) != 1:
        text = f"{node} may be a node of {' or of '.join(found or sites)}: {show_count(len(found or sites), 'site')}"
        raise SubmissionRefused(text, "Say which: --site SITE.")
    if f.assembled.sites[found[0]].backend == "dirac" and not DIRAC_SITE.fullmatch(node):
        raise SubmissionRefused(
            f"{node!r} is no site of DIRAC", "DIRAC's own sites are banned, such as LCG.IN2P3-CC.fr."
        )
    return found[0]
