"""Reports -> accepted results -> final names. Every function may be cut short anywhere and run again."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from fermigrid.errors import FermigridError
from fermigrid.ledger import Ledger, PackedLogs
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.report import TAIL_BYTES, NoReport, Report, outputs_of, parse_report, verdict
from fermigrid.runfolder import RunFolder
from fermigrid.states import State
from fermigrid.submit import rendered

CHUNK = 500  # jobs judged in one transaction


class Items:
    """The jobs of batches by index: (name, shard), read from items.txt once; 9 MB for 100,000 jobs."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._files: dict[str, tuple[bytes, array[int]]] = {}

    def get(self, batch: BatchRecord, index: int) -> tuple[str, str]:
        """(job name, shard file) of the job with this index."""
        data, starts = self._read(batch)
        name, shard, _ = data[starts[index] : starts[index + 1]].decode("ascii").split()
        return name, shard

    def find(self, batch: BatchRecord, name: str) -> int | None:
        """The index of the job with this name, or None."""
        data, starts = self._read(batch)
        wanted = name.encode()
        at = 0 if data.startswith(wanted + b" ") else data.find(b"\n" + wanted + b" ") + 1
        if at == 0 and not data.startswith(wanted + b" "):
            return None
        return bisect_left(starts, at)

    def log(self, batch: BatchRecord, index: int) -> Path:
        """Where the log of that job comes back to."""
        name, shard = self.get(batch, index)
        return rendered(self._folder, batch).work_dir / shard / f"{name}.log"

    def _read(self, batch: BatchRecord) -> tuple[bytes, array[int]]:
        if batch.id not in self._files:
            data = (rendered(self._folder, batch).plan_dir / "items.txt").read_bytes()
            starts = array("Q", [0])
            starts.extend(match.end() for match in re.finditer(b"\n", data))
            self._files[batch.id] = data, starts
        return self._files[batch.id]


def accept_ended(ledger: Ledger, folder: RunFolder, items: Items) -> tuple[int, list[str]]:
    """Read the reports of the jobs that ended, accept the good ones, pack their logs.

    Returns how many were judged, and in words which logs cannot be read: those jobs wait for the next time.
    """
    batches = {batch.id: batch for batch in ledger.batches()}
    total, problems, last = 0, list[str](), ("", -1)
    while ended := ledger.jobs_in(State.ENDED, CHUNK, last):
        last = ended[-1].batch, ended[-1].index
        judged: list[tuple[JobRecord, Report | None]] = []
        good: list[tuple[JobRecord, Path]] = []
        for job in ended:
            log = items.log(batches[job.batch], job.index)
            try:
                judged.append(judge(job, log))
            except OSError as error:
                problems.append(f"{job.name}: its log cannot be read: {error}")
                continue
            if judged[-1][0].state is State.DONE:
                good.append((judged[-1][0], log))
        ledger.take_in(judged)
        _pack(folder, good)
        total += len(judged)
    return total, problems


def judge(job: JobRecord, log: Path) -> tuple[JobRecord, Report | None]:
    """A job that ended -> DONE or FAILED, by its report and by the outputs that came back with it.

    Raises OSError when its log is there and cannot be read.
    """
    try:
        report = parse_report(_tail(log), job.name, job.batch)
    except NoReport as error:
        code = f" (exit code {job.code})" if job.code else ""
        return replace(job, state=State.FAILED, reason=f"{error}{code}"), None
    why = verdict(report) or _missing_output(report, log.parent / "out")
    state = State.FAILED if why else State.DONE
    return replace(job, state=state, reason=why, host=report.host, code=str(report.exit)), report


def _tail(log: Path) -> bytes:
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read()
    except FileNotFoundError as error:
        raise NoReport("its log did not come back") from error


def _missing_output(report: Report, folder: Path) -> str:
    for output in report.outputs:
        if not output.came_back:
            continue
        path = folder / output.file
        if not path.is_file():
            return f"the output {output.name} did not come back"
        if path.stat().st_size != output.bytes:
            return f"the output {output.name} came back with {path.stat().st_size} bytes instead of {output.bytes}"
    return ""


def _pack(folder: RunFolder, logs: Sequence[tuple[JobRecord, Path]]) -> None:
    """The logs of good jobs into one file; those of failures stay whole where they are."""
    there = [(job, path) for job, path in logs if path.is_file()]
    if not there:
        return
    with closing(PackedLogs(folder.logs)) as packed:
        packed.pack((job.name, job.batch, path.read_bytes()) for job, path in there)
    for _, path in there:
        path.unlink()


def publish_accepted(ledger: Ledger, folder: RunFolder, items: Items) -> list[str]:
    """Give accepted outputs that came back their final names. Returns what stands in the way, in words."""
    batches = {batch.id: batch for batch in ledger.batches()}
    problems: list[str] = []
    last = ""
    while attempts := ledger.unpublished(last, CHUNK):
        done = []
        for attempt in attempts:
            came = items.log(batches[attempt.batch], attempt.index).parent / "out"
            try:
                for output in outputs_of(attempt.report):
                    publish_output(came / output.file, folder.outputs / output.to, output.sha256)
            except FermigridError as error:
                problems.append(f"{attempt.job}: {error}")
            else:
                done.append(attempt)
        ledger.published(done)
        last = attempts[-1].job
    return problems


def publish_output(came: Path, final: Path, sha256: str) -> None:
    """Link an output to its final name without clobbering, then take its first name away.

    Raises FermigridError where another file has the final name, what came back is not what the job wrote, or the file
    system says no.
    """
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if came.exists():
            if _sha256(came) != sha256:
                raise FermigridError(f"{came} is not what the job wrote: its sha256 differs from the report's")
            with suppress(FileExistsError):
                os.link(came, final)
        if not final.exists():
            raise FermigridError(f"{came} is gone before it was published")
        if _sha256(final) != sha256:
            raise FermigridError(f"{final} exists with other content: move it away; the new file is {came}")
        came.unlink(missing_ok=True)
    except OSError as error:
        raise FermigridError(f"{came} cannot become {final}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
