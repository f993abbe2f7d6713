"""`fermigrid ban`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument


@click.command("ban")
@campaign_argument
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.option("--site", "-s", metavar="SITE", help="The node's site, where the campaign has several.")
@click.option("--why", default="", metavar="TEXT", help="For status and the campaign's history.")
def command(campaign: str, nodes: tuple[str, ...], site: str | None, why: str) -> None:
    """Send no more jobs of CAMPAIGN to NODE; those that run there go on."""
    from fermigrid.commands.following import following, locate, make_hand
    from fermigrid.ledger_file import BUSY_S, writing
    from fermigrid.live import ban_nodes
    from fermigrid.quoting import refuse_control

    folder = locate(campaign)
    with following(folder, make_hand()) as f, writing(folder.ledger, BUSY_S):
        for words in ban_nodes(f, nodes, site, refuse_control(why, "--why")):
            click.echo(words)
