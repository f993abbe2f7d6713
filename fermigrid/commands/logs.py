"""`fermigrid logs`."""

from __future__ import annotations

import click

from fermigrid.commands.options import campaign_argument, job_argument


@click.command("logs")
@campaign_argument
@job_argument
@click.option("--report", is_flag=True, help="The reports of its attempts, as JSON, instead of what it printed.")
def command(campaign: str, job: str, report: bool) -> None:
    """What JOB of CAMPAIGN printed: stdout and stderr of payload and worker, of every generation."""
    from fermigrid.commands.following import following, locate, make_hand, refresh
    from fermigrid.find_job import find_job, read_log

    with following(locate(campaign), make_hand(), archived=True) as f:
        refresh(f)
        found = find_job(f.ledger, f.folder, job)
        if report:
            for attempt in f.ledger.attempts(job):
                click.echo(attempt.report)
            return
        for each in found:
            log = read_log(each, f.folder)
            if len(found) > 1:
                retired = each.record.retired is not None
                click.echo(f"--- {each.batch.name}" + (", which does not count any more" if retired else ""), err=True)
            if log is None:
                click.echo(f"{job} has no log yet: it is {each.record.state}", err=True)
            else:
                click.echo(without_report(log), nl=False)


def without_report(log: bytes) -> bytes:
    """What people read: all but the worker's report, the last line."""
    rest, _, last = log.rstrip(b"\n").rpartition(b"\n")
    return rest.rstrip(b"\n") + b"\n" if last.startswith(b"@@FERMIGRID ") else log
