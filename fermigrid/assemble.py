"""Everything that a plan is made of, read from the files that people wrote: campaign, sites, catalogue, runs, code."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fermigrid.campaign import Campaign
from fermigrid.code import Bundle, pack_code
from fermigrid.config import Source, nearest, parse_yaml, read_text, validate
from fermigrid.errors import ConfigError, Problem
from fermigrid.image import Catalogue
from fermigrid.resources import shipped
from fermigrid.runs import Run, load_runs
from fermigrid.site import Site, load_catalogue, load_site


@dataclass(frozen=True)
class Assembled:
    """A campaign with all that it refers to; `folder` is where relative paths of the campaign start from."""

    campaign: Campaign
    source: Source
    text: str
    folder: Path
    sites: Mapping[str, Site]
    catalogue: Catalogue
    runs: tuple[Run, ...]
    bundle: Bundle | None


def site_folders(own: Sequence[Path], environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where site files are looked for: `--sites`, then FERMIGRID_SITES (separated by ':'), then the shipped ones."""
    named = [Path(part) for part in environment.get("FERMIGRID_SITES", "").split(os.pathsep) if part]
    return (*own, *named, shipped("sites"))


def assemble_file(path: Path, site: str | None, parameters: Mapping[str, str], folders: Sequence[Path]) -> Assembled:
    """Read a campaign file and what it names; `site` and `parameters` are the command line's. Raises ConfigError."""
    text = read_text(path)
    data, source = parse_yaml(text, str(path))
    return _assemble(validate(Campaign, data, source), source, text, path.parent.resolve(), site, parameters, folders)


def assemble_data(data: Mapping[str, Any], text: str, folder: Path, site: str, folders: Sequence[Path]) -> Assembled:
    """The same for a one-off job that was given on the command line."""
    source = Source("command line")
    return _assemble(validate(Campaign, dict(data), source), source, text, folder, site, {}, folders)


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
        text_ = f"--set {name}: the campaign has no such parameter{nearest(name, known)} It has: {', '.join(known) or 'none'}"
        problems.append(source.problem(("parameters",), text_))
    campaign = campaign.model_copy(update={"parameters": {**campaign.parameters, **parameters}})
    names = [site] if site else sorted(campaign.sites)
    if not names:
        problems.append(source.problem(("sites",), "names no site: write sites: {slac: 70, in2p3: 30}, or give --site"))
    sites = {name: found[0] for name in names if (found := attempt(load_site, name, folders))}
    catalogue = attempt(load_catalogue, folders)
    runs = attempt(load_runs, campaign.runs, folder, source)
    programs = frozenset(step.command[0].removeprefix("./") for step in campaign.steps.values())
    bundle = attempt(pack_code, campaign.code, folder, programs, source)
    if problems:
        raise ConfigError(problems)
    return Assembled(campaign, source, text, folder, sites, catalogue, runs, bundle)
