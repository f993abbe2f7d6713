"""What `retry` and `rollback` share: tell, ask, decide, take away, send."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from fermigrid.commands.following import POLL_S, following, locate, make_hand
from fermigrid.errors import BackendUnavailable, SecretRefused, SubmissionDoubt
from fermigrid.ledger_file import BUSY_S, writing
from fermigrid.redo import RETRY, ROLLBACK, Redo, decide
from fermigrid.retire import blocks_at_work, finish_decisions
from fermigrid.standing import standing_of
from fermigrid.watch import Following, look, send

if TYPE_CHECKING:
    from collections.abc import Sequence

_NOTHING = {RETRY: "no such job failed or was removed", ROLLBACK: "nothing of it was sent so far"}
PATIENCE_S = 20.0  # for jobs to leave the queue; after that `watch` goes on


def do_again(campaign: str, plan: Callable[[Following], Redo], yes: bool) -> None:
    """Do again what `plan` says, if the person wants it."""
    folder = locate(campaign)
    with following(folder, make_hand()) as f, writing(folder.ledger, BUSY_S):
        for problem in look(f).problems:
            f.hand.tell(problem)
        redo = plan(f)
        if not (redo.jobs or redo.overrides or redo.given_back):
            click.echo("nothing to do again: " + _NOTHING[redo.kind])
            return
        for line in redo.words:
            click.echo(line)
        if redo.takes_away and not yes:
            _ask()
        number = decide(f, redo)
        for problem in _finish(f):
            f.hand.tell(problem)
        try:
            send(f)
        except (BackendUnavailable, SecretRefused, SubmissionDoubt) as error:
            f.hand.tell(f"{error} {error.hint}".strip())
        standing = standing_of(f)
    click.echo(f"{redo.kind} {number} is written down: `fermigrid watch` sends what it still needs", err=True)
    click.echo(f"{f.assembled.campaign.campaign}: {standing.headline}")


def _ask() -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("results are given up for that: say so with --yes")
    click.confirm("Do that?", abort=True)


def _finish(f: Following) -> Sequence[str]:
    """Take the old jobs and outputs out of the way. Returns what is in the way of that after some time, in words."""
    until = time.monotonic() + PATIENCE_S
    problems = finish_decisions(f.ledger, f.folder, f.assembled, f.hand)
    while blocks_at_work(f.ledger) and time.monotonic() < until:
        time.sleep(float(os.environ.get("FERMIGRID_POLL_S", POLL_S)) / 2)
        look(f)
        problems = finish_decisions(f.ledger, f.folder, f.assembled, f.hand)
    return problems
