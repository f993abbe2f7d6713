"""`fermigrid report`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from fermigrid.commands.options import campaign_argument, json_option

if TYPE_CHECKING:
    from fermigrid.summary import Summary
    from fermigrid.watch import Following


@click.command("report")
@campaign_argument
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write one page with plots, to be opened in any browser or printed.")  # fmt: skip
@click.option("--csv", "table", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write a table with a line for each job.")  # fmt: skip
@json_option
def command(campaign: str, html: Path | None, table: Path | None, as_json: bool) -> int:
    """What the jobs of CAMPAIGN took: time, memory, images, failures, by step and site; slowest runs, bad nodes."""
    from fermigrid.commands.following import following, locate, make_hand, refresh
    from fermigrid.commands.tables import print_json
    from fermigrid.summary_campaign import summarize
    from fermigrid.summary_tables import as_json as to_json

    with following(locate(campaign), make_hand(), archived=True) as f:
        for problem in refresh(f):
            click.echo(problem, err=True)
        if table:
            _write_csv(f, table)
            if not html and not as_json:
                return 0
        summary = summarize(f)
    if html:
        _write_page(summary, html)
    if as_json:
        print_json(to_json(summary))
    elif not html:
        _print(summary)
    return 0


def _print(summary: Summary) -> None:
    from fermigrid.commands.tables import print_table
    from fermigrid.summary_tables import tables

    for table in tables(summary):
        click.echo(click.style(f"{table.title}", bold=True))
        print_table(table.columns, table.rows)
        if table.note:
            click.echo(table.note)
        click.echo()
    click.echo(f"{summary.name}: {summary.state}")
    for note in summary.notes:
        click.echo(note)


def _write_page(summary: Summary, path: Path) -> None:
    from fermigrid.resources import shipped
    from fermigrid.summary_page import write_page

    style = (shipped("submit_templates") / "report/report.css").read_text(encoding="utf-8")
    with _whole(path) as file:
        file.write(write_page(summary, style))
    click.echo(f"wrote {path}", err=True)


def _write_csv(f: Following, path: Path) -> None:
    from fermigrid.summary_campaign import COLUMNS, lines_of_jobs

    with _whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(lines_of_jobs(f))
    click.echo(f"wrote {path}", err=True)


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A file for the person alone, that gets its name when it is whole. Raises RunFolderError."""
    from fermigrid.errors import RunFolderError
    from fermigrid.plainfile import whole_file

    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror}") from error
