"""`fermigrid status`."""

from __future__ import annotations

import os
from typing import Any

import click

from fermigrid.commands.options import json_option

_REASONS = 3  # for which jobs failed, that are shown


@click.command("status")
@click.argument("campaign", required=False)
@click.option("--check", is_flag=True, help="Exit with 1 when a job failed, was removed or got lost.")
@click.option("--failed", is_flag=True, help="List the jobs that failed, with the reason.")
@click.option("--batches", is_flag=True, help="A line for each batch, not for each step and site.")
@click.option("--history", is_flag=True, help="What was done with the campaign, when and by whom.")
@json_option
def command(campaign: str | None, check: bool, failed: bool, batches: bool, history: bool, as_json: bool) -> int:
    """Where CAMPAIGN (its name or run folder) stands; without one, all of mine."""
    from fermigrid.commands.tables import print_json, print_table
    from fermigrid.registry import my_campaigns, registries

    if campaign is not None:
        return _history(campaign, as_json) if history else _one(campaign, check, failed, batches, as_json)
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
    return {"campaign": name, "jobs": standing.every, "state": standing.words, "folder": str(folder.path)}


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


def _one(campaign: str, check: bool, failed: bool, batches: bool, as_json: bool) -> int:
    from fermigrid.commands.following import following, locate, make_hand, refresh
    from fermigrid.commands.tables import print_json, print_table
    from fermigrid.live import limits_words
    from fermigrid.pace import as_data, end_words, rate_words
    from fermigrid.standing import batches_table, standing_of, steps_table, top_failures
    from fermigrid.states import State
    from fermigrid.units import show_count
    from fermigrid.watch_job import in_words

    with following(locate(campaign), make_hand(), archived=True) as f:
        problems = refresh(f)
        standing = standing_of(f)
        watched = in_words(f, f.hand.now())
        back = {(one.job.batch, one.job.index) for one in standing.returning}
        losers = [job for job in f.ledger.jobs_in(State.FAILED) if (job.batch, job.index) not in back] if failed else []
        limits = list(limits_words(f))
        reasons = top_failures(f, standing)
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
                "jobs": standing.every,
                "states": standing.counts,
                "unsent": standing.unsent,
                "blocked": standing.blocked,
                "again": standing.again,
                "returning": [
                    {"job": one.job.name, "at": one.at.isoformat(), "why": one.job.reason or one.why}
                    for one in standing.returning
                ],
                "rehearsed": standing.rehearsed,
                "steps": [{"step": c.step, "site": c.site, "states": c.states} for c in standing.by_step],
                "unsent_by_step": standing.unsent_by_step,
                "pace": as_data(standing.pace),
                "reasons": [{"reason": why, "jobs": jobs, "example": job} for why, jobs, job in reasons],
                "batches": rows,
                "failed": [{"job": j.name, "host": j.host, "code": j.code, "reason": j.reason} for j in losers],
                "nodes": [{"host": n.host, "code": n.code, "times": n.times} for n in standing.nodes],
                "asked": [{"job": j.name, "since": j.since, "why": j.why, "reason": j.reason} for j in standing.asked],
                "banned": [{"site": b[0], "node": b[1], "why": b[2], "since": b[3]} for b in standing.bans],
                "limits": limits,
                "stuck": [{"job": j.name, "host": j.host, "why": j.why} for j in standing.idle],
                "looked": standing.looked,
                "watched": watched or None,
                "halts": [{"kind": h.kind, "since": h.since, "why": h.why} for h in standing.halts],
                "problems": problems,
            }
        )
    else:
        for problem in problems:
            click.echo(problem, err=True)
        print_table(*(batches_table(standing) if batches else steps_table(standing)))
        click.echo(f"{f.assembled.campaign.campaign}: {standing.headline}")
        for why, jobs, example in () if losers else reasons[:_REASONS]:
            click.echo(f"failed: {show_count(jobs, 'job')}, such as {example}: {why}")
        if standing.is_open:
            for line in limits:
                click.echo(line)
            if watched:
                click.echo(watched)
            click.echo(f"fermigrid watch looked last: {standing.looked or 'never'}")
            if standing.pace.goes_on:
                told = rate_words(standing.pace), end_words(standing.pace, f.hand.now())
                click.echo("\n".join(filter(None, told)))
        if losers:
            print_table(["job", "host", "code", "reason"], [[j.name, j.host, j.code, j.reason] for j in losers])
    return 1 if check and not standing.good else 0
