"""`fermigrid remove`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument, job_option, run_option, step_option


@click.command("remove")
@campaign_argument
@step_option
@run_option
@job_option
def command(campaign: str, steps: tuple[str, ...], runs: tuple[str, ...], jobs: tuple[str, ...]) -> None:
    """Take jobs of CAMPAIGN out of the queue for good: all, those of a STEP or a RUN, or some by name."""
    from fermigrid.commands.following import control_campaign
    from fermigrid.units import show_count

    click.echo(f"removed: {show_count(control_campaign(campaign, 'remove', steps, runs, jobs), 'job')}")
