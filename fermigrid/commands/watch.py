"""`fermigrid watch`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument


@click.command("watch")
@campaign_argument
@click.option("--once", is_flag=True, help="One look, then end: for cron.")
def command(campaign: str, once: bool) -> int:
    """Follow CAMPAIGN until its last job has ended: take in results, submit what is ready.

    Ctrl-C ends the watching, not the jobs.
    """
    from fermigrid.commands.following import follow, following, locate, make_hand, tell_holds
    from fermigrid.ledger import writing
    from fermigrid.standing import standing_of
    from fermigrid.watch import watch_once

    folder = locate(campaign)
    with following(folder, make_hand()) as f:
        if once:
            with writing(folder.ledger):
                turn = watch_once(f)
            for problem in turn.problems:
                click.echo(problem, err=True)
            tell_holds(f, set())
            standing = standing_of(f)
        else:
            standing = follow(f)
    click.echo(f"{f.assembled.campaign.campaign}: {standing.headline}")
    return 0 if standing.good else 1
