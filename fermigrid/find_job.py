"""Jobs by name, and by step and run: in which batches they are, what the ledger knows, what they printed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from fermigrid.accept import Items
from fermigrid.config import nearest
from fermigrid.errors import NotFound
from fermigrid.ledger import Ledger
from fermigrid.packed_logs import PackedLogs
from fermigrid.plainfile import read_plain
from fermigrid.plan import Assembled
from fermigrid.progress import names_of
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.runfolder import RunFolder
from fermigrid.split import run_of
from fermigrid.states import State


@dataclass(frozen=True)
class Found:
    """A job in one batch; `record` is a row made up when nothing happened to it yet."""

    batch: BatchRecord
    index: int
    record: JobRecord
    log: Path


def find_job(ledger: Ledger, folder: RunFolder, name: str) -> list[Found]:
    """Every batch that has the job, oldest first. Raises NotFound with the nearest step's example."""
    items = Items(folder)
    found = []
    batches = ledger.batches()
    for batch in batches:
        if name.startswith(f"{batch.step}.") and (index := items.find(batch, name)) is not None:
            record = ledger.job(batch.id, index) or untouched(batch, index, name)
            found.append(Found(batch, index, record, items.log(batch, index)))
    if not found:
        examples = sorted({items.get(batch, 0)[0] for batch in batches if batch.jobs})
        near = nearest(name, examples)
        raise NotFound(
            f"no job {name!r} was submitted{near}", f"Jobs are named like {', '.join(examples) or 'none yet'}"
        )
    return found


def jobs_of_places(
    ledger: Ledger, folder: RunFolder, a: Assembled, places: Iterable[tuple[str, str]]
) -> Iterator[JobRecord]:
    """The jobs of these (step, run) that count, those to which nothing happened yet among them."""
    wanted, items = set(places), Items(folder)
    steps = {step for step, _ in wanted}
    for batch in ledger.batches():
        if batch.step not in steps or not any((batch.step, run) in wanted for run in names_of(a, batch)):
            continue
        rows, step = {job.index: job for job in ledger.jobs_of(batch.id)}, a.campaign.steps[batch.step]
        for index, name in enumerate(items.names(batch)):
            if (batch.step, run_of(name, batch.step, step)) in wanted:
                job = rows.get(index) or untouched(batch, index, name)
                if job.retired is None:
                    yield job


def untouched(batch: BatchRecord, index: int, name: str) -> JobRecord:
    """A job to which nothing happened: it has no row."""
    if batch.removed:
        return JobRecord(batch.id, index, name, State.REMOVED, batch.removed, reason="its batch was removed")
    return JobRecord(batch.id, index, name, State.WAITING, batch.submitted or "")


def read_log(found: Found, folder: RunFolder) -> bytes | None:
    """What the job printed, from its own file or from the packed logs; None when nothing has come back."""
    with suppress(FileNotFoundError):
        return read_plain(found.log)
    if not folder.logs.is_file():
        return None
    with closing(PackedLogs(folder.logs)) as logs:
        return logs.read(found.record.name, found.batch.id)
