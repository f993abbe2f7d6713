"""`fermigrid resume`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument


@click.command("resume")
@campaign_argument
@click.option("--reason", default="", metavar="TEXT", help="Why it may go on: for the campaign's history.")
@click.option("--quota", "quotas", multiple=True, metavar="SITE=BYTES", help="What is there for its outputs, in all.")
@click.option("--suggested", is_flag=True, help="The rest asks for the resources that the trial suggests.")
@click.option("--early", is_flag=True, help="Though jobs of the trial are still on their way.")
def command(campaign: str, reason: str, quotas: tuple[str, ...], suggested: bool, early: bool) -> None:
    """Let CAMPAIGN go on after its trial, or after the circuit breaker stopped it, and send what is ready."""
    from fermigrid.commands.following import following, locate, make_hand
    from fermigrid.ledger_file import BUSY_S, writing
    from fermigrid.resume import resume
    from fermigrid.standing import standing_of
    from fermigrid.watch import look, send

    folder, given = locate(campaign), _quotas(quotas)
    with following(folder, make_hand()) as f, writing(folder.ledger, BUSY_S):
        look(f)
        done = resume(f, reason, given, suggested=suggested, early=early)
    with following(folder, make_hand()) as f, writing(folder.ledger, BUSY_S):  # with what it asks for now
        send(f)
        standing = standing_of(f)
    for words in done or ["nothing stood in its way"]:
        click.echo(words, err=True)
    click.echo(f"{f.assembled.campaign.campaign}: {standing.headline}")


def _quotas(written: tuple[str, ...]) -> dict[str, int]:
    from fermigrid.units import parse_bytes

    found = {}
    for item in written:
        site, equals, text = item.partition("=")
        try:
            found[site] = parse_bytes(text) if equals else 0
        except ValueError as error:
            raise click.UsageError(f"--quota {item}: {error}") from error
        if not equals:
            raise click.UsageError(f"--quota takes SITE=BYTES, such as slac='20 TB', not {item!r}")
    return found
