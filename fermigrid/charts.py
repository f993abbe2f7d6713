"""Plots as SVG texts: lines and areas over time, ranges, shares. Pure.

Every text is escaped where it is put in. Colours are classes (`s0`, ...) of the page's style sheet, so that a page may
be light or dark. A plot is made as wide as it will be shown: its letters are never scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fermigrid.axis import Ticks, number_ticks, time_ticks

WIDE, NARROW = 760, 320  # px
COLOURS = 6  # classes s0 to s5; `bad` is another
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 26, 30
_ROW, _BAR = 40, 14
_LETTER, _EDGE = 6.4, 4  # px: of the letters that stand below an axis; what is left free beside them
_BIN = 4  # px, at least


@dataclass(frozen=True)
class Series:
    """Values of one name, one for each bin. `style`: the class of its colour."""

    name: str
    values: Sequence[float]
    style: str


@dataclass(frozen=True)
class Axis:
    """What the height means. `ticks` makes them for the largest value; `title` has the unit in it."""

    title: str
    ticks: Callable[[float, int], Ticks] = number_ticks
    most: float | None = None  # None: the largest value


@dataclass(frozen=True)
class Times:
    """Bins of `width` s from `begin` (seconds since 1970) on."""

    begin: int
    width: int
    bins: int

    @property
    def end(self) -> int:
        """Where the last bin ends."""
        return self.begin + self.bins * self.width


@dataclass(frozen=True)
class Range:
    """A row: how values are spread, `low` and `high` being the ends of the thick part. `mark`: what was asked for."""

    label: str
    least: float
    low: float
    middle: float
    high: float
    most: float
    words: str
    mark: float | None = None


@dataclass(frozen=True)
class Shares:
    """A row of amounts by what they are of."""

    label: str
    parts: Mapping[str, float]


def svg(name: str, title: str, text: str, width: int, height: float, body: Markup) -> Markup:
    """A plot for eyes and for screen readers. `name`: of its elements' ids."""
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="{0}-t {0}-d" viewBox="0 0 {1} {2:.0f}" '
        'width="{1}" height="{2:.0f}"><title id="{0}-t">{3}</title><desc id="{0}-d">{4}</desc>{5}</svg>'
    ).format(name, width, height, title, text, body)


# --- over time


