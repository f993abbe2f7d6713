"""`fermigrid watch`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fermigrid.runfolder import RunFolder

QUIET_S = 3600  # another watch may have the lock for so long without having looked


@click.command("watch")
@click.argument("campaign", required=False)
@click.option("--once", is_flag=True, help="One look, then end: for cron and timers.")
@click.option("--all", "every", is_flag=True, help="One look at each of my campaigns, then end: for cron and timers.")
@click.option("--as-job", is_flag=True, help="Send a job to the campaign's schedd that does it, and is kept alive.")
@click.option("--is-job", type=int, hidden=True, help="This is that job; its number.")
def command(campaign: str | None, once: bool, every: bool, as_job: bool, is_job: int | None) -> int:
    """Follow CAMPAIGN until its last job has ended: take in results, submit what is ready.

    Ctrl-C ends the watching, not the jobs.
    """
    if (campaign is None) != every:
        raise click.UsageError("give a CAMPAIGN, or --all")
    if as_job and (once or every):
        raise click.UsageError("--as-job watches to the end: neither --once nor --all goes with it")
    from fermigrid.commands.following import follow, following, locate, make_hand
    from fermigrid.standing import standing_of

    if campaign is None:
        return _every()
    folder = locate(campaign)
    if is_job is not None:
        from fermigrid.commands.watching import watch_as_job

        return watch_as_job(folder, is_job)
    if as_job:
        return _begin_job(folder)
    if once and not _look_once(folder):
        return 0
    with following(folder, make_hand()) as f:
        standing = standing_of(f) if once else follow(f)
    click.echo(f"{f.assembled.campaign.campaign}: {standing.headline}")
    return 0 if standing.good else 1


def _begin_job(folder: RunFolder) -> int:
    """See that one job of the schedd watches the campaign, and tell which."""
    import sys

    from fermigrid.commands.following import following, make_hand
    from fermigrid.ledger_file import BUSY_S, writing
    from fermigrid.watch_job import begin, log_file

    with following(folder, make_hand()) as f, writing(folder.ledger, BUSY_S):
        begun = begin(f, sys.executable)
        name, job = f.assembled.campaign.campaign, f"job {begun.job.cluster} of {begun.job.place}"
    for remark in begun.remarks:
        click.echo(remark, err=True)
    click.echo(f"{name} is watched by {job}" if begun.is_new else f"{name} is watched by {job} already ({begun.words})")
    click.echo(f"what it says: {log_file(folder)}")
    return 0


def _look_once(folder: RunFolder) -> bool:
    """One look, and False when another fermigrid is at work: it looks for us, too. Raises LedgerBusy when it seems not
    to: it has the lock, and has not looked for long."""
    from datetime import datetime

    from fermigrid.commands.following import following, make_hand, tell_holds
    from fermigrid.errors import LedgerBusy
    from fermigrid.ledger_file import writing
    from fermigrid.unattended import look_and_care

    with following(folder, make_hand()) as f:
        try:
            with writing(folder.ledger):
                turn = look_and_care(f, alone=True)
        except LedgerBusy:
            watching = f.ledger.watching()
            if watching and (f.hand.now() - datetime.fromisoformat(watching.looked)).total_seconds() > QUIET_S:
                raise
            return False
        for problem in turn.problems:
            click.echo(problem, err=True)
        tell_holds(f, set())
    return True


def _every() -> int:
    """One look at each of my campaigns; what is wrong with one does not keep us from the others."""
    from fermigrid.archive import archive_of, read_pointer
    from fermigrid.commands.following import locate
    from fermigrid.errors import FermigridError
    from fermigrid.registry import my_campaigns, registries

    worst = 0
    for name, folder in my_campaigns(*registries(os.environ)):
        if read_pointer(folder):
            continue
        try:
            if not archive_of(folder):
                _look_once(locate(str(folder.path)))
        except FermigridError as error:
            click.echo(f"{name} ({folder.path}): {error} {error.hint}".rstrip(), err=True)
            worst = worst or error.exit_code
    return worst
