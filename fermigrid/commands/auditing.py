"""What an audit found, for people and programs, as it is found: there may be more of it than memory has room for."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import click

from fermigrid.audit import Finding, Found
from fermigrid.audit_campaign import CampaignAudit, Line, Totals, clean_line
from fermigrid.errors import RunFolderError
from fermigrid.units import show_count

COMMA = ",\n"
COLUMNS = (
    "run", "step", "job", "generation", "attempt", "output", "name", "place", "bytes", "sha256", "found",
    "events_read", "events_kept", "inputs",
)  # fmt: skip


def show_audit(campaign: str, audit: CampaignAudit, as_json: bool, csv_file: Path | None) -> bool:
    """Do the audit and print what it finds; is nothing off? Raises RunFolderError when the CSV cannot be written."""
    with ExitStack() as stack:
        writes = [csv_lines(stack.enter_context(_whole_file(csv_file)))] if csv_file else []
        tell = json_findings(sys.stdout) if as_json else show_findings(audit)
        do_audit(campaign, audit, [tell], writes)
    if as_json:
        end_json(sys.stdout, campaign, audit.totals)
    else:
        show_totals(campaign, audit)
    return audit.totals.clean


def do_audit(
    campaign: str,
    audit: CampaignAudit,
    tells: Sequence[Callable[[Finding], None]],
    writes: Sequence[Callable[[Line], None]],
) -> None:
    """Do the audit; each finding is told, each output is written."""
    with _bar(campaign, audit) as show:
        for audited in audit.runs():
            for finding in audited.findings:
                for tell in tells:
                    tell(finding)
            for line in audited.lines:
                for write in writes:
                    write(line)
            show(audit.totals)


def show_totals(campaign: str, audit: CampaignAudit) -> None:
    """The last line; on stderr what could not be looked at."""
    totals = audit.totals
    for why, count in totals.unlooked.items():
        click.echo(f"not looked at: {count} ({plain(why)})", err=True)
    if totals.clean:
        click.echo(clean_line(campaign, totals, audit.quick))
        return
    what = f"{show_count(totals.runs, 'run')}, {show_count(totals.jobs, 'job')} audited"
    click.echo(f"{campaign}: {show_count(sum(totals.kinds.values()), 'finding')}: {kinds_of(totals)} ({what})")


def kinds_of(totals: Totals) -> str:
    """`1 altered, 2 missing`; `clean` where nothing is off."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(totals.kinds.items())) or "clean"


def totals_json(campaign: str, totals: Totals) -> dict[str, Any]:
    """The sums of an audit."""
    steps = {name: dict(zip(("jobs", "events_read", "events_kept"), numbers, strict=True))
             for name, numbers in totals.steps.items()}  # fmt: skip
    numbers = {"runs": totals.runs, "jobs": totals.jobs, "outputs": totals.outputs, "bytes": totals.bytes}
    unlooked = {plain(why): count for why, count in totals.unlooked.items()}
    kinds = {str(kind): count for kind, count in sorted(totals.kinds.items())}
    found = {"clean": totals.clean, "kinds": kinds, "unlooked": unlooked}
    return {"campaign": campaign, **found, **numbers, "steps": steps}


def json_findings(out: TextIO) -> Callable[[Finding], None]:
    """Writes findings as the beginning of a JSON object: `{"findings": [...`."""
    out.write('{\n "findings": [')
    separators = iter(["\n"])

    def tell(finding: Finding) -> None:
        found = {key: plain(str(value)) for key, value in asdict(finding).items()}
        out.write(f"{next(separators, COMMA)}  {json.dumps(found, ensure_ascii=False)}")

    return tell


def end_json(out: TextIO, campaign: str, totals: Totals) -> None:
    """Writes the rest of the JSON object."""
    out.write(f"\n ],\n {json.dumps(totals_json(campaign, totals), ensure_ascii=False)[1:-1]}\n}}\n")


def show_findings(audit: CampaignAudit) -> Callable[[Finding], None]:
    """Prints findings as lines of a table, its header before the first one."""
    run, job = audit.widths
    begun = False

    def tell(finding: Finding) -> None:
        nonlocal begun
        if not begun:
            click.echo(click.style(f"{'kind':<8}  {'run':<{run}}  {'what':<{job}}  how", bold=True))
            begun = True
        subject, words = plain(finding.subject), plain(finding.words)
        click.echo(f"{finding.kind:<8}  {finding.run:<{run}}  {subject:<{job}}  {words}".rstrip())

    return tell


def plain(text: str) -> str:
    """A text for a terminal and for JSON: names of files may have anything in them."""
    return "".join(char if char.isprintable() else "?" for char in text)


@contextmanager
def _whole_file(path: Path) -> Iterator[TextIO]:
    """A file to be written, that gets its name when it is whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("w", newline="", encoding="utf-8") as file:
            yield file
        draft.replace(path)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def csv_lines(file: TextIO) -> Callable[[Line], None]:
    """Writes the list of outputs: the header now, a line for each output then."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)

    def write(line: Line) -> None:
        batch, result, output = line.expected.batch, line.result, line.output
        inputs = " ".join(f"{each.name}={each.sha256}" for each in result.inputs) if result else ""
        numbers = (_or_empty(result.read), _or_empty(result.kept)) if result else ("", "")
        of_output: list[object] = [""] * 5
        if output and line.look:
            of_output = [output.name, output.to, line.look.place, output.bytes, output.sha256]
        writer.writerow([
            line.run, line.step, line.expected.job, batch.generation if batch else "",
            result.attempt if result else "", *of_output, found_of(line), *numbers, inputs,
        ])  # fmt: skip

    return write


def found_of(line: Line) -> str:
    """What was found of an output: `ok`, `missing`, `altered` or `not looked at`; of a job without outputs: `ok`."""
    if line.result is None:
        return "missing"
    if line.output is None or line.look is None:
        return "ok"
    if line.look.found is Found.FILE:
        same = line.look.bytes == line.output.bytes and line.look.sha256 in ("", line.output.sha256)
        return "ok" if same else "altered"
    return {Found.NOTHING: "missing", Found.UNKNOWN: "not looked at"}.get(line.look.found, "altered")


def _or_empty(number: int | None) -> str:
    return "" if number is None else str(number)


@contextmanager
def _bar(campaign: str, audit: CampaignAudit) -> Iterator[Callable[[Totals], None]]:
    """A progress bar on a terminal, silence elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(campaign, total=audit.expected_runs)
        yield lambda totals: progress.update(task, completed=totals.runs)
