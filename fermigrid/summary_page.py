"""A summary as one HTML page: plots, their numbers as tables, no script, nothing from elsewhere. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate

from markupsafe import Markup

from fermigrid.attempt import PHASES, RUNGS
from fermigrid.axis import byte_ticks, duration_ticks, show_number
from fermigrid.charts import (
    COLOURS,
    NARROW,
    WIDE,
    Axis,
    Range,
    Series,
    Shares,
    Times,
    bars,
    over_time,
    ranges,
    shares,
    svg,
)
from fermigrid.histogram import Histogram
from fermigrid.pace import end_words, show_rate
from fermigrid.summary import SOURCES, Summary, merged
from fermigrid.summary_tables import (
    PHASE_WORDS,
    Table,
    data_table,
    failure_table,
    image_table,
    jobs_table,
    memory_table,
    node_table,
    phase_table,
    show_work,
    slow_jobs_table,
    slow_runs_table,
    time_table,
)
from fermigrid.timeline import running
from fermigrid.units import show_bytes, show_seconds

_LONG = 32  # characters of a cell that goes on in a second line
_POINTS = 24  # rows of a table of what happened over time
_CAUSES = 8  # that are drawn
_NAMED = 5  # series with a colour of their own; the others are one

Draw = Callable[[int], tuple[Markup, float]]


@dataclass(frozen=True)
class Figure:
    """A plot: how it is drawn at a width, what its colours mean, and its numbers."""

    name: str
    title: str
    words: str
    draw: Draw
    legend: Sequence[tuple[str, str]]  # style, name
    table: Table


def write_page(summary: Summary, style: str) -> str:
    """The page. `style`: its style sheet."""
    head = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>{}: campaign report</title><style>{}</style></head>\n"
    ).format(summary.name, Markup(style))
    sections = Markup("\n").join([_section(jobs_table(summary)), *map(_figure, figures(summary))])
    rest = Markup("\n").join([_section(table) for table in _tables(summary) if table.rows])
    return str(
        head
        + Markup("<body><main>{}{}\n{}\n{}\n{}</main></body></html>\n").format(
            _header(summary), _tiles(summary), sections, rest, _footer(summary)
        )
    )


def _header(summary: Summary) -> Markup:
    lines = [summary.state, *summary.notes]
    if words := end_words(summary.pace, summary.made):
        lines += [words]
    form = "<header><p class='over'>Campaign report, {} UTC</p><h1>{}</h1>{}</header>"
    told = Markup("").join(Markup("<p>{}</p>").format(line) for line in lines)
    return Markup(form).format(_moment(summary.made), summary.name, told)


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}"


def _footer(summary: Summary) -> Markup:
    skipped = summary.tally.out_of_time
    note = f" {skipped} attempts whose clocks were wrong are on no time axis." if skipped else ""
    form = "<footer><p>Begun {} UTC. All times are UTC.{}</p><p>Run folder: {}</p><p>Made by fermigrid.</p></footer>"
    return Markup(form).format(_moment(summary.created), note, summary.folder)


def _tiles(summary: Summary) -> Markup:
    form = "<div><dt>{}</dt><dd>{}</dd></div>"
    return Markup("<dl class='tiles'>{}</dl>").format(
        Markup("").join(Markup(form).format(name, value) for name, value in key_figures(summary))
    )


def key_figures(summary: Summary) -> list[tuple[str, str]]:
    """The numbers that are asked for first."""
    total, pace = merged(summary.tally.groups.values()), summary.pace
    done, failed = (sum(one.states.get(state, 0) for one in summary.counts) for state in ("done", "failed"))
    every = sum(summary.jobs.values())
    cpu = show_work(total.cpu.total) if total.cpu.count else "not told"
    found = [
        ("jobs done", f"{show_number(done)} of {show_number(every)}"),
        ("jobs failed", show_number(failed)),
        ("wall time", show_work(total.wall.total)),
        ("CPU time", cpu),
        ("output", show_bytes(round(total.output.total))),
        ("lost to failures", show_work(total.lost)),
    ]
    if pace.goes_on and not pace.young:
        found.append(("done, by the last hour", f"{show_rate(pace.good)} jobs/h"))
    return found


def _tables(summary: Summary) -> Iterator[Table]:
    yield from (node_table(summary), data_table(summary))
    yield from (slow_runs_table(summary), slow_jobs_table(summary))


def _section(table: Table) -> Markup:
    return Markup("<section><h2>{}</h2>{}</section>").format(table.title, _table(table))


def _table(table: Table) -> Markup:
    right = [all(_is_number(row[i]) for row in table.rows) for i in range(len(table.columns))]
    cell = [' class="n"' if is_right else "" for is_right in right]
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(Markup(c), name) for c, name in zip(cell, table.columns, strict=True)
    )
    body = Markup("\n").join(
        Markup("<tr>{}</tr>").format(Markup("").join(_cell(text, c) for c, text in zip(cell, row, strict=True)))
        for row in table.rows
    )
    note = Markup("<p class='note'>{}</p>").format(table.note) if table.note else Markup("")
    form = (
        '<div class="scroll" tabindex="0" role="region" aria-label="{}"><table><thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>{}"
    )
    return Markup(form).format(table.title, head, body, note)


def _cell(text: str, style: str) -> Markup:
    return Markup("<td{}>{}</td>").format(Markup(' class="w"' if len(text) > _LONG else style), text)


def _is_number(text: str) -> bool:
    return not text or text[0].isdigit()


def _figure(figure: Figure) -> Markup:
    drawn = []
    for kind, width in (("wide", WIDE), ("narrow", NARROW)):
        body, height = figure.draw(width)
        plot = svg(f"{figure.name}-{kind}", figure.title, figure.words, width, height, body)
        drawn.append(Markup('<div class="{}">{}</div>').format(kind, plot))
    legend = Markup("").join(
        Markup('<li><span class="chip {}"></span>{}</li>').format(style, name) for style, name in figure.legend
    )
    form = (
        "<section><h2>{}</h2><figure>{}{}<figcaption>{}</figcaption></figure>"
        "<details><summary>The numbers</summary>{}</details></section>"
    )
    chips = Markup('<ul class="legend">{}</ul>').format(legend) if legend else Markup("")
    return Markup(form).format(figure.title, chips, Markup("").join(drawn), figure.words, _table(figure.table))


# --- the figures


def figures(summary: Summary) -> Iterator[Figure]:
    """Those for which there is something to show."""
    times = _times(summary)
    if times.bins:
        yield _progress(summary, times)
        yield _throughput(summary, times)
        if any(summary.tally.timeline.kinds("events")):
            yield _events(summary, times)
        yield _running(summary, times)
    if spread := list(_spreads(summary)):
        yield _ranges_figure("wall", "Wall and CPU time of a job", _TIME_WORDS, spread, time_table(summary), log=True)
    if memory := _memory_rows(summary):
        table = memory_table(summary)
        yield _ranges_figure("memory", "Memory of a job", _MEMORY_WORDS, memory, table, log=False)
    if images := _image_rows(summary):
        yield _images(summary, images)
    if phases := _phase_rows(summary):
        yield _phases(summary, phases)
    if summary.tally.failures:
        yield _failures(summary)


def _times(summary: Summary) -> Times:
    line = summary.tally.timeline
    return Times(line.begin, line.width, line.bins)


def _progress(summary: Summary, times: Times) -> Figure:
    found = {}
    for step in summary.steps:
        every = summary.jobs.get(step) or 1
        amounts = accumulate(summary.tally.timeline.amounts(("accepted", step)))
        found[step] = [min(100.0, 100 * amount / every) for amount in amounts]
    series = _coloured(found, _highest)
    axis = Axis("accepted, % of the step's jobs", most=100.0)
    words = "Jobs with an accepted result, of all jobs of each step."
    return _time_figure("progress", "Progress", words, times, series, axis, stacked=False)


def _throughput(summary: Summary, times: Times) -> Figure:
    line = summary.tally.timeline
    hours = times.width / 3600
    found = {site: [n / hours for n in line.amounts(("accepted at", site))] for site in summary.sites}
    failed = Series("failed attempts", [n / hours for n in line.amounts(("failed",))], "bad")
    series = [*_coloured(found, _together), failed]
    words = "Accepted jobs by site, and on top of them the attempts that failed."
    return _time_figure("throughput", "Throughput", words, times, series, Axis("jobs/h"), stacked=True)


def _events(summary: Summary, times: Times) -> Figure:
    line = summary.tally.timeline
    found = {key[1]: [n / times.width for n in line.amounts(key)] for key in line.kinds("events")}
    words = "Events that accepted jobs read, counted at the end of the job."
    return _time_figure("events", "Events", words, times, _coloured(found, _together), Axis("events/s"), stacked=True)


def _running(summary: Summary, times: Times) -> Figure:
    found = {site: running(summary.tally.timeline, site) for site in summary.sites}
    words = "How many ran at the same time, on the average; jobs that still run are not in it."
    series = _coloured(found, _together)
    return _time_figure("running", "Running jobs", words, times, series, Axis("jobs"), stacked=True)


def _highest(columns: Sequence[float]) -> float:
    return max(columns)


def _together(columns: Sequence[float]) -> float:
    return sum(columns)


def _coloured(found: Mapping[str, Sequence[float]], join: Callable[[Sequence[float]], float]) -> list[Series]:
    """A colour for each; what comes after the fifth is one, and has the last colour."""
    names = list(found)
    series = [Series(name, found[name], f"s{number}") for number, name in enumerate(names[:_NAMED])]
    if others := names[_NAMED:]:
        columns = zip(*(found[name] for name in others), strict=True)
        series.append(Series(f"{len(others)} others", [join(column) for column in columns], f"s{COLOURS - 1}"))
    return series


def _time_figure(
    name: str, title: str, words: str, times: Times, series: Sequence[Series], axis: Axis, *, stacked: bool
) -> Figure:
    def draw(width: int) -> tuple[Markup, float]:
        return over_time(times, series, axis, width, stacked=stacked)

    legend = [(one.style, one.name) for one in series]
    return Figure(name, title, words, draw, legend, _over_time_table(title, times, series, axis, stacked))


def _over_time_table(title: str, times: Times, series: Sequence[Series], axis: Axis, stacked: bool) -> Table:
    """At most 24 rows: of a rate the average of each stretch, of a sum what it has come to at its end."""
    size = -(-times.bins // _POINTS)
    rows = []
    for start in range(0, times.bins, size):
        until = min(start + size, times.bins)
        at = datetime.fromtimestamp(times.begin + until * times.width, UTC)
        parts = [one.values[start:until] for one in series]
        values = [sum(part) / len(part) if stacked else part[-1] for part in parts]
        rows.append([f"{at:%Y-%m-%d %H:%M}", *(f"{value:.4g}" for value in values)])
    return Table(title, title, ["until", *(one.name for one in series)], rows, f"In {axis.title}.")


_TIME_WORDS = (
    "Accepted attempts: thick from the 25 % to the 75 % quantile with the median in it, thin from the shortest to the "
    "longest. The scale is logarithmic. The dashed line is the walltime that was asked for."
)
_MEMORY_WORDS = (
    "The most memory of each job: thick from the 25 % to the 75 % quantile with the median in it, thin from the least "
    "to the most. The dashed line is what was asked for."
)


def _ranges_figure(name: str, title: str, words: str, rows: Sequence[Range], table: Table, *, log: bool) -> Figure:
    def draw(width: int) -> tuple[Markup, float]:
        ticks = duration_ticks if log else (lambda _, most: byte_ticks(most, width // 120))
        return ranges(rows, ticks, width, log=log)

    return Figure(name, title, words, draw, (), table)


def _spreads(summary: Summary) -> Iterator[Range]:
    for step in summary.steps:
        group, asked = summary.of_step(step), summary.campaign.steps[step].resources.walltime
        if group.wall.count:
            yield _range(f"{step}, wall", group.wall, show_seconds, asked)
        if group.cpu.count:
            yield _range(f"{step}, CPU", group.cpu, show_seconds, None)


def _memory_rows(summary: Summary) -> list[Range]:
    found = []
    for step in summary.steps:
        memory, asked = summary.of_step(step).memory, summary.campaign.steps[step].resources.memory
        if memory.count:
            found.append(_range(step, memory, lambda value: show_bytes(round(value)), asked))
    return found


def _range(label: str, values: Histogram, show: Callable[[float], str], asked: float | None) -> Range:
    low, middle, high = (values.quantile(share) for share in (0.25, 0.5, 0.75))
    words = f"{label}: median {show(middle)}, 25 to 75 % {show(low)} to {show(high)}, most {show(values.most)}"
    return Range(label, values.least, low, middle, high, values.most, words, asked)


def _image_rows(summary: Summary) -> list[Shares]:
    found = []
    for site in summary.sites:
        images = summary.of_site(site).images
        parts = {SOURCES[rung]: float(images[rung].count) for rung in RUNGS if rung in images}
        found.append(Shares(site, parts))
    return found


def _images(summary: Summary, rows: Sequence[Shares]) -> Figure:
    styles = {SOURCES[rung]: "bad" if rung == "none" else f"s{number}" for number, rung in enumerate(RUNGS)}
    words = "Where the image of each attempt came from, by site."
    return _bars_figure("images", "Image source", words, rows, styles, image_table(summary), shares)


def _phase_rows(summary: Summary) -> list[Shares]:
    found = []
    for step in summary.steps:
        phases = summary.of_step(step).phases
        if sum(phases.values()):
            found.append(Shares(step, {PHASE_WORDS[name]: phases.get(name, 0.0) for name in PHASES}))
    return found


def _phases(summary: Summary, rows: Sequence[Shares]) -> Figure:
    order = ("payload", "stage_in", "stage_out", "image", "secrets", "setup")
    styles = {PHASE_WORDS[name]: f"s{number}" for number, name in enumerate(order)}
    words = "What the wall time of all attempts went into, by step."
    return _bars_figure("phases", "Phases", words, rows, styles, phase_table(summary), shares)


def _failures(summary: Summary) -> Figure:
    """The most frequent causes, by site."""
    causes: dict[str, Counter[str]] = {}
    for failure, times in summary.tally.failures.items():
        causes.setdefault(failure.cause, Counter())[failure.site] += times
    worst = sorted(causes, key=lambda cause: (-causes[cause].total(), cause))[:_CAUSES]
    sites = sorted({site for cause in worst for site in causes[cause]})
    styles = {site: f"s{min(number, COLOURS - 1)}" for number, site in enumerate(sites)}
    rows = [Shares(cause, {site: float(causes[cause][site]) for site in sites}) for cause in worst]
    words = "Attempts that failed, and jobs that were removed or are held, by cause and site."
    return _bars_figure("failures", "Failures", words, rows, styles, failure_table(summary), bars)


def _bars_figure(
    name: str, title: str, words: str, rows: Sequence[Shares], styles: Mapping[str, str], table: Table,
    draw: Callable[[Sequence[Shares], Mapping[str, str], int], tuple[Markup, float]],
) -> Figure:  # fmt: skip
    used = dict.fromkeys(part for row in rows for part, amount in row.parts.items() if amount)
    legend = [(styles[part], part) for part in used]
    return Figure(name, title, words, lambda width: draw(rows, styles, width), legend, table)
