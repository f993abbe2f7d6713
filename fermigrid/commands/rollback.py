"""`fermigrid rollback`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument, parse_parameters, yes_option


@click.command("rollback")
@campaign_argument
@click.option("--run", "runs", multiple=True, required=True, metavar="RUN", help="Which run.")
@click.option(
    "--from-step", metavar="STEP", help="From this step on, with all that comes after it; default: all steps."
)
@click.option(
    "--set", "parameters", multiple=True, metavar="NAME=VALUE", help="A parameter, or the version, from then on."
)
@yes_option
def command(
    campaign: str, runs: tuple[str, ...], from_step: str | None, parameters: tuple[str, ...], yes: bool
) -> None:
    """Do runs of CAMPAIGN again. Their old outputs are moved away, or stay where they are at storage sites; nothing is
    deleted."""
    from fermigrid.commands.redoing import do_again
    from fermigrid.redo import plan_rollback

    settings, names = parse_parameters(parameters), tuple(dict.fromkeys(runs))
    do_again(campaign, lambda f: plan_rollback(f, names, from_step, settings), yes)
