"""A summary as tables of texts, for a terminal and for a page; and as data, for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fermigrid.attempt import PHASES, RUNGS
from fermigrid.axis import show_number
from fermigrid.histogram import Histogram
from fermigrid.pace import as_data
from fermigrid.report import WORDS
from fermigrid.states import ORDER
from fermigrid.summary import SOURCES, Group, Node, Summary, merged
from fermigrid.units import show_bytes, show_count, show_seconds

_MOST = 20  # rows of what fails
PHASE_WORDS = {name: name.replace("_", "-") for name in PHASES}


@dataclass(frozen=True)
class Table:
    """`columns` over `rows`. `name`: a word for programs; `note`: what the numbers are, in a sentence."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables(summary: Summary) -> list[Table]:
    """Everything, but for what is empty."""
    made = (
        jobs_table(summary), time_table(summary), memory_table(summary), image_table(summary), phase_table(summary),
        data_table(summary), failure_table(summary), node_table(summary), slow_runs_table(summary),
        slow_jobs_table(summary),
    )  # fmt: skip
    return [table for table in made if table.rows]


def jobs_table(summary: Summary) -> Table:
    """Steps x states."""
    used = [str(state) for state in ORDER if any(one.states.get(state) for one in summary.counts)]
    rows = [
        [one.step, one.site, str(sum(one.states.values())), *(str(one.states.get(state, 0)) for state in used)]
        for one in summary.counts
    ]
    for step, every in summary.jobs.items():
        if unsent := every - sum(sum(one.states.values()) for one in summary.counts if one.step == step):
            rows.append([step, "(not sent)", str(unsent), *[""] * len(used)])
    return Table("jobs", "Jobs", ["step", "site", "jobs", *used], rows)


def time_table(summary: Summary) -> Table:
    """Wall and CPU time of the accepted attempts; what the others took."""
    rows = []
    for step, site, group in _groups(summary):
        efficiency = group.efficiency(summary.campaign.steps[step].resources.cpus)
        rows.append([
            step, site, str(group.accepted), *_three(group.wall, show_seconds), show_work(group.wall.total),
            show_work(group.cpu.total) if group.cpu.count else "not told", _percent(efficiency), str(group.failed),
            str(group.surplus), show_work(group.lost),
        ])  # fmt: skip
    columns = ["step", "site", "accepted", "median", "95 %", "longest", "wall", "CPU", "CPU/wall", "failed",
               "not counted", "lost"]  # fmt: skip
    note = "Of accepted attempts; lost: by those that failed, or do not count: another one does, or it was done again."
    return Table("time", "Wall and CPU time", columns, rows, note)


def memory_table(summary: Summary) -> Table:
    """Memory against what was asked for."""
    rows = []
    for step, site, group in _groups(summary):
        asked = summary.campaign.steps[step].resources.memory
        if group.memory.count:
            share = _percent(group.memory.most / asked)
            measured = str(group.memory.count)
            rows.append([step, site, show_bytes(asked), *_three(group.memory, _bytes), share, measured])
    columns = ["step", "site", "asked for", "median", "95 %", "most", "most/asked", "measured"]
    return Table("memory", "Memory", columns, rows, "The most of each job that ended, as HTCondor measured it.")


def image_table(summary: Summary) -> Table:
    """Where images came from."""
    rows = []
    for site in summary.sites:
        group = summary.of_site(site)
        for rung in RUNGS:
            if found := group.images.get(rung):
                share = _percent(found.count / group.attempts)
                times = _three(found, show_seconds)
                fetched = show_bytes(group.fetched) if rung == "http" and group.fetched else ""
                rows.append([site, SOURCES[rung], str(found.count), share, *times, fetched])
    columns = ["site", "from", "attempts", "share", "median", "95 %", "longest", "fetched"]
    return Table("images", "Image source", columns, rows, "How long it took until the image could be used.")


def phase_table(summary: Summary) -> Table:
    """What the time went into."""
    rows = []
    for step in summary.steps:
        group = summary.of_step(step)
        total = sum(group.phases.values())
        if total:
            shares = (_percent(group.phases.get(phase, 0.0) / total) for phase in PHASES)
            rows.append([step, show_work(total), *shares])
    return Table("phases", "Phases", ["step", "wall", *PHASE_WORDS.values()], rows, "Of all attempts.")


def data_table(summary: Summary) -> Table:
    """Output and events."""
    rows = []
    for step in summary.steps:
        group = summary.of_step(step)
        events = [str(group.read), str(group.kept)] if group.reported else ["not told", ""]
        output = [show_bytes(round(group.output.total)), *_three(group.output, _bytes)]
        rows.append([step, str(group.accepted), *output, *events])
    columns = ["step", "accepted", "output", "median", "95 %", "largest", "events read", "events kept"]
    return Table("data", "Output and events", columns, rows)


def failure_table(summary: Summary) -> Table:
    """What failed, the most frequent first."""
    tally = summary.tally
    worst = sorted(tally.failures.items(), key=lambda one: (-one[1], one[0]))
    rows = [
        [str(times), failure.what, failure.step, failure.site, failure.cause, tally.examples[failure]]
        for failure, times in worst[:_MOST]
    ]
    note = _left(len(worst), "causes")
    return Table("failures", "Failures", ["times", "what", "step", "site", "cause", "for instance"], rows, note)


