"""Axes that a person can read: where ticks stand and what is written at them. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_CLOCK = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
          *(days * _DAY for days in (1, 2, 3, 4, 5, 7, 14)))  # fmt: skip
_DURATIONS = (0.001, 0.01, 0.1, 1, 10, 60, 600, _HOUR, 10 * _HOUR, 4 * _DAY, 40 * _DAY, 400 * _DAY)
_FINE = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, _HOUR, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR,
         _DAY, 2 * _DAY, 4 * _DAY, 10 * _DAY)  # fmt: skip

Ticks = list[tuple[float, str]]


def number_ticks(most: float, count: int) -> Ticks:
    """From 0 to the first round number that is not below `most`, in about `count` steps of 1, 2 or 5."""
    step = _round_up(max(most, 1e-9) / max(1, count))
    return [(i * step, show_number(i * step, step)) for i in range(math.ceil(most / step - 1e-9) + 1)]


def byte_ticks(most: float, count: int) -> Ticks:
    """The same for bytes, in binary units."""
    unit, name = 1, "B"
    for name in ("B", "KiB", "MiB", "GiB", "TiB"):
        if most < 1024 * unit or name == "TiB":
            break
        unit *= 1024
    return [(value * unit, f"{text} {name}") for value, text in number_ticks(most / unit, count)]


def _round_up(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(times * power for times in (1, 2, 2.5, 5, 10) if times * power >= step * (1 - 1e-9))


def show_number(value: float, step: float = 1.0) -> str:
    """`1 200`, `0.5`, `3.2 M`: with as many digits as the step between two ticks asks for."""
    for size, unit in ((1e9, " G"), (1e6, " M")):
        if abs(value) >= size and step >= size / 1000:
            return f"{value / size:.3g}{unit}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (step in (0.25, 2.5, 0.025))
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def duration_ticks(least: float, most: float) -> Ticks:
    """For a logarithmic axis of seconds: those of 1 s, 10 s, 1 min, ... that lie on it; more where it is short."""
    found = _DURATIONS if most / least > 300 else _FINE
    inside = [value for value in found if least * 0.999 <= value <= most * 1.001]
    return [(value, show_duration(value)) for value in inside]


def show_duration(seconds: float) -> str:
    """`0.5 s`, `10 min`, `2 h`, `3 d`: in one unit."""
    for size, unit in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= size and (unit != "d" or seconds >= 2 * _DAY):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def time_ticks(begin: float, end: float, count: int) -> Ticks:
    """Round moments (UTC) between two, seconds since 1970, at most `count`: `12:30`, or `5 Mar` at midnight."""
    if end - begin > count * 14 * _DAY:
        return _month_ticks(begin, end, count)
    step = next((step for step in _CLOCK if (end - begin) / step <= count), _CLOCK[-1])
    first = math.ceil(begin / step) * step
    show: Callable[[datetime], str] = _day if step >= _DAY else _moment
    if step < _MINUTE:
        show = "{:%H:%M:%S}".format
    return [(at, show(datetime.fromtimestamp(at, UTC))) for at in range(int(first), int(end) + 1, step)]


def _month_ticks(begin: float, end: float, count: int) -> Ticks:
    months = []
    at = datetime.fromtimestamp(begin, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    while at.timestamp() <= end:
        if at.timestamp() >= begin:
            months.append(at)
        at = (at + timedelta(days=32)).replace(day=1)
    every = max(1, math.ceil(len(months) / max(1, count)))
    return [(at.timestamp(), f"{at:%b %Y}") for at in months[::every]]


def _day(at: datetime) -> str:
    return f"{at.day} {at:%b}"


def _moment(at: datetime) -> str:
    return _day(at) if at.hour == at.minute == 0 else f"{at:%H:%M}"
