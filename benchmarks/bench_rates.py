"""How many jobs start in a minute, and how many run: `limits:` on the real pool, by the event logs.

    python -m benchmarks rates          (20 a minute, 10 at a time; jobs of 2 s, then of 12 s; 10 minutes in all)
    python -m benchmarks --full rates   (also 50 a minute: 300 of 100 s, 100 at a time; 400 of 480 s, 300 at a time)

Somebody watches, as `fermigrid watch` does; and the same where nobody does once it is submitted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.bench_submit import Bench, bench_folder
from benchmarks.figures import FERMIGRID, Figure
from tests.pool.conftest import Pool, call_pool, pool_folder, shared_pool
from tests.pool.product import UID

SITE = """site: mine
extends: pool
htcondor: {requirements: 'GLIDEIN_Site == "SITEA" || GLIDEIN_Site == "SITEF"', timeout: 30 s, settle: 1 s}
"""
CAMPAIGN = """campaign: rates
image: light
runs: {{count: {jobs}}}
block: {block}
limits: {{running: {running}, starts: {starts}}}
steps:
  go:
    command: [sleep, "{sleep}"]
    resources: {{memory: 64 MiB, disk: 10 MiB}}
"""
NODES = "NUM_CPUS = 320\nMEMORY = 65536\n"  # made-up sizes: SITEF has room for more jobs than may run


@dataclass(frozen=True)
class Case:
    """Limits, jobs, and for how long it is looked (s)."""

    running: int
    starts: int
    jobs: int
    sleep: int
    lasts: float
    watched: bool = True

    @property
    def words(self) -> str:
        how = "watched" if self.watched else "nobody watches"
        return f"{self.starts} a minute, {self.running} at a time; {self.jobs} jobs of {self.sleep} s, {how}"


@dataclass(frozen=True)
class Seen:
    """What the event logs tell: when jobs started first (s), how many ran at once at the most."""

    starts: Sequence[float]
    running: int

    def most(self) -> int:
        """Starts in the busiest minute, wherever it begins."""
        return max((sum(begin <= at < begin + 60 for at in self.starts) for begin in self.starts), default=0)

    def minutes(self) -> list[int]:
        """Starts in each minute since the first."""
        first = min(self.starts, default=0.0)
        last = max(self.starts, default=0.0)
        return [
            sum((at - first) // 60 == minute for at in self.starts) for minute in range(int(last - first) // 60 + 1)
        ]


def read_logs(folder: Path) -> Seen:
    """Starts and ends of all event logs below a folder. A job that begins again in its place is no new start."""
    happened = list[tuple[float, int]]()
    starts = dict[tuple[Path, str], float]()
    for log in folder.rglob("events.log"):
        for line in log.read_text().splitlines():
            if line[:5] in ("001 (", "005 (", "004 (", "009 ("):
                code, job, day, hour, _ = line.split(" ", 4)
                at = datetime.fromisoformat(f"{day} {hour}").timestamp()
                happened.append((at, 1 if code == "001" else -1))
                if code == "001":
                    starts.setdefault((log, job), at)
    now = most = 0
    for _, change in sorted(happened):
        now += change
        most = max(most, now)
    return Seen(sorted(starts.values()), most)


@contextmanager
def watching(bench: Bench, watched: bool) -> Iterator[None]:
    process = bench.start(*FERMIGRID, "watch", "run") if watched else None
    try:
        yield
    finally:
        if process:
            with suppress(ProcessLookupError):
                os.kill(process.pid, 15)
            process.wait()


def measure(pool: Pool, case: Case) -> Seen:
    with bench_folder(pool) as folder:
        bench = Bench(pool, folder)
        (folder / "sites/mine.yaml").write_text(SITE)
        text = CAMPAIGN.format(**vars(case) | {"block": case.jobs // 3 + 1})
        (folder / "c.yaml").write_text(text)
        os.chown(folder / "c.yaml", UID, UID)
        bench.run(*FERMIGRID, "submit", "c.yaml", "-s", "mine", "--sites", "sites", "--run-dir", "run")
        with watching(bench, case.watched):
            until = time.monotonic() + case.lasts
            while time.monotonic() < until and len(read_logs(folder).starts) < case.jobs:
                time.sleep(5)
        seen = read_logs(folder)
        bench.clear()
        return seen


def figures(full: bool) -> Iterator[Figure]:
    """Starts in the busiest minute and on average, and the most jobs that ran at once."""
    cases = [Case(10, 20, 80, 2, 300), Case(10, 20, 60, 12, 240), Case(10, 20, 60, 2, 90, watched=False)]
    if full:
        cases += [Case(100, 50, 300, 100, 600), Case(300, 50, 400, 480, 780)]
    folder = pool_folder().with_name(f"{pool_folder().name}-rates")
    try:
        with shared_pool(folder) as pool:
            (folder / "etc/config.d/rates").write_text(NODES)
            call_pool(folder, "stop")
            call_pool(folder, "start")
            for case in cases:
                seen = measure(pool, case)
                print(f"{case.words}: starts minute by minute: {seen.minutes()}", file=sys.stderr, flush=True)
                minutes = max(1.0, (max(seen.starts) - min(seen.starts)) / 60)
                yield Figure(f"{case.words}: running at once", seen.running, "", limit=case.running)
                yield Figure(f"{case.words}: starts in the busiest minute", seen.most(), "", limit=1.5 * case.starts)
                mean = len(seen.starts) / (minutes + 1 / case.starts)
                yield Figure(f"{case.words}: starts in a minute on average", mean, "", limit=1.1 * case.starts)
    finally:
        call_pool(folder, "clean")
