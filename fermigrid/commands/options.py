"""Options that several verbs share."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fermigrid.access import Trust

F = TypeVar("F", bound=Callable[..., Any])


def _named(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value == "":  # of a script whose variable is not set
        raise click.BadParameter("it is empty")
    return value


site_option = click.option(
    "--site", "-s", metavar="SITE", callback=_named, help="Send everything there, whatever the campaign says."
)
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


def search_folders(own: tuple[Path, ...], trust: Trust | None = None, *, is_to_be: bool = False) -> tuple[Path, ...]:
    """Where site files are looked for; `is_to_be`: the first may be made yet. Raises NotFound for one that is no
    folder, AccessRefused for one that others can write."""
    from fermigrid.access import check_folder, trust_of
    from fermigrid.assemble import site_folders

    *named, shipped = site_folders([folder.resolve() for folder in own], os.environ)
    missing = {folder: why for folder in named if (why := _why_no_folder(folder))}
    if is_to_be and named and not os.path.lexists(named[0]):
        missing.pop(named[0])
    _refuse_missing(missing)
    for folder in named:
        if os.path.lexists(folder):
            check_folder(folder, "the folder of site files", trust or trust_of(os.environ))
    return (*named, shipped)


def _why_no_folder(folder: Path) -> str:
    """Why there are no files to be found; empty when it is a folder."""
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            return "is a file, not a folder"
        return "" if os.access(folder, os.R_OK | os.X_OK) else "you may not read it"
    except FileNotFoundError:
        return "there is no such folder"
    except OSError as error:
        return f"cannot be reached: {error.strerror}"


def _refuse_missing(missing: dict[Path, str]) -> None:
    from fermigrid.errors import NotFound

    if missing:
        text = "\n".join(f"FERMIGRID_SITES names {folder}: {why}" for folder, why in missing.items())
        raise NotFound(text, "Correct the variable (folders of site files, separated by ':'), or make the folder.")


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
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
run_option = click.option("--run", "runs", multiple=True, help="Only the jobs of this run.")
job_option = click.option("--job", "jobs", multiple=True, help="Only this job.")
