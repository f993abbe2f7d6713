"""The command line: the group, its global options, and the one place where errors become messages and exit codes.

A verb's module is imported when the verb is used, so that `fermigrid --help` costs little more than click.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from fermigrid import __version__

VERBS = {  # verb -> the line that `fermigrid --help` shows
    "check": "Validate a campaign and everything it refers to; send nothing.",
    "render": "Write the plans that submit would send.",
    "diff": "What differs between two plans: what changed since the last submission.",
    "submit": "Submit a campaign, or one command: submit --site S -- COMMAND ARG...",
    "status": "Where a campaign stands, or all of mine.",
    "watch": "Follow a campaign: take in results, submit what is ready.",
    "set": "Change limits, weights, drains and priority while it goes on; show what is in force.",
    "ban": "Send no more jobs to a node.",
    "unban": "Let a banned node have jobs again.",
    "resume": "Let a campaign go on after its trial, or after it was stopped.",
    "trial": "What a trial took, and what the rest will take.",
    "why": "Why a job waits, is held or failed, in words.",
    "logs": "What a job printed, every attempt.",
    "report": "What the jobs took: times, memory, images, failures; as a page with plots.",
    "audit": "Prove that no job, output or event is missing, doubled or altered.",
    "archive": "Put a finished campaign into one file, and remove the rest.",
    "retry": "Do jobs again that failed or were removed.",
    "rollback": "Do runs again, with other parameters if need be; their old outputs are kept.",
    "remove": "Take jobs out of the queue for good.",
    "hold": "Keep waiting jobs from starting.",
    "release": "Let held jobs go on.",
    "site": "List, show, begin and check sites.",
    "schema": "The JSON Schema of a campaign, site or image catalogue, for editors.",
    "secret": "List and check secrets; seal them for sites.",
    "pipeline": "Drop-in for the pipeline's job control: submit, status, kill.",
}


class Verbs(click.Group):
    """A group whose commands are modules of fermigrid.commands, imported lazily."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # here, because click would make 1 of it, which says that jobs failed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone
            return 0

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"fermigrid.commands.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and name not in VERBS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, VERBS, n=1)
            ctx.fail(f"no such command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fermigrid")
def cli() -> None:
    """Submit Fermi-LAT batch work to HTCondor pools and to this machine, in containers, exactly once.

    Exit codes: 0 good, 1 jobs failed, 2 usage, 10 and above see docs/reference/exit-codes.md.
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. The one error boundary."""
    from fermigrid.access import private_files

    try:
        with private_files():
            result = cli.main(args=argv, prog_name="fermigrid", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted: nothing is lost; the same command goes on from here", err=True)
        return 130
    except Exception as error:  # noqa: BLE001 - the one boundary
        return _report(error)


def _report(error: Exception) -> int:
    from fermigrid.errors import FermigridError, InternalError

    if isinstance(error, FermigridError):
        _show(str(error), error.hint)
        return error.exit_code
    path = _write_traceback()
    message = f"fault in fermigrid itself: {type(error).__name__}: {error}"
    _show(message, f"Nothing that was submitted is lost. Please report it, with the file {path}")
    return InternalError.exit_code


def _show(message: str, hint: str) -> None:
    for number, line in enumerate(message.splitlines() or [""]):
        click.echo(f"fermigrid: {line}" if number == 0 else f"           {line}", err=True)
    for line in hint.splitlines():
        click.echo(f"           {line}", err=True)


def _write_traceback() -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="fermigrid-fault-", suffix=".txt", delete=False) as file:
        file.write(f"fermigrid {__version__}, {sys.version}\n\n{traceback.format_exc()}")
    return file.name


if __name__ == "__main__":
    main()
