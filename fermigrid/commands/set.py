"""`fermigrid set`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument, json_option


@click.command("set")
@campaign_argument
@click.argument("values", nargs=-1, metavar="[KEY=VALUE]...")
@json_option
def command(campaign: str, values: tuple[str, ...], as_json: bool) -> None:
    """Change limits, weights, drains and priority of CAMPAIGN while it goes on; without KEY=VALUE: what is in force.

    KEY is limits.running, limits.starts, limits.steps.STEP.running, limits.sites.SITE.starts, ..., sites.SITE (a
    weight, drain or undrain), priority. VALUE: a number; for limits also none; default takes back what was set.
    """
    from fermigrid.commands.following import following, locate, make_hand
    from fermigrid.commands.tables import print_json, print_table
    from fermigrid.ledger_file import BUSY_S, writing
    from fermigrid.live import in_force, set_values

    folder = locate(campaign)
    if values:
        with following(folder, make_hand()) as f, writing(folder.ledger, BUSY_S):
            for words in set_values(f, values):
                click.echo(words, err=True)
    with following(folder, make_hand(), archived=True) as f:
        rows = in_force(f)
    if as_json:
        print_json([{"key": row.key, "value": row.value, "from": row.source} for row in rows])
    else:
        print_table(["key", "value", "from"], [[r.key, "none" if r.value is None else r.value, r.source] for r in rows])
