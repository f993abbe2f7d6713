"""`fermigrid site`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fermigrid.commands.options import json_option, search_folders, sites_option
from fermigrid.kinds import KINDS

if TYPE_CHECKING:
    from fermigrid.errors import Problem
    from fermigrid.image import Catalogue
    from fermigrid.inherit import SiteText


@click.group("site")
def command() -> None:
    """List, show, begin and check sites."""


@command.command("list")
@sites_option
@json_option
def list_sites(folders: tuple[Path, ...], as_json: bool) -> None:
    """The sites that can be used: what kind, what they extend, how many values are still to be asked for."""
    from fermigrid.commands.tables import print_json, print_table
    from fermigrid.errors import ConfigError, Problem
    from fermigrid.inherit import read_site, site_names

    search, problems = search_folders(folders), list[Problem]()
    rows = []
    for name in site_names(search):
        try:
            rows.append(_row(read_site(name, search)))
        except ConfigError as error:
            problems += error.problems
    if as_json:
        print_json(rows)
    else:
        columns = ("site", "kind", "extends", "open", "title")
        print_table(columns, [[row[name] if row[name] != "" else "-" for name in columns] for row in rows])
    if problems:
        raise ConfigError(problems)


def _row(site: SiteText) -> dict[str, Any]:
    from fermigrid.kinds import kind_of

    texts = {name: _text(site.data.get(name)) for name in ("title", "backend", "contact", "manual")}
    parent = site.parents[0] if site.parents else ""
    return {"site": site.name, "kind": kind_of(site.data), "extends": parent, "open": len(site.questions), **texts}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


@command.command("show")
@click.argument("name")
@sites_option
@json_option
@click.option("--yaml", "as_yaml", is_flag=True, help="Print YAML, as a site file that extends nothing.")
@click.option("--explain", is_flag=True, help="A table instead, with the file and line that each value comes from.")
def show(name: str, folders: tuple[Path, ...], as_json: bool, as_yaml: bool, explain: bool) -> None:
    """Everything that is known of a site, defaults included, over what it extends."""
    from fermigrid.commands.tables import print_json, print_values, value_json
    from fermigrid.effective import site_values
    from fermigrid.errors import ConfigError
    from fermigrid.inherit import read_site
    from fermigrid.site import wrong_values
    from fermigrid.values import as_tree, as_yaml_text

    if as_yaml and (as_json or explain):
        raise click.UsageError("--yaml goes with neither --json nor --explain")
    site = read_site(name, search_folders(folders))
    if problems := wrong_values(site):
        raise ConfigError(problems)
    for number, file in enumerate(site.files):
        click.echo(f"# {'extends ' if number else ''}{file}", err=True)
    values = list(site_values(site))
    if explain and as_json:
        print_json([value_json(value) for value in values])
    elif explain:
        print_values([(f"site {name}", values)])
    elif as_yaml:
        click.echo(as_yaml_text(values), nl=False)
    else:
        print_json(as_tree(values))


@command.command("new")
@click.argument("name")
@click.option("--extends", metavar="SITE", help="The site that it is to extend; its open questions are put in.")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Without --extends: what it is. Default: pool.")
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for it. Default: the first of --sites and FERMIGRID_SITES, else this one.",
)
@sites_option
def new(name: str, extends: str | None, kind: str | None, output: Path | None, folders: tuple[Path, ...]) -> None:
    """Write a site file to start from: NAME.yaml, with a question wherever only the site's people know."""
    from fermigrid.new_site import begin_site

    if extends and kind:
        raise click.UsageError("--extends or --kind, not both: a site is of the kind that it extends")
    search = search_folders(folders, is_to_be=output is None)
    own = search[:-1]  # the last are the shipped ones
    folder = output or (own[0] if own else Path())
    path = begin_site(name, extends, kind or "pool", folder, search)
    click.echo(str(path))
    if folder.resolve() not in {known.resolve() for known in own}:
        click.echo(f"fermigrid finds it with --sites {folder} or FERMIGRID_SITES={folder.resolve()}", err=True)
    click.echo(f"fill in each !ask, then: fermigrid site check {name}", err=True)


@command.command("check")
@click.argument("names", nargs=-1)
@sites_option
def check(names: tuple[str, ...], folders: tuple[Path, ...]) -> None:
    """Validate site files (all without NAMES) and the image catalogue.

    Values that are still to be asked for are a fault of a site that is named; of all others they are counted.
    """
    from fermigrid.errors import ConfigError, Problem
    from fermigrid.image import Catalogue
    from fermigrid.inherit import read_site, site_names
    from fermigrid.site import load_catalogue
    from fermigrid.units import show_count

    search = search_folders(folders)
    problems, hints = list[Problem](), list[str]()
    catalogue = Catalogue()
    try:
        catalogue = load_catalogue(search)
    except ConfigError as error:
        problems += error.problems
    for name in names or site_names(search):
        try:
            site = read_site(name, search)
        except ConfigError as error:
            problems += error.problems
            continue
        wrong = _find_wrong(site, catalogue)
        problems += wrong
        if names and site.questions:
            problems += site.open_problems()
            hints.append(site.way_out)
        elif not wrong:
            count = len(site.questions)
            still = f", {show_count(count, 'value')} still to be asked for" if count else ""
            click.echo(f"{site.files[0]}: good{still}")
    if problems:
        raise ConfigError(problems, "\n".join(hints))


def _find_wrong(site: SiteText, catalogue: Catalogue) -> list[Problem]:
    """Everything that is wrong with a site file; what only complete ones can be asked, too."""
    from fermigrid.check_site import find_site_problems, find_unusable_secrets
    from fermigrid.config import validate
    from fermigrid.site import Site, wrong_values

    if (wrong := wrong_values(site)) or site.questions:
        return wrong
    complete = validate(Site, site.data, site.source)
    return [*find_site_problems(complete, site.source, catalogue), *find_unusable_secrets(complete, site.source)]