def over_time(times: Times, series: Sequence[Series], axis: Axis, width: int, *, stacked: bool) -> tuple[Markup, float]:
    """Lines, or areas on top of each other, and the height. Bins are joined until each is wide enough to be seen."""
    height = 250 if width >= WIDE else 210
    times, series = _joined(times, series, -(-times.bins * _BIN // (width - _LEFT - _RIGHT)), stacked)
    top = axis.most or _largest(series, stacked)
    ticks = axis.ticks(top or 1.0, 5 if width >= WIDE else 4)
    field = _Field(width, height, times, max(value for value, _ in ticks))
    parts = [field.grid(ticks, axis.title)]
    below = [0.0] * times.bins
    for one in series:
        if stacked:
            above = [a + b for a, b in zip(below, one.values, strict=True)]
            parts.append(field.area(below, above, one))
            below = above
        else:
            parts.append(field.line(one))
    return Markup("").join(parts), height


def _joined(times: Times, series: Sequence[Series], size: int, stacked: bool) -> tuple[Times, Sequence[Series]]:
    """So many bins as one: of a rate the average, of a sum what it has come to."""
    if size <= 1:
        return times, series
    starts = range(0, times.bins, size)
    joined = []
    for one in series:
        parts = (one.values[start : start + size] for start in starts)
        values = [sum(part) / size if stacked else part[-1] for part in parts]
        joined.append(Series(one.name, values, one.style))
    return Times(times.begin, times.width * size, len(starts)), joined


def _largest(series: Sequence[Series], stacked: bool) -> float:
    columns = zip(*(one.values for one in series), strict=True)
    return max((sum(column) if stacked else max(column) for column in columns), default=0.0)


class _Field:
    """Where the plot's points are."""

    def __init__(self, width: int, height: int, times: Times, top: float) -> None:
        self._width, self._height, self._times, self._top = width, height, times, top
        self._right, self._bottom = width - _RIGHT, height - _BOTTOM

    def _x(self, time: float) -> float:
        share = (time - self._times.begin) / max(1, self._times.end - self._times.begin)
        return _LEFT + share * (self._right - _LEFT)

    def _y(self, value: float) -> float:
        return self._bottom - value / self._top * (self._bottom - _TOP)

    def grid(self, ticks: Ticks, title: str) -> Markup:
        parts = [Markup('<text class="unit" x="2" y="12">{}</text>').format(title)]
        for value, text in ticks:
            y = self._y(value)
            parts.append(_line("base" if value == 0 else "grid", _LEFT, y, self._right, y))
            parts.append(_text(text, _LEFT - 6, y + 4, "end"))
        marks = time_ticks(self._times.begin, self._times.end, self._width // 75)
        places = [(self._x(time), text) for time, text in marks]
        parts += [_line("base", x, self._bottom, x, self._bottom + 4) for x, _ in places]
        parts.append(_labels(places, self._bottom + 17, self._width))
        return Markup("").join(parts)

    def line(self, one: Series) -> Markup:
        edges = [self._times.begin + (number + 1) * self._times.width for number in range(self._times.bins)]
        points = [(self._times.begin, 0.0), *zip(edges, one.values, strict=True)]
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        return Markup('<polyline class="line {}" points="{}"/>').format(one.style, path)

    def area(self, below: Sequence[float], above: Sequence[float], one: Series) -> Markup:
        there, back = self._steps(above), self._steps(below)[::-1]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in [*there, *back])
        return Markup('<path class="area {}" d="M{}Z"><title>{}</title></path>').format(one.style, path, one.name)

    def _steps(self, values: Sequence[float]) -> list[tuple[float, float]]:
        points = []
        for number, value in enumerate(values):
            if 0 < number < len(values) - 1 and values[number - 1] == value == values[number + 1]:
                continue  # a flat stretch needs its ends only
            begin = self._times.begin + number * self._times.width
            points += [(self._x(begin), self._y(value)), (self._x(begin + self._times.width), self._y(value))]
        return points


# --- rows


def ranges(
    rows: Sequence[Range], ticks: Callable[[float, float], Ticks], width: int, *, log: bool
) -> tuple[Markup, float]:
    """How values are spread, row by row: thin from the least to the most, thick from low to high, a line at the
    middle."""
    least = min(row.least for row in rows) if log else 0.0
    most = max(max(row.most, row.mark or 0.0) for row in rows)
    if log:
        least, most = max(least, 1e-2) / 1.15, max(most, 2e-2) * 1.15
    marks = ticks(least, most)
    most = most if log else max(value for value, _ in marks)
    height = 14 + _ROW * len(rows) + 22

    def place(value: float) -> float:
        share = math.log(max(value, least) / least) / math.log(most / least) if log else value / most
        return 8 + share * (width - 22)

    parts = [_ticks_below(marks, place, height - 22, width)]
    for number, row in enumerate(rows):
        parts.append(_range(row, 14 + number * _ROW, place, width))
    return Markup("").join(parts), height


def _range(row: Range, top: float, place: Callable[[float], float], width: int) -> Markup:
    y, low = top + 22, place(row.low)
    form = '<rect class="s0" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}" rx="2"><title>{}</title></rect>'
    parts = [
        _text(_cut(row.label, width), 2, top + 8, "start", "name"),
        _line("whisker", place(row.least), y, place(row.most), y),
        Markup(form).format(low, y - _BAR / 2, max(2.0, place(row.high) - low), _BAR, row.words),
        _line("middle", place(row.middle), y - _BAR / 2, place(row.middle), y + _BAR / 2),
    ]
    if row.mark is not None:
        parts.append(_line("asked", place(row.mark), y - _BAR / 2 - 4, place(row.mark), y + _BAR / 2 + 4))
    return Markup("").join(parts)


def shares(rows: Sequence[Shares], styles: Mapping[str, str], width: int) -> tuple[Markup, float]:
    """Rows of 100 %."""
    marks = [(share / 100, f"{share} %") for share in (0, 25, 50, 75, 100)]
    return _bars(rows, styles, width, marks, lambda part, total: part / total, "{:.1f} %", 100)


def bars(rows: Sequence[Shares], styles: Mapping[str, str], width: int) -> tuple[Markup, float]:
    """Rows that are as long as their sums."""
    marks = number_ticks(max(sum(row.parts.values()) for row in rows), width // 120)
    return _bars(rows, styles, width, marks, lambda part, _: part, "{:.0f}", 1)


def _bars(
    rows: Sequence[Shares], styles: Mapping[str, str], width: int, marks: Ticks,
    of: Callable[[float, float], float], form: str, times: float,
) -> tuple[Markup, float]:  # fmt: skip
    height, most = 14 + _ROW * len(rows) + 22, max(value for value, _ in marks)

    def place(value: float) -> float:
        return 8 + value / most * (width - 22)

    parts = [_ticks_below(marks, place, height - 22, width)]
    for number, row in enumerate(rows):
        top, total, done = 14 + number * _ROW, sum(row.parts.values()), 0.0
        parts.append(_text(_cut(row.label, width), 2, top + 8, "start", "name"))
        for name, amount in row.parts.items():
            x, end = place(of(done, total)), place(of(done + amount, total))
            words = f"{row.label}, {name}: {form.format(of(amount, total) * times)}"
            parts.append(_bar(styles[name], x, top + 14, end - x, words))
            done += amount
    return Markup("").join(parts), height


def _bar(style: str, x: float, y: float, width: float, words: str) -> Markup:
    form = '<rect class="part {}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>'
    return Markup(form).format(style, x, y, width, _BAR + 2, words)


def _cut(text: str, width: int) -> str:
    """As much of a text as fits, whatever its letters are."""
    room = width - 24.0
    for number, char in enumerate(text):
        room -= 8 if char.isascii() and char not in "mwMW@%" and not char.isupper() else 13
        if room < 0:
            return f"{text[:number]}…"
    return text


def _ticks_below(marks: Ticks, place: Callable[[float], float], bottom: float, width: int) -> Markup:
    places = [(place(value), text) for value, text in marks]
    lines = [_line("grid", x, 6, x, bottom + 2) for x, _ in places]
    return Markup("").join([*lines, _labels(places, bottom + 17, width)])


def _labels(places: Iterable[tuple[float, str]], y: float, width: int) -> Markup:
    """Texts below an axis, each in the middle of its place or as near as the plot's edges let it be. One whose letters
    would touch those before it is left out."""
    parts, last = list[Markup](), -1e9
    for x, text in places:
        half = _LETTER / 2 * len(text)
        middle = min(max(x, half + _EDGE), width - half - _EDGE)
        if middle - half > last + 8:
            parts.append(_text(text, middle, y, "middle"))
            last = middle + half
    return Markup("").join(parts)


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    form = '<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
    return Markup(form).format(style, x1, y1, x2, y2)


def _text(text: str, x: float, y: float, anchor: str, style: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(style, x, y, anchor, text)
