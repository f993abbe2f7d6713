"""`fermigrid status`."""

from __future__ import annotations

import os
from typing import Any

import click

from fermigrid.commands.options import json_option


@click.command("status")
@click.argument("campaign", required=False)
@click.option("--check", is_flag=True, help="Exit with 1 when a job failed, was removed or got lost.")
@click.option("--failed", is_flag=True, help="List the jobs that failed, with the reason.")
@click.option("--history", is_flag=True, help="What was done with the campaign, when and by whom.")
@json_option
def command(campaign: str | None, check: bool, failed: bool, history: bool, as_json: bool) -> int:
    """Where CAMPAIGN (its name or run folder) stands; without one, all of mine."""
    from fermigrid.commands.tables import print_json, print_table
    from fermigrid.registry import my_campaigns, registries

    if campaign is not None:
        return _history(campaign, as_json) if history else _one(campaign, check, failed, as_json)
    rows = [_summary(name, folder) for name, folder in my_campaigns(*registries(os.environ))]
    if as_json:
        print_json(rows)
    else:
        print_table(["campaign", "jobs", "state", "run folder"], [list(row.values()) for row in rows])
    return 0


def _summary(name: str, folder: Any) -> dict[str, Any]:
    from fermigrid.archive import read_pointer, summary
    from fermigrid.commands.following import following, make_hand, refresh
    from fermigrid.errors import FermigridError
    from fermigrid.standing import standing_of

    try:
        if pointer := read_pointer(folder):
            return {"campaign": name, **summary(pointer)}
        with following(folder, make_hand()) as f:
            refresh(f)
            standing = standing_of(f)
    except FermigridError as error:  # one that cannot be read must not hide the others
        return {"campaign": name, "jobs": "", "state": f"cannot be read: {error}", "folder": str(folder.path)}
    return {"campaign": name, "jobs": standing.jobs, "state": standing.words, "folder": str(folder.path)}


def _history(campaign: str, as_json: bool) -> int:
    from fermigrid.commands.following import following, locate, make_hand
    from fermigrid.commands.tables import print_json, print_table

    with following(locate(campaign), make_hand(), archived=True) as f:
        rows = f.ledger.journal()
    if as_json:
        print_json([{"time": time, "who": who, "what": what} for time, who, what in rows])
    else:
        print_table(["time", "who", "what"], rows)
    return 0


def _one(campaign: str, check: bool, failed: bool, as_json: bool) -> int:
    from fermigrid.commands.following import following, locate, make_hand, refresh
    from fermigrid.commands.tables import print_json, print_table
    from fermigrid.standing import ORDER, standing_of
    from fermigrid.states import State

    with following(locate(campaign), make_hand(), archived=True) as f:
        problems = refresh(f)
        standing = standing_of(f)
        losers = f.ledger.jobs_in(State.FAILED) if failed else []
    if as_json:
        rows = [
            {
                "name": b.batch.name,
                "site": b.batch.site,
                "jobs": b.batch.counted,
                "retired": b.batch.retired,
                "parameters": b.batch.parameters,
                "state": b.words,
                "states": b.counts,
            }
            for b in standing.batches
        ]
        print_json(
            {
                "campaign": f.assembled.campaign.campaign,
                "folder": str(f.folder.home or f.folder.path),
                "archive": str(f.folder.archive) if f.folder.archive else None,
                "jobs": standing.jobs,
                "states": standing.counts,
                "unsent": standing.unsent,
                "blocked": standing.blocked,
                "again": standing.again,
                "rehearsed": standing.rehearsed,
                "batches": rows,
                "failed": [{"job": j.name, "host": j.host, "code": j.code, "reason": j.reason} for j in losers],
                "nodes": [{"host": n.host, "code": n.code, "times": n.times} for n in standing.nodes],
                "looked": standing.looked,
                "halts": [{"kind": h.kind, "since": h.since, "why": h.why} for h in standing.halts],
                "problems": problems,
            }
        )
    else:
        for problem in problems:
            click.echo(problem, err=True)
        used = [state for state in ORDER if standing.counts[state]]
        lines = [
            [b.batch.name, b.batch.site, b.words, b.batch.counted, *(b.counts[state] for state in used)]
            for b in standing.batches
            if b.batch.counted  # of one all of whose jobs are done again there is nothing to say
        ]
        print_table(["batch", "site", "state", "jobs", *used], lines)
        click.echo(f"{f.assembled.campaign.campaign}: {standing.headline}")
        if standing.is_open:
            click.echo(f"fermigrid watch looked last: {standing.looked or 'never'}")
        if losers:
            print_table(["job", "host", "code", "reason"], [[j.name, j.host, j.code, j.reason] for j in losers])
    return 1 if check and not standing.good else 0
