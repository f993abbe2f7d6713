"""`fermigrid submit`."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fermigrid.commands.options import checked, search_folders, set_option, site_option, sites_option

if TYPE_CHECKING:
    from fermigrid.access import Trust
    from fermigrid.runfolder import RunFolder


class FileOrCommand(click.Command):
    """Everything behind `--` is a command for one job, as it stands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            cut = args.index("--")
            args, ctx.meta["command"] = args[:cut], tuple(args[cut + 1 :])
        return super().parse_args(ctx, args)


@click.command("submit", cls=FileOrCommand)
@click.argument("file", required=False, type=click.Path(path_type=Path))
@site_option
@click.option("--run-dir", type=click.Path(path_type=Path), help="The run folder; default: fermigrid-runs/CAMPAIGN.")
@click.option("--group", metavar="GROUP", help="Share the run folder with this group; default: it is private.")
@click.option("--wait", is_flag=True, help="Follow the campaign to its end; exit with 1 when a job failed.")
@click.option("--trial", type=click.IntRange(1), metavar="N", help="N runs first; the rest waits for you.")
@click.option("--no-wait", is_flag=True, help="With --trial: do not follow it to its end.")
@set_option
@sites_option
@click.option("--image", metavar="IMAGE", help="For a command: the container image.")
@click.option("--name", metavar="NAME", help="For a command: its name; default: that of the program and the time.")
@click.option("--jobs", default=1, show_default=True, help="For a command: how often; FERMIGRID_RUN tells them apart.")
@click.option("--code", multiple=True, metavar="PATH", help="For a command: a file or folder that travels with it.")
@click.option("--software", multiple=True, metavar="NAME", help="For a command: software to mount in.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="For a command: a secret of the site.")
@click.option("--output", "outputs", multiple=True, metavar="FILE", help="For a command: a file that it writes.")
@click.option("--cpus", type=int, help="For a command: cores.")
@click.option("--memory", help="For a command, such as '2 GiB'.")
@click.option("--disk", help="For a command, such as '10 GiB'.")
@click.option("--walltime", help="For a command, such as '4 h'.")
@click.option("--retries", type=int, help="For a command: more starts after failures of the infrastructure.")
@click.pass_context
def command(
    ctx: click.Context,
    /,
    file: Path | None,
    site: str | None,
    run_dir: Path | None,
    group: str | None,
    wait: bool,
    trial: int | None,
    no_wait: bool,
    parameters: tuple[str, ...],
    folders: tuple[Path, ...],
    **one_off: Any,
) -> int:
    """Submit a campaign FILE, or one COMMAND: fermigrid submit --site S --image I -- COMMAND ARG...

    Submitting again what was submitted already sends nothing twice: it goes on where it was cut short.
    """
    from fermigrid.access import gid_of, trust_of
    from fermigrid.errors import ConfigError, Problem

    words: tuple[str, ...] | None = ctx.meta.get("command")
    if (file is None) == (words is None):
        raise click.UsageError("give a campaign FILE, or -- COMMAND ARG...")
    gid = gid_of(group) if group else None
    trust = trust_of(os.environ).with_group(gid)
    search = search_folders(folders, trust)
    if words is None:
        assert file is not None
        for option in ctx.command.params:
            if option.name in one_off and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{option.opts[0]} goes with -- COMMAND, a campaign file says it itself")
        assembled = checked(file, site, parameters, search, trust)
    else:
        assembled = _one_off(words, site, search, trust, one_off)
    if not assembled.sites:
        raise ConfigError(
            [Problem(str(file), 0, "sites", "names no site: write sites: {slac: 70, in2p3: 30}, or give --site")]
        )
    from datetime import UTC, datetime

    from fermigrid.access import at_work_in
    from fermigrid.registry import refuse_second, registries
    from fermigrid.runfolder import RunFolder, check_path
    from fermigrid.secret_check import look_again, refuse_unfit
    from fermigrid.submit import prepare

    name = assembled.campaign.campaign
    folder = RunFolder(check_path(run_dir or Path("fermigrid-runs", name)))
    known = registries(os.environ)
    if run_dir is None:
        refuse_second(name, folder, *known)
    if not folder.ledger.is_file():  # nothing is made for a campaign that cannot be sent
        first = [name for name, step in assembled.campaign.steps.items() if not step.after]
        again = look_again(file, [site] if site else [], folders, parameters)
        pairs = [(step, place) for step in first for place in assembled.sites]
        refuse_unfit(assembled, pairs, datetime.now(UTC), f"Nothing was sent. {again}")
    prepare(folder, gid, trust)
    with at_work_in(folder.path, trust):
        return _submit(assembled, site, folder, search, (wait or bool(trial)) and not no_wait, trial or 0)


def _submit(
    assembled: Any, site: str | None, folder: RunFolder, search: tuple[Path, ...], wait: bool, trial: int
) -> int:
    from fermigrid.access import check_team
    from fermigrid.commands.following import follow, make_hand
    from fermigrid.commands.trial import show_trial
    from fermigrid.gate import TRIAL, is_halted
    from fermigrid.ledger_file import BUSY_S, writing
    from fermigrid.registry import remember
    from fermigrid.standing import standing_of
    from fermigrid.submit import as_submitted, begin
    from fermigrid.trial import as_adjusted
    from fermigrid.watch import Following, send

    name, hand = assembled.campaign.campaign, make_hand()
    with writing(folder.ledger, BUSY_S):
        ledger = begin(assembled, folder, site, [str(path) for path in search], hand, trial)
    with closing(ledger):
        check_team(folder.path, ledger.campaign().team)
        assembled = as_submitted(assembled, folder, ledger.campaign(), hand.tell)
        assembled = as_adjusted(assembled, ledger.trial(), ledger.adjusted())
        f = Following(ledger, folder, assembled, site, hand)
        for words in remember(folder, name, os.environ):
            hand.tell(words)
        with writing(folder.ledger, BUSY_S):
            sent = send(f)
        if not sent:
            why = "was submitted before; nothing new to send" if ledger.batches() else "has no jobs: nothing to do"
            hand.tell(f"{name} {why}")
        standing = follow(f, until_stopped=True) if wait else standing_of(f)
        if wait and is_halted(ledger, TRIAL):
            show_trial(f)
    click.echo(f"{name}: {standing.headline}")
    click.echo(f"run folder: {folder.path}", err=True)
    if wait and not standing.good:
        click.echo(f"what failed, and why: fermigrid status {folder.path} --failed", err=True)
    return 1 if wait and not standing.good else 0


def _one_off(
    words: tuple[str, ...], site: str | None, search: tuple[Path, ...], trust: Trust, options: dict[str, Any]
) -> Any:
    """A campaign of one command, checked like one from a file."""
    from datetime import datetime

    from fermigrid.assemble import assemble_data
    from fermigrid.check import find_problems
    from fermigrid.errors import ConfigError
    from fermigrid.one_off import describe

    if not words:
        raise click.UsageError("there is no command behind --")
    if site is None:
        raise click.UsageError("a command needs --site")
    if options["image"] is None:
        raise click.UsageError("a command needs --image")
    data = describe(words, folder=Path.cwd(), now=datetime.now(), **options)  # local time: it is in the job's name
    assembled = assemble_data(data, Path.cwd(), site, search, trust)
    if problems := find_problems(assembled):
        raise ConfigError(problems)
    return assembled
