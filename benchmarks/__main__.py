"""Run benchmarks: `python -m benchmarks [--full] [--markdown] [NAME...]`. Nothing is written anywhere.

Exit code 1 when a limit is not kept.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.figures import HEADINGS, Figure, cells, head, machine, show

NAMES = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/bench", description="Benchmarks, each against its floor in the same run.")
    parser.add_argument("--full", action="store_true", help="the sizes of docs/benchmarks.md: a quarter of an hour")
    parser.add_argument("--markdown", action="store_true", help="print the table for docs/benchmarks.md at the end")
    parser.add_argument("names", nargs="*", choices=[[], *NAMES], metavar="NAME", help=f"of {', '.join(NAMES)}")
    wanted = parser.parse_args()
    os.environ.setdefault("POOL_START_LIMIT", "300")  # seconds: after 300,000 jobs the schedd has much to read first
    print(machine(), flush=True)
    found: list[Figure] = []
    good = True
    for name in wanted.names or NAMES:
        print(f"\n== {name}\n{head()}", flush=True)
        module = importlib.import_module(f"benchmarks.bench_{name}")

        def kept(figure: Figure) -> Figure:
            found.append(figure)
            return figure

        good &= show(map(kept, module.figures(wanted.full)))
    if wanted.markdown:
        print(f"\n{datetime.now(UTC):%Y-%m-%d}, {machine()}\n")
        for row in (HEADINGS, ("---",) * len(HEADINGS), *map(cells, found)):
            print(f"| {' | '.join(row)} |")
    if not good:
        print("\nA limit is not kept: " + "; ".join(figure.what for figure in found if not figure.good))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
