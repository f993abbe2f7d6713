"""What one report says of an attempt, as far as it adds up with others. Pure.

A report is a job's own word: what is no number counts as none, and no text is taken as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PHASES = ("setup", "secrets", "image", "stage_in", "payload", "stage_out")
_NUMBER = re.compile(r"(?<!code )(?<!signal )(?<![0-9])[0-9]+")
RUNGS = ("site", "path", "cache", "http", "registry", "none")
TEXT = 200  # characters of a cause


@dataclass(frozen=True, slots=True)
class Attempt:
    """What one report says, as far as it adds up. Times in s (`begin`, `end` since 1970), sizes in bytes.

    `accepted`: its result is the job's; otherwise it failed (`exit` not 0), or another one counts. None: not told.
    """

    job: str
    step: str
    site: str
    run: str
    accepted: bool
    exit: int
    host: str
    begin: int
    end: int
    wall: float
    cpu: float | None
    phases: Mapping[str, float]
    rung: str
    image_seconds: float
    image_bytes: int
    output: int
    read: int | None
    kept: int | None


def attempt_of(job: str, step: str, site: str, run: str, accepted: bool, data: Mapping[str, Any]) -> Attempt:
    """Of a report's JSON; `accepted`: is it the job's result?"""
    phases, image, summary = (_mapping(data.get(key)) for key in ("phases", "image", "summary"))
    begin, end = _whole(data.get("begin")), _whole(data.get("end"))
    user, system = _number(data.get("user")), _number(data.get("system"))
    total = _number(phases.get("total"))
    outputs = data.get("outputs")
    return Attempt(
        job, step, site, run, accepted,
        exit=_whole(data.get("exit")),
        host=_short(data.get("host", ""), 80),
        begin=begin,
        end=end,
        wall=float(max(0, end - begin)) if total is None else total,
        cpu=None if user is None or system is None else user + system,
        phases={name: seconds for name in PHASES if (seconds := _number(phases.get(name)))},
        rung=rung if (rung := image.get("rung")) in RUNGS else "none",
        image_seconds=_number(image.get("seconds")) or 0.0,
        image_bytes=_whole(image.get("bytes")),
        output=sum(_whole(_mapping(each).get("bytes")) for each in outputs) if isinstance(outputs, list) else 0,
        read=_count(summary.get("events_read")),
        kept=_count(summary.get("events_kept")),
    )  # fmt: skip


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    """A number that a job may tell: not below 0, and not more than a million years."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e13:
        return None
    return float(value)


def _whole(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**62 else 0


def _count(value: object) -> int | None:
    text = str(value)
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


def _short(value: object, most: int) -> str:
    text = str(value)[: most + 1]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else " " for char in text)
    text = text.strip()
    return text if len(text) <= most else f"{text[: most - 1]}…"


def gist(reason: str) -> str:
    """A reason without what differs from job to job: its numbers, but exit codes and signals, and the slot that told it
    (`slot1_2@node7`)."""
    return _short(_NUMBER.sub("#", re.sub(r"[\w.-]+@[\w.-]+", "…", reason)), TEXT) or "no reason given"
