"""How long a person waits for `fermigrid --help` and `fermigrid check`, beside the floor of importing click.

python -m benchmarks cli
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import FERMIGRID, Figure, run

CAMPAIGN = """campaign: bench
image: light
runs: {table: runs.csv}
steps:
  clump:
    foreach: clump
    split: {events: 20000}
    command: [a, '{run}', '{piece}']
    outputs: {o: '{run}_{piece}.fit'}
"""


def figures(full: bool) -> Iterator[Figure]:
    """Medians of commands in turn, so that a slow moment of the machine hits all alike."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "runs.csv").write_text("run,events\n" + "".join(f"r{i:010d},200000\n" for i in range(500)))
        (folder / "c.yaml").write_text(CAMPAIGN)
        commands = {
            "click": (sys.executable, "-c", "import click"),
            "help": (*FERMIGRID, "--help"),
            "check": (*FERMIGRID, "check", "c.yaml", "-s", "pool"),
        }
        times: dict[str, list[float]] = {what: [] for what in commands}
        for _ in range(15 if full else 7):
            for what, command in commands.items():
                times[what].append(run(command, cwd=folder).wall)
        click, help_, check = (statistics.median(values) for values in times.values())
    yield Figure("fermigrid --help", help_, "s", click, "python -c 'import click'", 2 * click)
    yield Figure("fermigrid check, 500 runs, 5,000 jobs", check, "s", click, "python -c 'import click'", 0.5)
