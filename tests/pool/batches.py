"""Small batches for tests of the HTCondor backend: the real submit template round a stand-in for the worker."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2

from fermigrid.backends import Cursor, Handle, JobSeen, RenderedBatch
from fermigrid.backends import htcondor as backend
from fermigrid.retry_row import retry_row
from fermigrid.retry_rule import BUILT_IN, in_queue
from fermigrid.states import Seen

TEMPLATES = Path(__file__).resolve().parents[2] / "submit_templates/htcondor"
ROW: dict[str, Any] = {
    "batch_name": "P400.b0000.clump.g0",
    "campaign": '"P400"',
    "step": '"clump"',
    "site": '"pool"',
    "block": '"b0000"',
    "generation": 0,
    "image_digest": '"0123"',
    "cpus": 1,
    "memory_mb": 64,
    "disk_kb": 1024,
    "stop_after_s": 600,
    "requirements": 'GLIDEIN_Site == "SITEA"',
    "singularity_image": None,
    "container_image": None,
    "container_folder": "/srv",
    "secret_files": [],
    "encrypted": False,
    "user_proxy": None,
    "tokens": [],
    "attributes": {},
    "accounting_group": None,
    "accounting_group_user": None,
    "priority": 0,
    **retry_row(in_queue(BUILT_IN, 2**30, None), 2, 64),
    "has_bundle": False,
    "has_gathered": False,
    "max_materialize": None,
    "max_idle": None,
}
# The policies' waits, which are minutes, in seconds.
QUICK = {"fg_elsewhere": 1, "fg_release_after": 1, "fg_remove_after": 900}
GOOD = 'mkdir out; echo "$*" > "out/$2.0.g0"; echo "hello from $2"'
STARTS = "starts=$(sed -n 's/^NumShadowStarts = //p' .job.ad)"


def render(row: dict[str, Any] | None = None, macros: dict[str, int] | None = None) -> str:
    """The template as render.py reads it, with some of its macros changed."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("job.sub.j2").render(ROW | (row or {}))
    for name, value in (QUICK | (macros or {})).items():
        text, changed = re.subn(rf"(?m)^({name}\s*=) .*$", rf"\1 {value}", text)
        assert changed == 1, name
    return text


def write_batch(
    folder: Path,
    worker: str = GOOD,
    jobs: int = 1,
    options: dict[str, object] | None = None,
    macros: dict[str, int] | None = None,
    **row: Any,
) -> RenderedBatch:
    """A batch on disk; a small one has two jobs in a shard, a large one a hundred."""
    batch_id = uuid.uuid4().hex
    plan, work = folder / batch_id / "plan", folder / batch_id / "work"
    (plan / "shards").mkdir(parents=True)
    in_shard = 2 if jobs <= 10 else 100
    items = []
    for start in range(0, jobs, in_shard):
        shard = f"s{start // in_shard:04d}-{batch_id}.rows"
        (plan / "shards" / shard).write_text("x\n")
        (work / shard).mkdir(parents=True)
        (work / shard).chmod(0o777)
        count = min(in_shard, jobs - start)
        items += [f"job.{start + row:06d} {shard} {row + 1}\n" for row in range(count)]
    (plan / "items.txt").write_text("".join(items))
    (plan / "job.sub").write_text(render(row, macros))
    (plan / "job.env").write_text("format=1\n")
    (plan / "plan.json").write_text("{}\n")
    (plan / "worker.sh").write_text(f"#!/bin/bash\n{worker}\n")
    (plan / "worker.sh").chmod(0o755)
    (folder / batch_id).chmod(0o777)
    return RenderedBatch(
        batch_id, "P400.b0000.clump.g0", plan, work, folder / batch_id / "events.log", jobs, options or {}
    )


def log_of(batch: RenderedBatch, index: int) -> str:
    """What a job printed."""
    (path,) = batch.work_dir.glob(f"*/job.{index:06d}.log")
    return path.read_text()


def events(handle: Handle) -> list[JobSeen]:
    """Everything that the event log tells so far."""
    return list(backend.observe([handle], Cursor()).seen)


def states(handle: Handle, index: int = 0) -> list[Seen]:
    """What happened to one job, in order."""
    return [one.seen for one in events(handle) if one.index == index]


def wait_for(what: Callable[[], Any], told: str, limit: float = 120) -> Any:
    """The first true value of `what`, asked ten times a second; fails after `limit` s."""
    end = time.monotonic() + limit
    while not (value := what()):
        assert time.monotonic() < end, f"not within {limit} s: {told}"
        time.sleep(0.1)
    return value


def wait_until_seen(handle: Handle, seen: Seen, times: int = 1, limit: float = 120) -> list[JobSeen]:
    """All events once `seen` was seen so many times (of any jobs)."""

    def enough() -> list[JobSeen]:
        now = events(handle)
        return now if sum(one.seen is seen for one in now) >= times else []

    try:
        found: list[JobSeen] = wait_for(enough, f"{times} times {seen}", limit)
    except AssertionError as error:
        error.add_note("\n".join(str(one) for one in events(handle)))
        raise
    return found


def last(seen: Sequence[JobSeen], which: Seen) -> JobSeen:
    """The latest of a kind."""
    return [one for one in seen if one.seen is which][-1]


@contextmanager
def submitted(batch: RenderedBatch) -> Iterator[Handle]:
    """The batch in the queue, and nothing of it left there afterwards."""
    handle = backend.submit(batch)
    try:
        yield handle
    finally:
        backend.remove([handle])
