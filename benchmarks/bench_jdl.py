"""The JDL of 100,000 jobs, from a plan on disk to the text of every document, beside its floor: the plan's files read, and
as much text made.

python -m benchmarks jdl          (100,000 jobs)
python -m benchmarks --full jdl   (1,000,000 jobs besides)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, seconds
from fermigrid.backends import RenderedBatch
from fermigrid.jdl import documents, with_sandbox
from fermigrid.planfolder import write_plan
from tests.campaigns import ANSWERS, assemble, plans

JOBS, LIMIT_S = 100_000, 5.0
CAMPAIGN = """\
campaign: jdl
image: light
runs: {table: runs.csv}
block: 100000
steps:
  clump:
    foreach: clump
    split: {events: 10}
    command: [/bin/true, "{run}", "{piece}", "{first_event}", "{event_count}"]
    inputs: {digi.root: ["LFN:/glast.org/digi/{run}_digi.root", "root://x.example.org//digi/{run}"]}
    outputs: {out.fit: "{run}_{piece}.fit"}
"""
SANDBOXES = [f"SB:SandboxSE|/S3/sandboxes/glast.org/glast_user/fermi/sha256:{digit * 64}.tar.zst" for digit in "01"]


def plan_of(folder: Path, jobs: int) -> RenderedBatch:
    """A plan of so many jobs on disk."""
    table = "run,events\n" + "".join(f"r{number:010d},1000\n" for number in range(jobs // 100))
    plan = plans(assemble(folder / "source", CAMPAIGN, table, site="dirac-like", own=[ANSWERS]), "dirac-like")[0]
    write_plan(plan, folder / "plan")
    return RenderedBatch(
        "0" * 32, "jdl", folder / "plan", folder / "work", folder / "log", plan.header.jobs, {"chunk": 20}
    )


def bare(batch: RenderedBatch, size: int) -> None:
    """Reads all that the documents are made of, and makes as many characters."""
    read = "".join(path.read_text() for path in batch.plan_dir.rglob("*") if path.is_file())
    assert len((read * (size // len(read) + 1))[:size]) == size


def render(batch: RenderedBatch) -> int:
    """Every document, ready to be sent; how many characters they have."""
    jobs = size = 0
    for document in documents(batch):
        size += len(with_sandbox(document, SANDBOXES))
        jobs += document.jobs
    assert jobs == batch.jobs
    return size


def figures(full: bool) -> Iterator[Figure]:
    """In one process, without its start."""
    for jobs in (JOBS, 10 * JOBS) if full else (JOBS,):
        with tempfile.TemporaryDirectory() as name:
            batch = plan_of(Path(name), jobs)
            size = render(batch)
            wall = min(seconds(lambda: render(batch)) for _ in range(3))  # noqa: B023  # it is called at once
            floor = min(seconds(lambda: bare(batch, size)) for _ in range(3))  # noqa: B023
        limit = LIMIT_S * jobs / JOBS
        yield Figure(f"JDL of {jobs:,} jobs", wall, "s", floor, "as many characters, of the plan's files", limit)
