"""Campaigns for tests: files as a person would write them, and what becomes of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from fermigrid.advance import all_work
from fermigrid.assemble import assemble_file
from fermigrid.check import find_problems
from fermigrid.errors import ConfigError
from fermigrid.plan import Assembled, Plan, plan_batch
from fermigrid.quoting import decode_row
from fermigrid.submit import Hand, sites_of_blocks

ROOT = Path(__file__).resolve().parents[1]
SITES = ROOT / "sites"
ANSWERS = ROOT / "tests/golden/sites"  # what the shipped sites ask for, made up
NOW = datetime(2027, 3, 4, 5, 6, 7, tzinfo=UTC)

SMALL = """\
campaign: small
image: light
runs: {count: 2}
steps:
  go:
    command: [/bin/true, "{run}"]
    outputs: {out.fit: "{run}.fit"}
"""

TWO_STEPS = """\
campaign: two
image: light
runs: {table: runs.csv}
block: 2
steps:
  clump:
    foreach: clump
    split: {events: 10}
    command: [/bin/true, "{run}", "{piece}", "{first_event}", "{event_count}"]
    outputs: {out.fit: "{run}_{piece}.fit"}
  merge:
    after: [clump]
    command: [/bin/true, "{run}"]
    outputs: {out.fit: "{run}.fit"}
"""


def write(folder: Path, text: str = SMALL, table: str | None = None, name: str = "campaign.yaml") -> Path:
    """A campaign file, and its run table when it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    if table is not None:
        (folder / "runs.csv").write_text(table, encoding="utf-8")
    return path


def assemble(
    folder: Path,
    text: str = SMALL,
    table: str | None = None,
    *,
    site: str | None = "local",
    parameters: Mapping[str, str] | None = None,
    own: Sequence[Path] = (),
) -> Assembled:
    """A campaign with all that it refers to, from files in `folder`; `own` site files come before the shipped ones."""
    return assemble_file(write(folder, text, table), site, parameters or {}, (*own, SITES))


def complaints(
    folder: Path,
    text: str,
    table: str | None = None,
    *,
    site: str | None = "local",
    parameters: Mapping[str, str] | None = None,
    own: Sequence[Path] = (),
) -> list[str]:
    """What is said of a campaign: `line: key: message` of each problem, of whatever part of the program."""
    try:
        found = find_problems(assemble(folder, text, table, site=site, parameters=parameters, own=own))
    except ConfigError as error:
        found = error.problems
    return [str(problem).removeprefix(f"{folder}/") for problem in found]


def plans(assembled: Assembled, site: str = "local") -> list[Plan]:
    """Every plan of a campaign."""
    works = all_work(assembled.campaign, assembled.runs, sites_of_blocks(assembled, site))
    return [plan_batch(assembled, work) for work in works]


def rows(plan: Plan) -> list[tuple[tuple[str, str], ...]]:
    """The fields of each job of a plan, as the worker reads them."""
    return [decode_row(line) for _, line in lines_of_jobs(plan)]


def lines_of_jobs(plan: Plan) -> list[tuple[str, str]]:
    """(name, its line of a shard, with those after it) of each job of a plan."""
    return [pair for rows in plan.rows() for pair in zip(rows.jobs, rows.lines, strict=True)]


def argv(row: Sequence[tuple[str, str]]) -> list[str]:
    """The command of a job."""
    return [value for key, value in row if key == "arg"]


def values(row: Sequence[tuple[str, str]], key: str) -> list[str]:
    """All values of one key of a row."""
    return [value for name, value in row if name == key]


def make_hand(said: list[str] | None = None) -> Hand:
    """Somebody at a clock that stands still; what is told to them goes to `said`."""
    return Hand("me@here", lambda: NOW, (said if said is not None else []).append)


def python(
    code: str, *arguments: object, env: Mapping[str, str] | None = None, wrap: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """A fresh interpreter that runs `code` with this fermigrid; `wrap` goes before its command."""
    command = [*wrap, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], limit: float = 60.0) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a process; it is ended when it takes too long."""
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def fermigrid(
    *arguments: object, cwd: Path, env: Mapping[str, str] | None = None, limit: float = 60.0
) -> tuple[int, str, str]:
    """The real command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "fermigrid", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


# A small file system of its own for one process: it vanishes with it, and needs no root.
SMALL_DISK = (
    "unshare", "--user", "--map-root-user", "--mount", "sh", "-euc",
    'mount -t tmpfs -o size="$1" none "$2"; shift 2; exec "$@"', "small-disk",
)  # fmt: skip


def read_items(plan: Path) -> Iterator[tuple[str, str]]:
    """(job name, shard file) of each job of a plan, in order."""
    with (plan / "items.txt").open(encoding="ascii") as lines:
        for line in lines:
            name, shard, _ = line.split()
            yield name, shard
