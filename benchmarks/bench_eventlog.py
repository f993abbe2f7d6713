"""How fast the event log is read: fermigrid's reader, its floor (reading and splitting the file) and JobEventLog.

    python benchmarks/bench_eventlog.py [EVENTS]

Exit code 1 when fermigrid reads fewer than 100,000 events a second.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import htcondor2

from fermigrid.eventlog import find_clusters, read_events

CAPTURED = Path(__file__).resolve().parents[1] / "tests/unit/data/many-kinds.eventlog"
REQUIRED = 100_000  # events a second


def write_log(log: Path, events: int) -> None:
    """A log of at least that many events: a captured one, again and again."""
    content = CAPTURED.read_bytes()
    times = -(-events // content.count(b"\n...\n"))
    with log.open("wb") as file:
        for _ in range(times):
            file.write(content)


def split_only(log: Path) -> int:
    return len(log.read_bytes().split(b"\n...\n")) - 1


def read_in_steps(log: Path) -> int:
    """As `watch` does: a bounded number of events at a time."""
    count, offset, now = 0, 0, datetime.now(UTC)
    while True:
        items, offset = read_events(log, offset, now, limit=20_000)
        count += len(items)
        if not items:
            return count


def read_at_once(log: Path) -> int:
    return len(read_events(log, 0, datetime.now(UTC))[0])


def find_what_is_not_there(log: Path) -> int:
    list(find_clusters(log, "f" * 32))
    return split_only(log)


def read_with_htcondor(log: Path) -> int:
    with htcondor2.JobEventLog(str(log)) as events:
        return sum(1 for _ in events.events(stop_after=0))


def measure(name: str, read: Callable[[Path], int], log: Path) -> float:
    """The best rate of three, in events a second."""
    rates = []
    for _ in range(3):
        begin = time.perf_counter()
        count = read(log)
        rates.append(count / (time.perf_counter() - begin))
    print(f"{name:40} {max(rates):12,.0f} events/s   ({count:,} events)")
    return max(rates)


def main(events: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "events.log"
        write_log(log, events)
        floor = measure("floor: read and split", split_only, log)
        ours = measure("read_events", read_at_once, log)
        measure("read_events, 20,000 at a time", read_in_steps, log)
        measure("find_clusters (and the floor)", find_what_is_not_there, log)
        measure("htcondor2.JobEventLog", read_with_htcondor, log)
    print(f"read_events takes {floor / ours:.1f} times the floor")
    return 0 if ours >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
