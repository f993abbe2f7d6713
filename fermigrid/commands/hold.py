"""`fermigrid hold`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument, job_option, run_option, step_option


@click.command("hold")
@campaign_argument
@step_option
@run_option
@job_option
def command(campaign: str, steps: tuple[str, ...], runs: tuple[str, ...], jobs: tuple[str, ...]) -> None:
    """Keep waiting jobs of CAMPAIGN from starting, until they are released."""
    from fermigrid.commands.following import control_campaign
    from fermigrid.units import show_count

    click.echo(f"held: {show_count(control_campaign(campaign, 'hold', steps, runs, jobs), 'job')}")
