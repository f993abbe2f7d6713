"""What `watch` shows on a terminal: where the campaign stands, how fast it goes, what fails. No clock, no terminal: the
view and the size of the screen come in, lines go out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from textwrap import wrap

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from fermigrid.metrics import Counts
from fermigrid.pace import end_words, rate_words, show_rate
from fermigrid.standing import Standing
from fermigrid.states import ORDER, State
from fermigrid.units import show_count, show_seconds

_STYLES = {
    State.DONE: "green", State.RUNNING: "bright_blue", State.WAITING: "bright_black", State.HELD: "yellow",
    State.ENDED: "cyan", State.UNKNOWN: "magenta", State.FAILED: "red", State.REMOVED: "red",
}  # fmt: skip
_BAR, _LEAST_BAR = 30, 8  # columns
_WIDE = 100  # columns from which numbers are written out
_TITLE = "bold"
_RANKS = ("head", "known", "failures", "steps", "pace", "said")  # in which parts are given room
_MATTERS = 4  # of them are shown whole before the others have any


@dataclass(frozen=True)
class View:
    """Everything that is shown. `failures`: (reason, jobs, one of them); `said`: what was told lately, in its order;
    `looked`: when the last look ended."""

    name: str
    standing: Standing
    failures: Sequence[tuple[str, int, str]] = ()
    said: Sequence[str] = ()
    looked: datetime | None = None


@dataclass
class Screen:
    """A view that is drawn anew for each size of the terminal. `now` is asked at each drawing."""

    view: View
    now: Callable[[], datetime]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.size
        lines = lines_of(self.view, self.now(), width, height, ascii_only=options.ascii_only)
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        yield Text("\n", no_wrap=True, end="").join(lines)


@dataclass(frozen=True)
class _Part:
    """Lines that belong together. `rank`: those with the highest go first where there is little room; `least`: so many
    lines, or none; `gap`: an empty line stands before it."""

    lines: Sequence[Text]
    rank: int
    least: int = 3
    gap: int = 1


def lines_of(view: View, now: datetime, width: int, height: int, *, ascii_only: bool = False) -> list[Text]:
    """At most `height` lines. Where there is little room, parts are cut and left out, what must be known last."""
    parts = [part for part in _parts(view, now, width, ascii_only) if part.lines]
    room = height - 1  # the last line says how to end it
    lines: list[Text] = []
    for part, size in zip(parts, _share_out(parts, room), strict=True):
        cut = [Text(f"  ... {len(part.lines) - size + 1} more", "dim")] if size < len(part.lines) else []
        if size:
            lines += [*[Text()] * part.gap, *part.lines[: size - len(cut)], *cut]
    return [*lines[:room], Text("Ctrl-C ends the watching, not the jobs", "dim")]


def _share_out(parts: Sequence[_Part], room: int) -> list[int]:
    """So many lines for each part: those that matter most first have what they need at least, then all; what is left is
    for the others."""
    given = [0] * len(parts)

    def left(index: int) -> int:
        gaps = sum(part.gap for i, part in enumerate(parts) if given[i] or i == index)
        return room - sum(given) - gaps

    ranked = sorted(range(len(parts)), key=lambda index: parts[index].rank)
    for first, last in ((0, _MATTERS), (_MATTERS, len(_RANKS))):
        group = [index for index in ranked if first <= parts[index].rank < last]
        for index in group:
            least = min(parts[index].least, len(parts[index].lines))
            given[index] = least if least <= left(index) or not parts[index].rank else 0
        for index in group:
            if given[index]:
                given[index] += max(0, min(left(index), len(parts[index].lines) - given[index]))
    return given


def _parts(view: View, now: datetime, width: int, ascii_only: bool) -> Iterator[_Part]:
    standing = view.standing
    yield _Part(_head(view, now, width, ascii_only), rank=_RANKS.index("head"), gap=0)
    pace = [rate_words(standing.pace), end_words(standing.pace, now)] if standing.pace.goes_on else []
    pace_lines = [Text(line) for words in pace for line in _wrapped(words, width)]
    yield _Part(pace_lines, rank=_RANKS.index("pace"), least=len(pace_lines), gap=0)
    known = [Text(line, "yellow") for words in standing.headline.splitlines()[1:] for line in _wrapped(words, width)]
    yield _Part(known, rank=_RANKS.index("known"), gap=0)
    yield _Part(list(_steps(standing, width, ascii_only)), rank=_RANKS.index("steps"))
    failures = [_failure(one) for one in view.failures]
    yield _Part([Text("Failures", _TITLE), *failures] if failures else [], rank=_RANKS.index("failures"))
    said = [Text(f"  {_tame(line)}") for text in reversed(view.said) for line in text.splitlines()]
    yield _Part([Text("Said lately", _TITLE), *said] if said else [], rank=_RANKS.index("said"))


def _head(view: View, now: datetime, width: int, ascii_only: bool) -> list[Text]:
    standing = view.standing
    looked = f"looked {show_seconds(max(0.0, (now - view.looked).total_seconds()))} ago" if view.looked else "looking"
    title = Text.assemble((view.name, "bold"), ("  ", ""), (looked, "dim"))
    every, done = standing.every, standing.counts[State.DONE]
    share = done / every if every else 0.0
    numbers = f" {100 * share:5.1f} %  {_number(done, width)} of {_number(every, width)} jobs done"
    bar = _bar(standing.counts, every, max(_LEAST_BAR, width - len(numbers) - 1), ascii_only)
    return [title, Text.assemble(bar, numbers)]


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(_tame(text), max(width, _LEAST_BAR))


def _steps(standing: Standing, width: int, ascii_only: bool) -> Iterator[Text]:
    """Steps and sites x states, and the jobs that ended in an hour lately."""
    used = [state for state in ORDER if standing.counts[state]]
    groups = [one for one in standing.by_step if any(one.states.values())]
    head, *cells = _cells(standing, groups, used, width)
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    widths[0] = max(widths[0], *(len(step) for step, jobs in standing.unsent_by_step.items() if jobs), 0)
    bar = min(_BAR, width - sum(widths) - 2 * len(widths))
    room = [0, 0] if bar >= -2 else _cut(widths, -bar - 2)
    widths[0], widths[1] = widths[0] - room[0], widths[1] - room[1]
    yield Text("  ".join(_cell(name, i, widths) for i, name in enumerate(head)), _TITLE)
    for one, row in zip(groups, cells, strict=True):
        line = Text("  ").join(Text(_cell(text, i, widths), _style(used, i, one)) for i, text in enumerate(row))
        if bar >= _LEAST_BAR:
            counts = {state: one.states[state] for state in ORDER}
            line.append("  ").append_text(_bar(counts, sum(counts.values()), bar, ascii_only))
        yield line
    unsent = {step: _number(jobs, width) for step, jobs in standing.unsent_by_step.items() if jobs}
    most = max(map(len, unsent.values()), default=0)
    for step, number in unsent.items():
        yield Text(f"{_cell(step, 0, widths)}  {number.rjust(most)} not sent", "dim")


def _cells(standing: Standing, groups: Sequence[Counts], used: Sequence[State], width: int) -> list[list[str]]:
    """The table and its head as texts; the rates are left out where they have no room."""
    lines = [["step", "site", *used, "ended/h"]]
    for one in groups:
        rate = show_rate(standing.pace.rates.get((one.step, one.site), 0.0))
        lines.append([one.step, one.site, *(_number(one.states[state], width) for state in used), rate])
    needed = sum(max(map(len, column)) + 2 for column in zip(*lines, strict=True))
    has_rates = standing.pace.goes_on and standing.pace.rates and needed <= width + 2
    return lines if has_rates else [line[:-1] for line in lines]


def _cut(widths: Sequence[int], much: int) -> list[int]:
    """How many columns the names of steps and sites give up; each keeps six."""
    first = min(max(0, widths[0] - 6), (much + 1) // 2 + max(0, much // 2 - max(0, widths[1] - 6)))
    return [first, min(max(0, widths[1] - 6), much - first)]


def _cell(text: str, column: int, widths: Sequence[int]) -> str:
    if column > 1:
        return text.rjust(widths[column])
    return (text if len(text) <= widths[column] else f"{text[: widths[column] - 1]}…").ljust(widths[column])


def _style(used: Sequence[State], column: int, one: Counts) -> str:
    if not 2 <= column < 2 + len(used):
        return ""
    state = used[column - 2]
    return _STYLES[state] if one.states[state] else "dim"


def _bar(counts: dict[State, int], every: int, width: int, ascii_only: bool) -> Text:
    """A part for each state; what there is of one has one column at least, what is still to come is a line."""
    bar, left = Text(), width
    marks = dict.fromkeys(ORDER, "#" if ascii_only else "█")
    marks |= {State.RUNNING: "=" if ascii_only else "▓", State.WAITING: "-" if ascii_only else "░"}
    marks |= dict.fromkeys((State.FAILED, State.REMOVED), "x" if ascii_only else "×")
    there = [state for state, count in counts.items() if count]
    for number, state in enumerate(there, 1):
        most = left - (len(there) - number)  # one column for each of the others
        size = max(0, min(most, max(1, round(width * counts[state] / every))))
        bar.append(marks[state] * size, _STYLES[state])
        left -= size
    return bar.append(("." if ascii_only else "·") * left, "bright_black")


def _failure(failure: tuple[str, int, str]) -> Text:
    reason, jobs, example = failure
    return Text(f"  {show_count(jobs, 'job')}: {_tame(reason)} (such as {example})")


def _tame(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _number(count: int, width: int) -> str:
    """`1 026 000`, or `1.03M` where there is little room."""
    if width >= _WIDE or count < 10_000:
        return f"{count:,}".replace(",", " ")
    return f"{count / 1e6:.3g}M" if count >= 1_000_000 else f"{count / 1e3:.3g}k"
