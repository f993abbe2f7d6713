"""`fermigrid trial`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fermigrid.commands.options import campaign_argument, json_option

if TYPE_CHECKING:
    from fermigrid.watch import Following


@click.command("trial")
@campaign_argument
@json_option
def command(campaign: str, as_json: bool) -> int:
    """What the trial of CAMPAIGN took, and what that makes of the rest: resources, core hours, output."""
    from fermigrid.commands.following import following, locate, make_hand, refresh

    with following(locate(campaign), make_hand()) as f:
        for problem in refresh(f):
            click.echo(problem, err=True)
        return show_trial(f, as_json)


def show_trial(f: Following, as_json: bool = False) -> int:
    """Print it; 1 when a job of the trial failed."""
    from dataclasses import asdict

    from fermigrid.commands.tables import print_json, print_table
    from fermigrid.errors import NotFound
    from fermigrid.gate import TRIAL, is_halted
    from fermigrid.measure import has_trial_ended, measure_trial, output_by_site, shares_of_sites, trial_failures
    from fermigrid.rates import scopes_of
    from fermigrid.trial import suggestions, table_of, total_in_words
    from fermigrid.units import show_bytes

    a = f.assembled
    if not a.trial:
        raise NotFound(f"{a.campaign.campaign} had no trial", "One begins with fermigrid submit FILE --trial 10")
    measured, failed, ended = measure_trial(f), trial_failures(f), has_trial_ended(f)
    rest, waits = len(a.runs) - a.trial, is_halted(f.ledger, TRIAL)
    if as_json:
        losers = [{"job": job.name, "host": job.host, "code": job.code, "reason": job.reason} for job in failed]
        print_json({"campaign": a.campaign.campaign, "runs": a.trial, "ended": ended, "rest": rest, "waits": waits,
                    "steps": [asdict(one) for one in measured], "failed": losers,
                    "output": output_by_site(f, measured)})  # fmt: skip
        return int(bool(failed))
    if measured:
        print_table(*table_of(measured))
    if failed:
        print_table(["failed", "host", "code", "reason"], [[j.name, j.host, j.code, j.reason] for j in failed])
    for line in suggestions(a.campaign, measured):
        click.echo(f"suggested for {line}")
    scopes = scopes_of(a.campaign.limits, a.sites)
    for line in total_in_words(a.campaign, measured, rest, scopes, shares_of_sites(f)):
        click.echo(line)
    for site, count in output_by_site(f, measured).items():
        quota = f.ledger.adjusted().get((site, "quota"), a.sites[site].output.quota)
        room = "" if quota is None else f", of the {show_bytes(quota)} that there are"
        click.echo(f"output at {site}: {show_bytes(round(count))}{room}")
    if not ended:
        click.echo("jobs of the trial are still on their way: these figures will change")
    if waits:
        click.echo(f"the rest waits for: fermigrid resume {a.campaign.campaign} [--suggested]")
    return int(bool(failed))
