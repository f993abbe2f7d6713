"""`fermigrid site`."""

from __future__ import annotations

from pathlib import Path

import click

from fermigrid.commands.options import json_option, search_folders, sites_option


@click.group("site")
def command() -> None:
    """List, show and check sites."""


@command.command("list")
@sites_option
@json_option
def list_sites(folders: tuple[Path, ...], as_json: bool) -> None:
    """The sites that can be used, with contact and manual."""
    from fermigrid.commands.tables import print_json, print_table
    from fermigrid.site import load_site, site_names

    search = search_folders(folders)
    columns = ("site", "title", "backend", "contact", "manual")
    sites = [load_site(name, search)[0] for name in site_names(search)]
    if as_json:
        print_json([{name: getattr(site, name) for name in columns} for site in sites])
    else:
        print_table(columns, [[getattr(site, name) for name in columns] for site in sites])


@command.command("show")
@click.argument("name")
@sites_option
def show(name: str, folders: tuple[Path, ...]) -> None:
    """Everything that is known of a site, defaults included."""
    from fermigrid.commands.tables import print_json
    from fermigrid.site import load_site

    site, source = load_site(name, search_folders(folders))
    click.echo(f"# {source.file}", err=True)
    print_json(site.model_dump(mode="json", by_alias=True))


@command.command("check")
@click.argument("names", nargs=-1)
@sites_option
def check(names: tuple[str, ...], folders: tuple[Path, ...]) -> None:
    """Validate site files (all without NAMES) and the image catalogue."""
    from fermigrid.errors import ConfigError, Problem
    from fermigrid.site import load_catalogue, load_site, site_names

    search = search_folders(folders)
    problems: list[Problem] = []
    for name in names or site_names(search):
        try:
            _, source = load_site(name, search)
            click.echo(f"{source.file}: good")
        except ConfigError as error:
            problems += error.problems
    try:
        load_catalogue(search)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
