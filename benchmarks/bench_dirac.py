"""10,000 jobs handed in to a real DiracX server of this machine, and looked at, beside the floors in the same run.

python -m benchmarks dirac          (2,000 jobs)
python -m benchmarks --full dirac   (10,000 jobs)

Floors: DiracX's own client posting the same documents one after the other and confirming each, without which DIRAC starts none
of them; the same without that; one search of the bare client.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.figures import Figure, seconds
from fermigrid.backends import Handle, RenderedBatch, dirac
from fermigrid.jdl import documents, with_sandbox
from tests.dirac.batches import Watch, ids_of, write_batch
from tests.dirac.server import Server, call, start_server

TIMES, LOOK_S = 1.3, 2.0  # of the floor; for 10,000 jobs
ENTRY = "SB:SandboxSE|/S3/sandboxes/x/x/x/sha256:0"


def post(texts: list[str], confirm: bool) -> None:
    """The bare client: a document, and the next; `confirm`: each at once, as DIRAC's own client does it."""
    from diracx.client.sync import SyncDiracClient

    with SyncDiracClient() as api:
        for text in texts:
            jobs = api.jobs.submit_jdl_jobs([text])
            if confirm:
                now = {datetime.now(UTC).isoformat(): {"Status": "Received", "MinorStatus": "Job accepted"}}
                api.jobs.set_job_statuses({str(job.job_id): now for job in jobs})


def floor(batch: RenderedBatch, confirm: bool) -> float:
    """Wall s of handing in a copy of the batch by the bare client."""
    copy = replace(batch, batch_id=uuid.uuid4().hex)
    texts = [with_sandbox(document, [ENTRY, ENTRY]) for document in documents(copy)]
    return seconds(lambda: post(texts, confirm))


def figures(full: bool) -> Iterator[Figure]:
    """In one process, without its start; the server is warm."""
    with tempfile.TemporaryDirectory(prefix="bench-dirac-", dir="/tmp") as made:
        folder = Path(made)
        try:
            yield from measure(start_server(folder / "server"), folder, 10_000 if full else 2_000)
        finally:
            call(folder / "server", "stop")


def measure(server: Server, folder: Path, jobs: int) -> Iterator[Figure]:
    os.environ |= {"DIRACX_URL": server.url, "DIRACX_CREDENTIALS_PATH": str(server.credentials)}
    dirac.submit(write_batch(folder, server.url, 40))
    batch, handles = write_batch(folder, server.url, jobs, timeout_s=120), list[Handle]()
    posted = floor(batch, confirm=False)
    sent = seconds(lambda: handles.append(dirac.submit(batch)))
    confirmed = floor(batch, confirm=True)
    what = f"{jobs:,} jobs handed in to DIRAC"
    yield Figure(what, sent, "s", confirmed, "the bare client, by 20s, each confirmed", TIMES * confirmed)
    yield Figure(f"{what}: beside the posting alone", sent, "s", posted, "the bare client, by 20s")
    search = min(seconds(lambda: server.jobs(batch.batch_id)) for _ in range(3))
    watch, limit = Watch(*handles), LOOK_S * jobs / 10_000
    look: Callable[[], object] = watch.look
    yield Figure(f"a look at {jobs:,} jobs, nothing new", seconds(look), "s", search, "one search", limit)
    server.set(ids_of(batch), "Checking", "Waiting", "Matched", "Running")
    yield Figure(f"a look at {jobs:,} jobs, all of them new", seconds(look), "s", search, "one search", limit)
    assert len(watch.seen) == jobs, watch.problems
