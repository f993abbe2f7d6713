"""Everything that a plan is made of, read from the files that people wrote: campaign, sites, catalogue, runs, code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fermigrid.campaign import Campaign
from fermigrid.code import pack_code, unpack_names
from fermigrid.config import Source, nearest, parse_yaml, read_text, validate
from fermigrid.errors import ConfigError, NotFound, Problem
from fermigrid.plan import Assembled
from fermigrid.records import CampaignRecord
from fermigrid.resources import shipped
from fermigrid.runfolder import RunFolder
from fermigrid.runs import load_runs, parse_table
from fermigrid.site import Site, load_catalogue, load_site


def site_folders(own: Sequence[Path], environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where site files are looked for: `--sites`, then FERMIGRID_SITES (separated by ':'), then the shipped ones."""
    named = [Path(part) for part in environment.get("FERMIGRID_SITES", "").split(os.pathsep) if part]
    return (*own, *named, shipped("sites"))


def assemble_file(path: Path, site: str | None, parameters: Mapping[str, str], folders: Sequence[Path]) -> Assembled:
    """Read a campaign file and what it names; `site` and `parameters` are the command line's. Raises ConfigError."""
    text = read_text(path)
    data, source = parse_yaml(text, str(path))
    return _assemble(validate(Campaign, data, source), source, text, path.parent.resolve(), site, parameters, folders)


def assemble_data(data: Mapping[str, Any], folder: Path, site: str, folders: Sequence[Path]) -> Assembled:
    """The same for a one-off job from the command line, as if it had been written in a file."""
    text = yaml.safe_dump(dict(data), sort_keys=False, width=10**9)
    parsed, source = parse_yaml(text, "command line")
    found = Source("command line", dict.fromkeys(source.lines, 0))
    return _assemble(validate(Campaign, parsed, found), found, text, folder, site, {}, folders)


def assemble_kept(folder: RunFolder, record: CampaignRecord) -> Assembled:
    """A submitted campaign, from the copies in its run folder: later changes of its files do not reach it."""
    text = read_text(folder.campaign)
    data, source = parse_yaml(text, str(folder.campaign))
    campaign = validate(Campaign, data, source)
    campaign = campaign.model_copy(update={"parameters": record.parameters})
    folders = tuple(sorted(folder.sites.iterdir(), key=lambda kept: int(kept.name)))
    sites = {name: load_site(name, folders)[0] for name in ([record.site] if record.site else campaign.sites)}
    if campaign.runs.table is None:
        runs = load_runs(campaign.runs, folder.path, source)
    else:
        runs = parse_table(read_text(folder.runs), str(folder.runs))
    bundle = unpack_names(folder.bundle.read_bytes()) if campaign.code else None
    return Assembled(campaign, source, text, Path(record.folder), sites, load_catalogue(folders), runs, bundle)


def _assemble(
    campaign: Campaign,
    source: Source,
    text: str,
    folder: Path,
    site: str | None,
    parameters: Mapping[str, str],
    folders: Sequence[Path],
) -> Assembled:
    problems: list[Problem] = []

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
    for name in names:
        try:
            sites[name], _ = load_site(name, folders)
        except ConfigError as error:
            problems += error.problems
        except NotFound as error:
            if site:
                raise
            problems.append(source.problem(("sites", name), f"{error} {error.hint}"))
    catalogue = attempt(load_catalogue, folders)
    runs = attempt(load_runs, campaign.runs, folder, source)
    programs = frozenset(step.command[0].removeprefix("./") for step in campaign.steps.values())
    bundle = attempt(pack_code, campaign.code, folder, programs, source)
    if problems:
        raise ConfigError(problems)
    return Assembled(campaign, source, text, folder, sites, catalogue, runs, bundle)
