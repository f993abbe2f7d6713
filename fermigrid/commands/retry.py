"""`fermigrid retry`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument, job_option, run_option, step_option, yes_option


@click.command("retry")
@campaign_argument
@step_option
@run_option
@job_option
@click.option("--failed", is_flag=True, help="Only jobs that failed, not those that were removed.")
@yes_option
def command(
    campaign: str, steps: tuple[str, ...], runs: tuple[str, ...], jobs: tuple[str, ...], failed: bool, yes: bool
) -> None:
    """Do jobs of CAMPAIGN again that failed or were removed: all, those of a STEP or a RUN, or some by name.

    What waits for them follows by itself. What was made without them is made again, too.
    """
    from fermigrid.commands.redoing import do_again
    from fermigrid.redo import plan_retry

    do_again(campaign, lambda f: plan_retry(f, steps, runs, jobs, failed), yes)
