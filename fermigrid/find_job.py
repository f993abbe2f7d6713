"""A job by its name: in which batches it is, what the ledger knows, what it printed."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from fermigrid.accept import Items
from fermigrid.config import nearest
from fermigrid.errors import NotFound
from fermigrid.ledger import Ledger, PackedLogs
from fermigrid.plainfile import read_plain
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.runfolder import RunFolder
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
            record = ledger.job(batch.id, index) or JobRecord(batch.id, index, name, State.WAITING, "")
            found.append(Found(batch, index, record, items.log(batch, index)))
    if not found:
        examples = sorted({items.get(batch, 0)[0] for batch in batches if batch.jobs})
        near = nearest(name, examples)
        raise NotFound(
            f"no job {name!r} was submitted{near}", f"Jobs are named like {', '.join(examples) or 'none yet'}"
        )
    return found


def read_log(found: Found, folder: RunFolder) -> bytes | None:
    """What the job printed, from its own file or from the packed logs; None when nothing has come back."""
    with suppress(FileNotFoundError):
        return read_plain(found.log)
    if not folder.logs.is_file():
        return None
    with closing(PackedLogs(folder.logs)) as logs:
        return logs.read(found.record.name, found.batch.id)
