"""What a benchmark measured, beside its floor and its limit; and the machine on which it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FORMS = {"s": "{:,.2f} s", "ms": "{:,.0f} ms", "MB": "{:,.0f} MB", "/s": "{:,.0f}/s", "": "{:,.0f}"}


@dataclass(frozen=True)
class Figure:
    """One figure. `unit`: s, ms, MB or none (a number), of which less is better, or /s, of which more is. `floor`: the same
    of something that can hardly be beaten, named by `what_floor`. `limit`: what it must keep; None: it is only told.
    """

    what: str
    value: float
    unit: str
    floor: float | None = None
    what_floor: str = ""
    limit: float | None = None

    @property
    def ratio(self) -> float | None:
        """How far from the floor it is: 1 would be at it."""
        if not self.floor or not self.value:
            return None
        return self.floor / self.value if self.unit == "/s" else self.value / self.floor

    @property
    def good(self) -> bool:
        """Is the limit kept?"""
        return self.limit is None or (self.value >= self.limit if self.unit == "/s" else self.value <= self.limit)


HEADINGS = ("what", "measured", "floor", "ratio", "limit", "ok")


def cells(figure: Figure) -> tuple[str, ...]:
    """A figure in words, for `HEADINGS`."""

    def show(value: float | None) -> str:
        return "" if value is None else _FORMS[figure.unit].format(value)

    floor = f"{show(figure.floor)}: {figure.what_floor}" if figure.floor is not None else ""
    ratio = "" if figure.ratio is None else f"{figure.ratio:.1f}"
    good = "" if figure.limit is None else "yes" if figure.good else "NO"
    return figure.what, show(figure.value), floor, ratio, show(figure.limit), good


def machine() -> str:
    """Processor, cores, memory, kernel, Python, and how busy it is."""
    model = next((line.partition(": ")[2] for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    system = os.uname()
    python = ".".join(map(str, sys.version_info[:3]))
    where = f"{model}, {os.cpu_count()} cores, {total / 2**20:.0f} GiB, {system.sysname} {system.release}"
    return f"{where}, Python {python}; load {os.getloadavg()[0]:.1f}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


@dataclass(frozen=True)
class Cost:
    """Of a command: wall s, its and its children's processor s, and the memory of the largest of them in MB."""

    wall: float
    cpu: float
    memory: float


_MEASURE = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def run(
    command: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    person: Sequence[str] = (),
    codes: Sequence[int] = (0,),
) -> Cost:
    """What a command costs that has to end with one of these codes; `person`: what makes it another user's."""

    done = subprocess.run(
        [*person, sys.executable, "-c", _MEASURE, *command],
        cwd=cwd,
        env={**os.environ, **(env or {}), "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=False,
    )
    code, *figures = json.loads(done.stdout or "[-1, 0, 0, 0]")
    if code not in codes:
        raise SystemExit(f"{' '.join(command)}: failed\n{done.stderr}")
    return Cost(*figures)


FERMIGRID = (sys.executable, "-m", "fermigrid")


def seconds(action: Callable[[], object]) -> float:
    """Wall s of something done in this process."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def show(figures: Iterable[Figure]) -> bool:
    """Print figures as they come, a line each; are all limits kept?"""
    good = True
    for figure in figures:
        what, measured, floor, ratio, limit, kept = cells(figure)
        amount, _, floor_of = floor.partition(": ")
        print(f"{what:66} {measured:>12} {amount:>12} {ratio:>7} {limit:>12} {kept:4} {floor_of}".rstrip(), flush=True)
        good &= figure.good
    return good


def head() -> str:
    """The headings for `show`."""
    return f"{'what':66} {'measured':>12} {'floor':>12} {'ratio':>7} {'limit':>12} {'ok':4} the floor is"
