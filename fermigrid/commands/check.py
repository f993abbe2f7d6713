"""`fermigrid check`."""

from __future__ import annotations

from pathlib import Path

import click

from fermigrid.commands.options import checked, search_folders, set_option, site_option, sites_option


@click.command("check")
@click.argument("file", type=click.Path(path_type=Path))
@site_option
@set_option
@sites_option
def command(file: Path, site: str | None, parameters: tuple[str, ...], folders: tuple[Path, ...]) -> None:
    """Validate a campaign FILE and everything it refers to; send nothing.

    All errors are shown at once, each with file:line, the key, the value and what is allowed.
    """
    from fermigrid.advance import blocks_of
    from fermigrid.split import count_jobs
    from fermigrid.units import show_count

    assembled = checked(file, site, parameters, search_folders(folders))
    campaign = assembled.campaign
    blocks = blocks_of(campaign, assembled.runs)
    in_blocks = f" in {blocks} blocks" if blocks > 1 else ""
    click.echo(f"{file}: good. Campaign {campaign.campaign}, {len(assembled.runs)} runs{in_blocks}")
    for name, step in campaign.steps.items():
        click.echo(f"  {name}: {show_count(count_jobs(step, assembled.runs), 'job')}")
    if assembled.sites:
        click.echo(f"  sites: {', '.join(assembled.sites)}")
    else:
        click.echo("  not checked against a site: give --site, or write sites: into the campaign")
