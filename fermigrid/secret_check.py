"""The secrets of the steps that are about to be sent: looked at on this machine, and refused where they will not do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from fermigrid.access import Trust
from fermigrid.campaign import Step
from fermigrid.errors import SecretRefused
from fermigrid.lifetime import MARGIN_S, Part, find_early, find_shortfall, time_of_job
from fermigrid.plan import Assembled
from fermigrid.sealed import SealedFiles
from fermigrid.secret import Secret
from fermigrid.secret_files import Span, check_signer, find_openings, read_proxy, read_sealed, sealed_span
from fermigrid.site import Site

Pairs = Iterable[tuple[str, str]]  # (step, site)


@dataclass(frozen=True)
class State:
    """A secret as it is now: its faults, and when it ends where that can be told."""

    site: str
    name: str
    secret: Secret
    faults: tuple[str, ...]
    span: Span | None


def look_at(site: Site, name: str) -> State:
    """What can be seen here of a secret of a site. The clock plays no part."""
    secret, faults = site.secrets[name], list[str]()
    span = None
    try:
        span = _look(site, name, secret, faults)
    except SecretRefused as error:
        faults.append(f"{error} {error.hint}".strip())
    return State(site.site, name, secret, tuple(dict.fromkeys(faults)), span)


def _look(site: Site, name: str, secret: Secret, faults: list[str]) -> Span | None:
    here = Path(secret.source or "")
    if secret.kind == "transfer" or (secret.kind == "path" and site.backend == "local"):
        faults += find_openings(here, Trust(os.geteuid()))
    elif secret.kind == "proxy":
        span = read_proxy(here)
        faults += find_openings(here, Trust(os.geteuid()))
        return span
    elif secret.kind == "sealed":
        files = read_sealed(name, secret)
        check_signer(files, Path(secret.signer or ""))
        return sealed_span(files.sealed)
    return None


def faults_for(state: State, step_name: str, step: Step, site: Site, now: datetime) -> Iterator[str]:
    """Why a step that is sent now could not use the secret."""
    where = state.secret.source or state.secret.service
    for fault in state.faults:
        yield f"secret {state.name} of site {site.site} ({where}): {fault}"
    if state.span is None:
        return
    what = f"{state.span.what} of secret {state.name} at site {site.site} ({where})"
    parts = (Part(MARGIN_S, "to be renewed"),) if state.secret.renewed else time_of_job(step, site)
    if early := find_early(what, state.span.since, now):
        yield early
    if short := find_shortfall(what, state.span.until, step_name, parts, now):
        yield short


def find_unfit(a: Assembled, pairs: Pairs, now: datetime) -> list[str]:
    """Why these steps cannot be sent to these sites now, for each of their secrets.

    `path` is not looked at: it is a matter of the node.
    """
    found = list[str]()
    seen: dict[tuple[str, str], State] = {}
    for step_name, site_name in dict.fromkeys(pairs):
        step, site = a.campaign.steps[step_name], a.sites[site_name]
        for name in step.secrets:
            if site.secrets[name].kind == "path":
                continue
            if (site_name, name) not in seen:
                seen[site_name, name] = look_at(site, name)
            state = seen[site_name, name]
            found += faults_for(state, step_name, step, site, now)
    return list(dict.fromkeys(found))


def refuse_unfit(a: Assembled, pairs: Pairs, now: datetime) -> None:
    """Raise SecretRefused, with all that is wrong, where a step's secrets will not do."""
    if found := find_unfit(a, pairs, now):
        hint = "It is not sent. `fermigrid secret check` looks again; the same command, or `fermigrid watch`, goes on."
        raise SecretRefused("\n".join(found), hint)


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
                found[site_name, name] = f"secret {name} of site {site_name}: {error}"
    return replace(a, sealed=found) if found else a
