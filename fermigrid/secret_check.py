"""The secrets of the steps that are about to be sent: looked at on this machine, and refused where they will not do."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from fermigrid.access import Trust
from fermigrid.config import Source
from fermigrid.errors import SecretRefused
from fermigrid.lifetime import MARGIN_S, Part, find_early, find_shortfall, time_of_job
from fermigrid.plan import Assembled
from fermigrid.sealed import SealedFiles
from fermigrid.secret import Secret
from fermigrid.secret_files import Span, check_recipient, find_openings, read_proxy, read_sealed, sealed_span
from fermigrid.site import Site

Pairs = Iterable[tuple[str, str]]  # (step, site)


@dataclass(frozen=True)
class State:
    """A secret as it is now: its faults, when it ends where that can be told, and what only a node can see."""

    site: str
    name: str
    secret: Secret
    source: Source
    faults: tuple[str, ...]
    span: Span | None
    unseen: str

    def say(self, fault: str) -> str:
        """A fault, with the place of the secret in the site's file."""
        return str(self.source.problem(("secrets", self.name), fault))


def look_at(site: Site, source: Source, name: str) -> State:
    """What can be seen here of a secret of a site. The clock plays no part."""
    secret, faults, unseen = site.secrets[name], list[str](), list[str]()
    span = None
    try:
        span = _look(site, name, secret, faults, unseen)
    except SecretRefused as error:
        faults.append(f"{error} {error.hint}".strip())
    return State(site.site, name, secret, source, tuple(dict.fromkeys(faults)), span, "".join(unseen))


def _look(site: Site, name: str, secret: Secret, faults: list[str], unseen: list[str]) -> Span | None:
    here = Path(secret.source or "")
    if secret.kind == "transfer" or (secret.kind == "path" and site.backend == "local"):
        faults += find_openings(here, Trust(os.geteuid()))
    elif secret.kind == "proxy" and secret.source is None:
        unseen.append("is the one that DIRAC gives each job: only the nodes can see it")
    elif secret.kind == "proxy":
        span = read_proxy(here)
        faults += find_openings(here, Trust(os.geteuid()))
        return span
    elif secret.kind == "sealed":
        sealed, certificate = read_sealed(name, secret).sealed, Path(secret.certificate or "")
        if site.backend == "local" or certificate.is_file():
            check_recipient(sealed, certificate)
        else:
            unseen.append(f"is sealed for {'; '.join(sealed.recipients)}. Whether that is {certificate} of the nodes, "
                          "only they can see")  # fmt: skip
        return sealed_span(sealed)
    return None


def faults_for(a: Assembled, state: State, step_name: str, now: datetime) -> Iterator[str]:
    """Why a step that is sent now could not use the secret; each with its line in the site's file."""
    step, site = a.campaign.steps[step_name], a.sites[state.site]
    where = state.secret.source or state.secret.service or "of DIRAC"
    for fault in state.faults:
        yield state.say(f"secret {state.name} of site {site.site} ({where}): {fault}")
    if state.span is None:
        return
    what = f"{state.span.what} of secret {state.name} at site {site.site} ({where})"
    parts = (Part(MARGIN_S, "to be renewed"),) if state.secret.renewed else time_of_job(step, site)
    asked = a.source.place(("steps", step_name, "secrets", step.secrets.index(state.name)))
    told = (
        find_early(what, state.span.since, now),
        find_shortfall(what, state.span.until, f"{step_name} ({asked})", parts, now),
    )
    yield from (state.say(fault) for fault in told if fault)


def find_unfit(a: Assembled, pairs: Pairs, now: datetime) -> list[str]:
    """Why these steps cannot be sent to these sites now, for each of their secrets.

    `path` is not looked at: it is a matter of the node.
    """
    found = list[str]()
    seen: dict[tuple[str, str], State] = {}
    for step_name, site_name in dict.fromkeys(pairs):
        site = a.sites[site_name]
        for name in a.campaign.steps[step_name].secrets:
            if site.secrets[name].kind == "path":
                continue
            if (site_name, name) not in seen:
                seen[site_name, name] = look_at(site, a.site_sources[site_name], name)
            found += faults_for(a, seen[site_name, name], step_name, now)
    return list(dict.fromkeys(found))


def refuse_unfit(a: Assembled, pairs: Pairs, now: datetime, way: str) -> None:
    """Raise SecretRefused, with all that is wrong, where a step's secrets will not do. `way`: what to do next."""
    if found := find_unfit(a, pairs, now):
        raise SecretRefused("\n".join(found), way)


def look_again(campaign: Path | None, sites: Iterable[str], folders: Iterable[Path], parameters: Iterable[str]) -> str:
    """What looks at these secrets again, as it can be pasted. Without a file (a command): all that the sites offer."""
    options = [("--site", site) for site in sites] + [("--sites", str(folder)) for folder in folders]
    options += [("--set", each) for each in parameters] if campaign else []
    words = ["fermigrid", "secret", "check", *([str(campaign)] if campaign else []), *(w for o in options for w in o)]
    return f"To look again: {shlex.join(words)}"


def all_pairs(a: Assembled) -> list[tuple[str, str]]:
    """Every step at every site of the campaign."""
    return [(step, site) for step in a.campaign.steps for site in a.sites]


def with_sealed(a: Assembled) -> Assembled:
    """The campaign with the sealed secrets that its steps name, as they are now; why where one cannot be read."""
    found: dict[tuple[str, str], SealedFiles | str] = {}
    for step_name, site_name in all_pairs(a):
        site = a.sites[site_name]
        for name in a.campaign.steps[step_name].secrets:
            secret = site.secrets.get(name)
            if secret is None or secret.kind != "sealed" or (site_name, name) in found:
                continue
            try:
                found[site_name, name] = read_sealed(name, secret)
            except SecretRefused as error:
                what = f"secret {name} of site {site_name}: {error} {error.hint}".strip()
                found[site_name, name] = str(a.site_sources[site_name].problem(("secrets", name), what))
    return replace(a, sealed=found) if found else a
