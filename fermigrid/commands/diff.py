"""`fermigrid diff`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fermigrid.commands.options import json_option

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("added", "removed", "changed")
INNER = ("submit file", "worker")  # fermigrid's own way, or a template's


@click.command("diff")
@click.argument("before", metavar="PLAN")
@click.argument("after", metavar="PLAN")
@click.option("--raw", is_flag=True, help="The lines of the submit file that are fermigrid's or a template's, too.")
@json_option
def command(before: str, after: str, raw: bool, as_json: bool) -> int:
    """What differs between two plans: of what `render` wrote, of run folders, of campaigns by name.

    Exits with 0 when nothing does, with 1 when something does.
    """
    from fermigrid.commands.tables import print_json
    from fermigrid.plantext import find_plans, pair_plans

    pairs = pair_plans(find_plans(_folder(before)), find_plans(_folder(after)))
    found = [each for name, was, now in pairs if (each := _compare(name, was, now))]
    if as_json:
        print_json({"same": not found, "plans": found})
    elif found:
        _show(found, raw)
    else:
        click.echo("the same")
    return 1 if found else 0


def _folder(text: str) -> Path:
    """A folder, or the run folder of a campaign."""
    from pathlib import Path

    from fermigrid.commands.following import locate

    path = Path(text)
    return path if path.is_dir() else locate(text).path


def _compare(name: str, before: Path | None, after: Path | None) -> dict[str, Any]:
    """What differs between two plans; nothing when they are the same."""
    from dataclasses import asdict
    from functools import partial

    from fermigrid.difference import compare_jobs, compare_plans
    from fermigrid.plantext import faults_of, jobs_in, read_plan

    if before is None or after is None:
        return {"plan": name, "only": "second" if before is None else "first"}
    for folder in (before, after):
        for fault in faults_of(folder):
            click.echo(f"{folder}: changed after it was written: {fault}", err=True)
    old, new = read_plan(before), read_plan(after)
    changes = compare_plans(old, new)
    total = sum(int(str(text.header.get("jobs", 0))) for text in (old, new))
    jobs = compare_jobs(partial(jobs_in, before), partial(jobs_in, after), total)
    if not changes and jobs.same:
        return {}
    return {"plan": name, "only": None, "changes": [asdict(change) for change in changes], "jobs": asdict(jobs)}


def _show(found: list[dict[str, Any]], raw: bool) -> None:
    """What differs, once for all plans in which it is the same."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        groups.setdefault(_alike(each), []).append(each)
    for group in groups.values():
        names = _names([each["plan"] or "plan" for each in group], len(group))
        if group[0]["only"]:
            click.echo(f"only in the {group[0]['only']}: {names}")
        else:
            click.echo(f"{names}:")
            _show_changes(group[0]["changes"], raw)
            _show_jobs([each["jobs"] for each in group])


def _alike(found: dict[str, Any]) -> str:
    """Equal for plans of which the same is to be said; of their jobs only what changed in the first is looked at."""
    import json

    if found["only"]:
        return str(found["only"])
    jobs = found["jobs"]
    fields = [(field["what"], field["before"], field["after"]) for field in jobs["fields"]]
    changes = [change for change in found["changes"] if change["part"] != "header" or change["what"] != "jobs"]
    return json.dumps([changes, fields, [bool(jobs[kind]) for kind in KINDS]])


def _show_changes(changes: list[dict[str, Any]], raw: bool) -> None:
    from fermigrid.difference import Change
    from fermigrid.units import show_count

    part, inner = "", [change for change in changes if change["part"] in INNER and not raw]
    for change in changes:
        if change in inner:
            continue
        if change["part"] != part:
            part = change["part"]
            click.echo(f"  {part}")
        click.echo(f"    {_plain(str(Change(**change)))}")
    if inner:
        lines = sum(change["part"] == "submit file" for change in inner)
        also = [f"{show_count(lines, 'line')} of job.sub"] * bool(lines)
        also += ["worker.sh"] * (len(inner) > lines)
        click.echo(f"  and with it {' and '.join(also)} (--raw shows them)")


def _show_jobs(jobs: list[dict[str, Any]]) -> None:
    from fermigrid.difference import Change
    from fermigrid.units import show_count

    for kind in KINDS:
        if count := sum(each[kind] for each in jobs):
            names = [name for each in jobs for name in each["names"][kind]]
            click.echo(f"  {show_count(count, 'job')} {kind}: {_names(names, count)}")
    for field in jobs[0]["fields"]:
        click.echo(f"    {_plain(field['part'])}: {_plain(str(Change(**field)))}")


def _names(names: list[str], count: int) -> str:
    from fermigrid.difference import SHOWN

    shown = ", ".join(map(_plain, names[:SHOWN]))
    return f"{shown}, ... ({count} in all)" if count > SHOWN else shown


def _plain(text: str) -> str:
    """A plan may be anybody's: nothing in it reaches the terminal as a command."""
    return "".join(char if char.isprintable() else "?" for char in text)
