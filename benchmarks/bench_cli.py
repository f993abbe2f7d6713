"""How long a person waits for `fermigrid --help` and `fermigrid check`, beside the floor of importing click.

Targets: help at most 2 x `python -c "import click"`; check of a campaign of 500 runs under 0.5 s.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 15


def seconds(*command: str, cwd: Path) -> float:
    """One run of a command, in s."""
    began = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "runs.csv").write_text("run,events\n" + "".join(f"r{i:010d},200000\n" for i in range(500)))
        (folder / "c.yaml").write_text(
            "campaign: bench\nimage: light\nruns: {table: runs.csv}\nsteps:\n  clump:\n    foreach: clump\n"
            "    split: {events: 20000}\n    command: [a, '{run}', '{piece}']\n    outputs: {o: '{run}_{piece}.fit'}\n"
        )
        commands = {
            "floor: python -c 'import click'": (sys.executable, "-c", "import click"),
            "fermigrid --help": (sys.executable, "-m", "fermigrid", "--help"),
            "fermigrid check (500 runs, 5,000 jobs)": (
                sys.executable,
                "-m",
                "fermigrid",
                "check",
                "c.yaml",
                "-s",
                "pool",
            ),
        }
        times: dict[str, list[float]] = {what: [] for what in commands}
        for _ in range(ROUNDS):  # in turn, so that a slow moment of the machine hits all alike
            for what, command in commands.items():
                times[what].append(seconds(*command, cwd=folder))
    floor = statistics.median(times["floor: python -c 'import click'"])
    for what, values in times.items():
        middle = statistics.median(values)
        print(f"{what:42} {middle * 1000:7.0f} ms  {middle / floor:5.2f} x floor")


if __name__ == "__main__":
    main()
