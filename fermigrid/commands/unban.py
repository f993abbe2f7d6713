"""`fermigrid unban`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument


@click.command("unban")
@campaign_argument
@click.argument("nodes", nargs=-1, required=True, metavar="NODE...")
@click.option("--site", "-s", metavar="SITE", help="Only at this site.")
def command(campaign: str, nodes: tuple[str, ...], site: str | None) -> None:
    """Let a banned NODE have jobs of CAMPAIGN again."""
    from fermigrid.commands.following import following, locate, make_hand
    from fermigrid.ledger_file import BUSY_S, writing
    from fermigrid.live import unban_nodes

    folder = locate(campaign)
    with following(folder, make_hand()) as f, writing(folder.ledger, BUSY_S):
        for words in unban_nodes(f, nodes, site):
            click.echo(words)
