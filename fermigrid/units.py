"""Quantities as people write them: `2 GiB`, `4 h`, `50 MB`. A number without its unit is refused, never guessed."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")
BYTES = {
    "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
MOST = 2**53  # what a float still counts by ones


def _parse(text: object, units: dict[str, int], example: str) -> int:
    known = ", ".join(units)
    match = _NUMBER.match(text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"not a quantity: write a number and one of {known}, such as {example}")
    number, unit = match.groups()
    if not unit:
        raise ValueError(f"has no unit: write one of {known} behind it, such as {example}")
    if unit not in units:
        raise ValueError(f"unknown unit {unit!r}: use one of {known}, such as {example}")
    value = float(number) * units[unit]
    if value > MOST:
        raise ValueError("is more than any machine has")
    if round(value) <= 0:
        raise ValueError("must be more than nothing")
    return round(value)


def parse_bytes(text: object) -> int:
    """`2 GiB` -> bytes. Raises ValueError with what is allowed."""
    return _parse(text, BYTES, "2 GiB")


def parse_seconds(text: object) -> int:
    """`4 h` -> seconds. Raises ValueError with what is allowed."""
    return _parse(text, SECONDS, "4 h")


def show_bytes(count: int) -> str:
    """Bytes for a person, in binary units with three digits."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def show_count(count: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def show_seconds(seconds: float) -> str:
    """A duration for a person: `45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for big, small, name, less in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big} {name}" + (f" {rest} {less}" if rest else "")
    raise AssertionError(whole)


def exact_bytes(count: int) -> str:
    """Bytes as `parse_bytes` reads them, with nothing rounded away: `2 GiB`, `2500 MiB`, `1001 B`."""
    return _exact(count, BYTES)


def exact_seconds(count: int) -> str:
    """Seconds as `parse_seconds` reads them, with nothing rounded away: `4 h`, `90 min`."""
    return _exact(count, SECONDS)


def _exact(count: int, units: dict[str, int]) -> str:
    unit = max((name for name, size in units.items() if count % size == 0), key=lambda name: units[name])
    return f"{count // units[unit]} {unit}"
