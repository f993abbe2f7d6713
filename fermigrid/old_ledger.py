"""What ledgers from before generations do not tell: which runs a batch does. Its plan does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fermigrid.plainfile import open_plain, real_folder


def runs_in_plan(plan: Path) -> tuple[str, ...]:
    """The runs of a plan's jobs, each once, in their order. Raises OSError for a plan that cannot be read."""
    return tuple(dict.fromkeys(_runs(plan)))


def _runs(plan: Path) -> Iterator[str]:
    with real_folder(plan, ("shards",)) as shards:
        names = sorted(path.name for path in (plan / "shards").iterdir())
        for name in names:
            with open_plain(name, shards) as file:
                for line in file:
                    yield from (field[4:] for field in line.decode().split("\t") if field.startswith("run="))