def node_table(summary: Summary) -> Table:
    """The machines on which something failed."""
    nodes = summary.tally.nodes()
    rows = [[node.host, str(node.attempts), str(node.failed), starts_words(node)] for node in nodes[:_MOST]]
    note = f"{_left(len(nodes), 'nodes')} Attempts ran on {show_count(summary.tally.hosts, 'node')}.".strip()
    return Table(
        "nodes", "Nodes on which something failed", ["node", "attempts", "failed", "failed starts"], rows, note
    )


def starts_words(node: Node) -> str:
    """`82 no image: 3 times`."""
    starts = sorted(node.starts.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{code} {WORDS.get(code, '')}: {times} times" for code, times in starts)


def slow_runs_table(summary: Summary) -> Table:
    """The runs that took longest."""
    rows = [
        [slow.step, slow.run, show_seconds(slow.seconds), str(slow.attempts), show_work(slow.wall),
         show_seconds(slow.longest)]
        for slow in summary.tally.slow_runs()
    ]  # fmt: skip
    note = "From the first begin to the last end of a run's attempts in a step."
    return Table("slow runs", "Slowest runs", ["step", "run", "took", "attempts", "wall", "longest"], rows, note)


def slow_jobs_table(summary: Summary) -> Table:
    """The jobs that took longest."""
    rows = [
        [slow.job, slow.site, slow.host, show_seconds(slow.wall), "" if slow.cpu is None else show_seconds(slow.cpu)]
        for slow in summary.tally.slow_jobs()
    ]
    return Table("slow jobs", "Slowest jobs", ["job", "site", "node", "wall", "CPU"], rows)


def _groups(summary: Summary) -> Iterator[tuple[str, str, Group]]:
    for step in summary.steps:
        for site in summary.sites:
            if group := summary.tally.groups.get((step, site)):
                yield step, site, group


def _three(values: Histogram, show: Any) -> list[str]:
    if not values.count:
        return ["", "", ""]
    return [show(values.quantile(0.5)), show(values.quantile(0.95)), show(values.most)]


def _bytes(value: float) -> str:
    return show_bytes(round(value))


def show_work(seconds: float) -> str:
    """What many jobs took together: `1 200 h`; below ten hours with minutes and seconds."""
    return f"{show_number(seconds / 3600)} h" if seconds >= 36_000 else show_seconds(seconds)


def _percent(share: float | None) -> str:
    return "not told" if share is None else f"{100 * share:.1f} %"


def _left(number: int, noun: str) -> str:
    return f"{number - _MOST} more {noun} are not shown." if number > _MOST else ""


# --- for programs


def as_json(summary: Summary) -> dict[str, Any]:
    """All of it: times in s, sizes in bytes."""
    tally = summary.tally
    return {
        "campaign": summary.campaign.campaign,
        "version": summary.campaign.version,
        "folder": summary.folder,
        "state": summary.state,
        "notes": list(summary.notes),
        "begun": summary.created.isoformat(),
        "made": summary.made.isoformat(),
        "pace": as_data(summary.pace),
        "jobs": [{"step": one.step, "site": one.site, "states": one.states} for one in summary.counts],
        "steps": [
            {"step": step, "site": site, "asked": _asked(summary, step), **_group_json(group)}
            for step, site, group in _groups(summary)
        ],
        "total": _group_json(merged(tally.groups.values())),
        "failures": [
            {"what": one.what, "site": one.site, "step": one.step, "cause": one.cause, "times": times,
             "example": tally.examples[one]}
            for one, times in sorted(tally.failures.items(), key=lambda one: (-one[1], one[0]))
        ],
        "nodes": [
            {"host": node.host, "attempts": node.attempts, "failed": node.failed,
             "starts": {str(code): times for code, times in node.starts.items()}}
            for node in tally.nodes()
        ],
        "slow_runs": [vars(slow) for slow in tally.slow_runs()],
        "slow_jobs": [vars(slow) for slow in tally.slow_jobs()],
        "timeline": _timeline_json(summary),
        "out_of_time": tally.out_of_time,
    }  # fmt: skip


def _asked(summary: Summary, step: str) -> dict[str, int]:
    resources = summary.campaign.steps[step].resources
    return {"cpus": resources.cpus, "memory": resources.memory, "walltime": resources.walltime}


def _group_json(group: Group) -> dict[str, Any]:
    return {
        "accepted": group.accepted, "failed": group.failed, "not_counted": group.surplus,
        "wall": _spread(group.wall), "cpu": _spread(group.cpu), "memory": _spread(group.memory),
        "output": _spread(group.output), "lost": round(group.lost, 3),
        "events_read": group.read if group.reported else None, "events_kept": group.kept if group.reported else None,
        "phases": {phase: round(seconds, 3) for phase, seconds in group.phases.items()},
        "images": {rung: _spread(found) for rung, found in group.images.items()}, "image_bytes": group.fetched,
    }  # fmt: skip


def _spread(values: Histogram) -> dict[str, float] | None:
    if not values.count:
        return None
    shares = {"p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95}
    found = {name: round(values.quantile(share), 3) for name, share in shares.items()}
    return {"count": values.count, "sum": round(values.total, 3), "least": values.least, **found, "most": values.most}


def _timeline_json(summary: Summary) -> dict[str, Any]:
    line = summary.tally.timeline
    names: Mapping[str, Iterable[tuple[str, ...]]] = {kind: line.kinds(kind) for kind in ("accepted", "events")}
    return {
        "begin": line.begin, "seconds": line.width, "bins": line.bins,
        **{kind: {key[1]: line.amounts(key) for key in keys} for kind, keys in names.items()},
        "failed": line.amounts(("failed",)),
    }  # fmt: skip
