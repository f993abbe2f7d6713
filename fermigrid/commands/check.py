"""`fermigrid check`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fermigrid.commands.options import (
    checked,
    json_option,
    parse_parameters,
    search_folders,
    set_option,
    site_option,
    sites_option,
)

if TYPE_CHECKING:
    from fermigrid.effective import Section
    from fermigrid.plan import Assembled


@click.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@site_option
@set_option
@sites_option
@click.option("--explain", is_flag=True, help="Every effective value, with the file and line that it comes from.")
@json_option
def command(
    file: Path, site: str | None, parameters: tuple[str, ...], folders: tuple[Path, ...], explain: bool, as_json: bool
) -> None:
    """Validate a campaign FILE and everything it refers to; send nothing.

    All errors are shown at once, each with file:line, the key, the value and what is allowed.
    """
    from datetime import UTC, datetime

    from fermigrid.secret_check import all_pairs, look_again, refuse_unfit

    search = search_folders(folders)
    assembled = checked(file, site, parameters, search)
    if explain:
        _explain(assembled, site, parameters, search, as_json)
        return
    again = look_again(file, [site] if site else [], folders, parameters)
    refuse_unfit(assembled, all_pairs(assembled), datetime.now(UTC), again)
    if as_json:
        _print_json(file, assembled)
    else:
        _print(file, assembled)


def _print(file: Path, assembled: Assembled) -> None:
    from fermigrid.advance import blocks_of
    from fermigrid.split import count_jobs
    from fermigrid.units import show_count

    campaign = assembled.campaign
    blocks = blocks_of(campaign, assembled.runs)
    in_blocks = f" in {blocks} blocks" if blocks > 1 else ""
    click.echo(f"{file}: good. Campaign {campaign.campaign}, {show_count(len(assembled.runs), 'run')}{in_blocks}")
    for name, step in campaign.steps.items():
        click.echo(f"  {name}: {show_count(count_jobs(step, assembled.runs), 'job')}")
    if assembled.sites:
        click.echo(f"  sites: {', '.join(assembled.sites)}")
    else:
        click.echo("  not checked against a site: give --site, or write sites: into the campaign")


def _print_json(file: Path, assembled: Assembled) -> None:
    from fermigrid.advance import blocks_of
    from fermigrid.commands.tables import print_json
    from fermigrid.split import count_jobs

    campaign = assembled.campaign
    print_json(
        {
            "file": str(file),
            "campaign": campaign.campaign,
            "runs": len(assembled.runs),
            "blocks": blocks_of(campaign, assembled.runs),
            "jobs": {name: count_jobs(step, assembled.runs) for name, step in campaign.steps.items()},
            "sites": list(assembled.sites),
        }
    )


def _explain(
    assembled: Assembled, site: str | None, parameters: tuple[str, ...], search: Sequence[Path], as_json: bool
) -> None:
    from fermigrid.commands.tables import print_json, print_values
    from fermigrid.effective import CommandLine, explain
    from fermigrid.inherit import read_site
    from fermigrid.resources import shipped

    said = CommandLine(site, parse_parameters(parameters))
    texts = {name: read_site(name, search) for name in assembled.sites}
    sections = list(explain(assembled, texts, said, shipped("submit_templates")))
    if as_json:
        print_json([row for section in sections for row in _rows(section)])
        return
    print_values([(section.title, section.values) for section in sections if section.values])


def _rows(section: Section) -> list[dict[str, Any]]:
    from fermigrid.commands.tables import value_json

    place = {"section": section.title, "site": section.site or None, "step": section.step or None}
    return [{**place, **value_json(value)} for value in section.values]
