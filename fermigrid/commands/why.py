"""`fermigrid why`."""

from __future__ import annotations

import json

import click

from fermigrid.commands.options import campaign_argument, job_argument, json_option


@click.command("why")
@campaign_argument
@job_argument
@click.option("--lines", default=15, show_default=True, help="How many lines of its log.")
@json_option
def command(campaign: str, job: str, lines: int, as_json: bool) -> None:
    """Why JOB of CAMPAIGN waits, is held, or failed: in words, with the tail of its log."""
    from fermigrid.commands.following import following, locate, make_hand, refresh
    from fermigrid.commands.logs import without_report
    from fermigrid.commands.tables import print_json
    from fermigrid.explain import explain_job
    from fermigrid.find_job import find_job, read_log

    with following(locate(campaign), make_hand()) as f:
        problems = refresh(f)
        found = find_job(f.ledger, f.folder, job)[-1]
        words = [*problems, *explain_job(f.ledger, f.folder, found)]
        log = without_report(read_log(found, f.folder) or b"").decode(errors="replace").splitlines()
    tail = log[-lines:] if lines else []
    if as_json:
        state = {"job": job, "state": found.record.state, "batch": found.batch.name, "why": words, "log": tail}
        print_json(json.loads(json.dumps(state)))
        return
    click.echo(f"{job}: {found.record.state} ({found.batch.name} at {found.batch.site})")
    for sentence in words:
        click.echo(f"  {sentence}")
    if tail:
        click.echo(f"the end of its log ({found.log}):" if found.log.is_file() else "the end of its log:")
        for line in tail:
            click.echo(f"  | {line}")
