"""`fermigrid pipeline`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from fermigrid.commands.options import json_option, search_folders, sites_option

EXTRA = "--extra-options"


class JobCommand(click.Command):
    """Everything behind `--` is the job's command; the words of `--extra-options` are options like all others."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            cut = args.index("--")
            args, ctx.meta["command"] = args[:cut], tuple(args[cut + 1 :])
        return super().parse_args(ctx, _spread(args))


def _spread(args: list[str]) -> list[str]:
    import shlex

    out: list[str] = []
    left = iter(args)
    for word in left:
        name, equals, value = word.partition("=")
        if name != EXTRA:
            out.append(word)
            continue
        text = value if equals else next(left, None)
        if text is None:
            raise click.UsageError(f"{EXTRA} wants a text behind it")
        try:
            words = shlex.split(text.replace("|", " "))
        except ValueError as error:
            raise click.UsageError(f"{EXTRA} {text!r}: {error}") from error
        if "--" in words or EXTRA in {word.partition("=")[0] for word in words}:
            raise click.UsageError(f"{EXTRA} {text!r}: only options may be in it")
        out += words
    return out


positive = click.IntRange(min=1)


@click.group("pipeline")
def command() -> None:
    """Drop-in for the job control of the Fermi pipeline: submit, status, kill."""


@command.command("submit", cls=JobCommand)
@click.option("--site", "-s", metavar="SITE", required=True, help="Where the job runs.")
@sites_option
@click.option("--image", metavar="IMAGE", help="The container image, when PIPELINE_CONTAINER names none.")
@click.option("--name", metavar="NAME", help="The job's name; default: PIPELINE_PROCESS.")
@click.option("--log-file", metavar="FILE", help="The job's log; default: JOBCONTROL_LOGFILE.")
@click.option("--max-cpu-s", type=positive, help="CPU time in seconds; the script gets XCPU then.")
@click.option(
    "--max-wall-s", type=positive, help="Time in seconds; default: twice the CPU time, an hour more at least."
)
@click.option("--max-memory-mb", type=positive, help="Memory in MB (10^6 bytes).")
@click.option("--disk-mb", type=positive, help="Scratch space in MB (10^6 bytes).")
@click.option("--cpus", type=positive, help="Cores.")
@click.option("--group", metavar="GROUP", help="The accounting group.")
@click.option("--priority", type=int, help="Among the jobs of this user.")
@click.option("--retries", type=click.IntRange(min=0), help="More starts after failures of the infrastructure.")
@click.option("--software", multiple=True, metavar="NAME", help="Software to mount in.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="A secret of the site that the script needs.")
@click.option(
    "--env", "variables", multiple=True, metavar="NAME", help="One more variable to pass, or a pattern: 'RUN*'."
)
@click.option(
    "--shared/--transfer", default=None, help="Do the nodes see the job folder? Default: by the site's binds."
)
@click.option(EXTRA, metavar="TEXT", help="Further options of this list as one text, as a task's XML gives them.")
@click.pass_context
def submit(ctx: click.Context, /, site: str, folders: tuple[Path, ...], **given: Any) -> None:
    """Submit the job of this folder: its `script`, or `-- COMMAND ARG...`, in the environment that the pipeline set.

    The same PIPELINE_PROCESSINSTANCE again sends nothing twice: it prints the cluster that the job has.
    By DIRAC that is the job's id, and the line is the one that DIRAC has for it.
    """
    from dataclasses import fields

    from fermigrid.commands.following import make_hand
    from fermigrid.pipeline_campaign import Limits
    from fermigrid.pipeline_run import Request
    from fermigrid.pipeline_run import submit as submit_job

    limits = Limits(**{each.name: given[each.name] for each in fields(Limits)})
    request = Request(
        site=site,
        search=search_folders(folders),
        limits=limits,
        image=given["image"],
        name=given["name"],
        log_file=given["log_file"],
        shared=given["shared"],
        variables=given["variables"],
        command=ctx.meta.get("command", ()),
    )
    click.echo(submit_job(request, os.environ, _here(), make_hand()))


@command.command("status")
@click.argument("clusters", nargs=-1, metavar="[CLUSTERS]...")
@click.option("--all", "everything", is_flag=True, help="All of mine that are under way, wherever this is typed.")
@json_option
def status(clusters: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """How jobs stand, a line for each; without CLUSTERS the job of this folder, elsewhere all that are under way."""
    from fermigrid.commands.following import make_hand
    from fermigrid.pipeline_run import status as status_of

    _show(status_of(clusters, everything, os.environ, _here(), make_hand()), as_json)


@command.command("kill")
@click.argument("clusters", nargs=-1, required=True, metavar="CLUSTERS...")
@json_option
def kill(clusters: tuple[str, ...], as_json: bool) -> None:
    """Take the jobs of CLUSTERS out of the queue for good. One that has ended stays as it is."""
    from fermigrid.commands.following import make_hand
    from fermigrid.errors import FermigridError
    from fermigrid.pipeline_run import kill as kill_job

    found, failed = [], None
    for cluster in clusters:
        try:
            found.append(kill_job(cluster, os.environ, _here(), make_hand()))
        except FermigridError as error:  # the others are killed all the same
            click.echo(f"{cluster}: {error}", err=True)
            failed = error
    _show(found, as_json)
    if failed:
        raise failed


def _here() -> Path:
    from fermigrid.errors import RunFolderError

    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise RunFolderError("the folder that this was started in has been removed", "Start it in another.") from error


def _show(found: list[Any], as_json: bool) -> None:
    """Raises NotFound, when all are shown, for clusters that nobody knows."""
    from dataclasses import asdict

    from fermigrid.commands.tables import print_json
    from fermigrid.errors import NotFound

    if as_json:
        print_json([asdict(now) for now in found])
    for now in () if as_json else found:
        click.echo(now.line)
        for words in (*now.problems, *([now.reason] if now.reason else [])):
            click.echo(f"{now.cluster}: {words}", err=True)
    lost = [now.cluster for now in found if not now.instance]
    if lost:
        raise NotFound(
            f"no cluster {', '.join(lost)} is known", "Only what `fermigrid pipeline submit` has sent is known."
        )
