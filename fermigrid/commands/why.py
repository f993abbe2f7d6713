"""`fermigrid why`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument, job_argument, json_option


@click.command("why")
@campaign_argument
@job_argument
@click.option("--lines", default=15, show_default=True, help="How many lines of its log.")
@json_option
def command(campaign: str, job: str, lines: int, as_json: bool) -> None:
    """Why JOB of CAMPAIGN waits, is held, failed, or was not sent: in words, with the tail of its log."""
    from fermigrid.commands.following import following, locate, make_hand, refresh
    from fermigrid.commands.logs import without_report
    from fermigrid.commands.tables import print_json
    from fermigrid.errors import NotFound
    from fermigrid.explain import comes_back, explain_job
    from fermigrid.find_job import Found, find_job, read_log
    from fermigrid.unsent import explain_unsent

    found, earlier, back = None, list[Found](), None
    with following(locate(campaign), make_hand(), archived=True) as f:
        words = list(refresh(f))
        try:
            *earlier, found = find_job(f.ledger, f.folder, job)
        except NotFound:
            words += (unsent := explain_unsent(f, job))
            if not unsent:
                raise
        if found:
            words += explain_job(f, found, earlier)
            words += explain_unsent(f, job) if found.record.retired and not found.record.successor else ()
            back = comes_back(f, found)
        log = without_report(read_log(found, f.folder) or b"") if found else b""
    state, batch = (str(found.record.state), found.batch.name) if found else ("not sent", None)
    state = "waiting" if back else state
    tail = log.decode(errors="replace").splitlines()[-lines:] if lines else []
    if as_json:
        print_json({"job": job, "state": state, "batch": batch, "why": words, "log": tail})
        return
    click.echo(f"{job}: {state}" + (f" ({batch} at {found.batch.site})" if found else ""))
    for sentence in words:
        click.echo(f"  {sentence}")
    if found and tail:
        click.echo(f"the end of its log ({found.log}):" if found.log.is_file() else "the end of its log:")
        for line in tail:
            click.echo(f"  | {line}")
