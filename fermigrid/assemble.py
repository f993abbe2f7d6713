"""Everything that a plan is made of, read from the files that people wrote: campaign, sites, catalogue, runs, code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fermigrid.access import Trust
from fermigrid.campaign import Campaign
from fermigrid.code import pack_code, unpack_names
from fermigrid.config import Source, nearest, parse_yaml, read_text, validate
from fermigrid.errors import ConfigError, NotFound, Problem
from fermigrid.plan import Assembled
from fermigrid.records import CampaignRecord
from fermigrid.resources import shipped
from fermigrid.runfolder import RunFolder
from fermigrid.runs import load_runs, parse_table
from fermigrid.secret_check import with_sealed
from fermigrid.site import Site, load_site, read_catalogue


def site_folders(own: Sequence[Path], environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where site files are looked for: `--sites`, then FERMIGRID_SITES (separated by ':'), then the shipped ones."""
    named = [Path(part) for part in environment.get("FERMIGRID_SITES", "").split(os.pathsep) if part]
    return (*own, *named, shipped("sites"))


def assemble_file(
    path: Path,
    site: str | None,
    parameters: Mapping[str, str],
    folders: Sequence[Path],
    trust: Trust | None = None,
) -> Assembled:
    """Read a campaign file and what it names; `site` and `parameters` are the command line's. Raises ConfigError.

    `trust`: whose code may be used; None: one's own.
    """
    text = read_text(path)
    data, source = parse_yaml(text, str(path))
    campaign = validate(Campaign, data, source)
    return _assemble(campaign, source, text, path.parent.resolve(), site, parameters, folders, trust)


def assemble_data(
    data: Mapping[str, Any], folder: Path, site: str, folders: Sequence[Path], trust: Trust | None = None
) -> Assembled:
    """The same for a one-off job from the command line, as if it had been written in a file."""
    text = yaml.safe_dump(dict(data), sort_keys=False, width=10**9)
    parsed, source = parse_yaml(text, "command line")
    found = Source.of_lines("command line", dict.fromkeys(source.places, 0))
    return _assemble(validate(Campaign, parsed, found), found, text, folder, site, {}, folders, trust)


def assemble_kept(folder: RunFolder, record: CampaignRecord) -> Assembled:
    """A submitted campaign, from the copies in its run folder: later changes of its files do not reach it."""
    text = read_text(folder.campaign)
    data, source = parse_yaml(text, str(folder.campaign))
    campaign = validate(Campaign, data, source)
    campaign = campaign.model_copy(update={"parameters": record.parameters})
    folders = tuple(sorted(folder.sites.iterdir(), key=lambda kept: int(kept.name)))
    loaded = {name: load_site(name, folders) for name in ([record.site] if record.site else campaign.sites)}
    sites = {name: site for name, (site, _) in loaded.items()}
    places = {name: found for name, (_, found) in loaded.items()}
    if campaign.runs.table is None:
        runs = load_runs(campaign.runs, folder.path, source)
    else:
        runs = parse_table(read_text(folder.runs), str(folder.runs))
    bundle = unpack_names(folder.bundle.read_bytes()) if campaign.code else None
    catalogue, entries = read_catalogue(folders)
    folder_then = Path(record.folder)
    return with_sealed(Assembled(campaign, source, text, folder_then, sites, catalogue, runs, bundle, places, entries))


def _assemble(
    campaign: Campaign,
    source: Source,
    text: str,
    folder: Path,
    site: str | None,
    parameters: Mapping[str, str],
    folders: Sequence[Path],
    trust: Trust | None,
) -> Assembled:
    problems: list[Problem] = []
    hints: list[str] = []

    def attempt(read: Any, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    for name in sorted(set(parameters) - set(campaign.parameters)):
        known = sorted(campaign.parameters)
        what = f"--set {name}: the campaign has no such parameter{nearest(name, known)}"
        problems.append(source.problem(("parameters",), f"{what} It has: {', '.join(known) or 'none'}"))
    campaign = campaign.model_copy(update={"parameters": {**campaign.parameters, **parameters}})
    names = [site] if site else sorted(campaign.sites)
    sites: dict[str, Site] = {}
    places: dict[str, Source] = {}
    for name in names:
        try:
            sites[name], places[name] = load_site(name, folders)
        except ConfigError as error:
            problems += error.problems
            hints += [error.hint] if error.hint else []
        except NotFound as error:
            if site:
                raise
            problems.append(source.problem(("sites", name), f"{error} {error.hint}"))
    found = attempt(read_catalogue, folders)
    runs = attempt(load_runs, campaign.runs, folder, source)
    programs = frozenset(step.command[0].removeprefix("./") for step in campaign.steps.values())
    bundle = attempt(pack_code, campaign.code, folder, programs, source, trust)
    if problems:
        raise ConfigError(problems, "\n".join(hints))
    catalogue, entries = found
    return with_sealed(Assembled(campaign, source, text, folder, sites, catalogue, runs, bundle, places, entries))
