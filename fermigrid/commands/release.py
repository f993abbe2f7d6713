"""`fermigrid release`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument, job_option, run_option, step_option


@click.command("release")
@campaign_argument
@step_option
@run_option
@job_option
def command(campaign: str, steps: tuple[str, ...], runs: tuple[str, ...], jobs: tuple[str, ...]) -> None:
    """Let held jobs of CAMPAIGN go on."""
    from fermigrid.commands.following import control_campaign
    from fermigrid.units import show_count

    click.echo(f"released: {show_count(control_campaign(campaign, 'release', steps, runs, jobs), 'job')}")
