"""`fermigrid audit`."""

from __future__ import annotations

from pathlib import Path

import click

from fermigrid.commands.options import campaign_argument, json_option


@click.command("audit")
@campaign_argument
@click.option("--run", "runs", metavar="RUN", multiple=True, help="Only this run.")
@click.option("--quick", is_flag=True, help="Ask for the outputs' sizes only; open and read none.")
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write a table of all outputs: what made each, of which inputs, and what was found.")  # fmt: skip
@json_option
def command(campaign: str, runs: tuple[str, ...], quick: bool, csv_file: Path | None, as_json: bool) -> int:
    """Compare CAMPAIGN with its run table: every job, output, number of events and input. Exits with 1 when something
    is off, with 0 and one line when all is well."""
    from fermigrid.audit_campaign import CampaignAudit, Subject
    from fermigrid.commands.auditing import show_audit
    from fermigrid.commands.following import following, locate, make_hand, refresh

    with following(locate(campaign), make_hand(), archived=True) as f:
        for problem in refresh(f):
            click.echo(problem, err=True)
        audit = CampaignAudit(Subject(f.ledger, f.assembled, f.folder.outputs), quick, runs)
        return 0 if show_audit(f.assembled.campaign.campaign, audit, as_json, csv_file) else 1
