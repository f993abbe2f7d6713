"""Options that several verbs share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fermigrid.access import Trust

F = TypeVar("F", bound=Callable[..., Any])

site_option = click.option("--site", "-s", metavar="SITE", help="Send everything there, whatever the campaign says.")
sites_option = click.option(
    "--sites",
    "folders",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with site files and images.yaml of my own; it comes before the shipped ones. Also: FERMIGRID_SITES.",
)
set_option = click.option(
    "--set", "parameters", multiple=True, metavar="NAME=VALUE", help="Set a parameter of the campaign."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
campaign_argument = click.argument("campaign")
job_argument = click.argument("job")


def parse_parameters(written: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` of the command line."""
    from fermigrid.quoting import refuse_control

    found = {}
    for item in written:
        name, equals, value = item.partition("=")
        if not equals:
            raise click.UsageError(f"--set takes NAME=VALUE, not {item!r}")
        found[name] = refuse_control(value, f"--set {name}")
    return found


def search_folders(own: tuple[Path, ...], trust: Trust | None = None) -> tuple[Path, ...]:
    """Where site files are looked for. Raises AccessRefused for a folder that others can write."""
    from fermigrid.access import check_folder, trust_of
    from fermigrid.assemble import site_folders

    *named, shipped = site_folders([folder.resolve() for folder in own], os.environ)
    for folder in named:
        if folder.exists():
            check_folder(folder, "the folder of site files", trust or trust_of(os.environ))
    return (*named, shipped)


def checked(
    file: Path,
    site: str | None,
    parameters: tuple[str, ...],
    folders: tuple[Path, ...],
    trust: Trust | None = None,
) -> Any:
    """A campaign file, read and checked. Raises ConfigError with every problem."""
    from fermigrid.access import trust_of
    from fermigrid.assemble import assemble_file
    from fermigrid.check import find_problems
    from fermigrid.errors import ConfigError

    assembled = assemble_file(file, site, parse_parameters(parameters), folders, trust or trust_of(os.environ))
    if problems := find_problems(assembled):
        raise ConfigError(problems)
    return assembled


step_option = click.option("--step", "steps", multiple=True, help="Only the jobs of this step.")
job_option = click.option("--job", "jobs", multiple=True, help="Only this job.")
