"""Reports -> accepted results -> final names. Every function may be cut short anywhere and run again."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path

from fermigrid.errors import FermigridError, RunFolderError
from fermigrid.given import take_away
from fermigrid.ledger import Ledger
from fermigrid.packed_logs import PackedLogs
from fermigrid.plainfile import open_plain, read_plain, real_folder
from fermigrid.planfolder import open_of_plan, read_manifest
from fermigrid.quoting import decode_lines, decode_row
from fermigrid.records import BatchRecord, JobRecord
from fermigrid.report import TAIL_BYTES, NoReport, Output, Report, outputs_of, parse_report, verdict
from fermigrid.runfolder import RunFolder
from fermigrid.states import State
from fermigrid.submit import rendered
from fermigrid.units import show_count

CHUNK = 500  # jobs judged in one transaction
KEPT_BYTES = 32 * 2**20  # of the names of jobs in batches, beside those of one batch


@dataclass(frozen=True)
class Declared:
    """The outputs of a job by its plan, (local name, final name), and whether they come back with it."""

    outputs: tuple[tuple[str, str], ...]
    come_back: bool


class _Plans:
    """Files of the batches' plans as they were sent: no name is taken from one that was edited since."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._last: tuple[str, Mapping[str, str]] = "", {}

    def read(self, batch: BatchRecord, name: str) -> bytes:
        """Raises OSError, and RunFolderError for a file that is not as it was."""
        plan = rendered(self._folder, batch).plan_dir
        if self._last[0] != batch.id:
            try:
                manifest = read_manifest(plan)
            except ValueError as error:
                raise _changed(plan / "plan.json") from error
            self._refuse(plan / "plan.json", manifest.text, batch.digest)
            self._last = batch.id, manifest.files
        with open_of_plan(plan, name) as file:
            data = file.read()
        self._refuse(plan / name, data, self._last[1].get(name, ""))
        return data

    def _refuse(self, file: Path, data: bytes, digest: str) -> None:
        if hashlib.sha256(data).hexdigest() != digest:
            raise _changed(file)


def _changed(file: Path) -> RunFolderError:
    text = f"{file} was changed since its batch was sent: nothing is taken in"
    return RunFolderError(text, "Put it back as it was, and watch again: nothing is lost.")


class Items:
    """The jobs of batches by index: (name, shard), read from items.txt, 8 MB for 100,000 jobs. Of those that are not
    used any more some are forgotten, to be read again."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._plan = _Plans(folder)
        self._files: dict[str, tuple[bytes, array[int]]] = {}
        self._shard: tuple[tuple[str, str], list[str]] = ("", ""), []
        self._come_back: dict[str, bool] = {}

    def get(self, batch: BatchRecord, index: int) -> tuple[str, str]:
        """(job name, shard file) of the job with this index."""
        name, shard, _ = self._line(batch, index)
        return name, shard

    def declared(self, batch: BatchRecord, index: int) -> Declared:
        """The outputs that the plan gives to the job with this index."""
        _, shard, row = self._line(batch, index)
        if self._shard[0] != (batch.id, shard):
            self._shard = (batch.id, shard), self._plan.read(batch, f"shards/{shard}").decode().split("\n")
        if batch.id not in self._come_back:
            fields = decode_lines(self._plan.read(batch, "job.env").decode())
            self._come_back[batch.id] = ("output.kind", "transfer") in fields
        fields = decode_row(self._shard[1][int(row) - 1])
        names = [value for key, value in fields if key == "out"]
        places = [value for key, value in fields if key == "out.to"]
        return Declared(tuple(zip(names, places, strict=True)), self._come_back[batch.id])

    def _line(self, batch: BatchRecord, index: int) -> list[str]:
        data, starts = self._read(batch)
        return data[starts[index] : starts[index + 1]].decode("ascii").split()

    def find(self, batch: BatchRecord, name: str) -> int | None:
        """The index of the job with this name, or None."""
        data, starts = self._read(batch)
        wanted = name.encode()
        at = 0 if data.startswith(wanted + b" ") else data.find(b"\n" + wanted + b" ") + 1
        if at == 0 and not data.startswith(wanted + b" "):
            return None
        return bisect_left(starts, at)

    def names(self, batch: BatchRecord) -> Iterator[str]:
        """The names of all jobs of a batch, in order."""
        data, _ = self._read(batch)
        return (line.partition(b" ")[0].decode("ascii") for line in data.splitlines())

    def log(self, batch: BatchRecord, index: int) -> Path:
        """Where the log of that job comes back to."""
        name, shard = self.get(batch, index)
        return rendered(self._folder, batch).work_dir / shard / f"{name}.log"

    def _read(self, batch: BatchRecord) -> tuple[bytes, array[int]]:
        if batch.id not in self._files:
            while sum(len(data) for data, _ in self._files.values()) > KEPT_BYTES:
                del self._files[next(iter(self._files))]
            data = self._plan.read(batch, "items.txt")
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
    while ended := ledger.ended(CHUNK, last):
        last = ended[-1].batch, ended[-1].index
        judged: list[tuple[JobRecord, Report | None]] = []
        good: list[tuple[JobRecord, Path]] = []
        for job in ended:
            log = items.log(batches[job.batch], job.index)
            try:
                judged.append(judge(job, log, items.declared(batches[job.batch], job.index)))
            except OSError as error:
                problems.append(f"{job.name}: its log cannot be read: {error}")
                continue
            if judged[-1][0].state is State.DONE:
                good.append((judged[-1][0], log))
        for job, _ in judged:
            take_away(items.log(batches[job.batch], job.index), job.name)
        ledger.take_in(judged)
        _pack(folder, good)
        total += len(judged)
    return total, problems


def has_report(items: Items, batch: BatchRecord, index: int) -> bool:
    """Did the job's log come back with its report? Then it has ended, whatever the batch system knows of it."""
    name, _ = items.get(batch, index)
    try:
        parse_report(_tail(items.log(batch, index)), name, batch.id)
    except (NoReport, OSError):
        return False
    return True


def judge(job: JobRecord, log: Path, declared: Declared) -> tuple[JobRecord, Report | None]:
    """A job that ended -> DONE or FAILED, by its report and by the outputs that came back with it.

    Raises OSError when its log is there and cannot be read.
    """
    try:
        report = parse_report(_tail(log), job.name, job.batch)
    except NoReport as error:
        end = job.reason or (f"exit code {job.code}" if job.code else "")
        return replace(job, state=State.FAILED, reason=f"{error} ({end})" if end else str(error)), None
    why = verdict(report) or _wrong_output(report, declared, log.parent)
    state = State.FAILED if why else State.DONE
    return replace(job, state=state, reason=why, host=report.host, code=str(report.exit)), report


def _tail(log: Path) -> bytes:
    try:
        with open_plain(log) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read()
    except FileNotFoundError as error:
        raise NoReport("its log did not come back") from error


def _wrong_output(report: Report, declared: Declared, folder: Path) -> str:
    """What is not as the plan says, in words. A report is the job's own word: no name in it is used unless it is the
    one that the plan gives."""
    said = [(output.name, output.to) for output in report.outputs]
    if said != list(declared.outputs):
        lacking = [name for name, to in declared.outputs if (name, to) not in said]
        what = f"lacks the output {lacking[0]}" if lacking else "names outputs that its plan does not"
        return f"its report {what}"
    if not declared.come_back:
        return ""
    for number, output in enumerate(report.outputs):
        if output.file != f"{report.job}.{number}.{report.attempt}":
            return f"its report says that the output {output.name} is {output.file!r}, which is no name of this job's"
        if fault := _fault_of_output(output, folder):
            return f"the output {output.name} {fault}"
    return ""


def _fault_of_output(output: Output, folder: Path) -> str:
    try:
        with real_folder(folder, ("out",)) as out, open_plain(output.file, out) as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return "did not come back"
    except OSError as error:
        if error.errno == errno.EINVAL:
            return f"did not come back: {error.strerror}"
        raise
    return "" if size == output.bytes else f"came back with {show_count(size, 'byte')} instead of {output.bytes}"


def _pack(folder: RunFolder, logs: Sequence[tuple[JobRecord, Path]]) -> None:
    """The logs of good jobs into one file; those of failures stay whole where they are."""
    there = [(job, path) for job, path in logs if os.path.lexists(path)]
    if not there:
        return
    with closing(PackedLogs(folder.logs)) as packed:
        packed.pack((job.name, job.batch, read_plain(path)) for job, path in there)
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
                    if output.came_back:
                        publish_output(came / output.file, folder.outputs, output.to, output.sha256)
            except FermigridError as error:
                problems.append(f"{attempt.job}: {error}")
            else:
                done.append(attempt)
        ledger.published(done)
        last = attempts[-1].job
    return problems


def publish_output(came: Path, outputs: Path, to: str, sha256: str) -> None:
    """Give an output its final name `to` in the folder `outputs` without clobbering, then take its first name away.

    Nothing on the way may be a link. Raises FermigridError where another file has the final name, what came back is not
    what the job wrote, or the file system says no.
    """
    *above, last = to.split("/")
    try:
        outputs.mkdir(exist_ok=True)
        with real_folder(outputs, above, make=True) as home, real_folder(came.parent) as out:
            there = _name_it(came, out, last, home, sha256)
            try:
                final = open_plain(last, home)
            except FileNotFoundError:
                raise FermigridError(f"{came} is gone before it was published") from None
            with final:
                if _sha256(final) != sha256:
                    text = f"{outputs / to} exists with other content: move it away; the new file is {came}"
                    raise FermigridError(text)
                _open_like(home, final.fileno())
            if there:
                os.unlink(came.name, dir_fd=out)
    except OSError as error:
        raise FermigridError(f"{came} cannot become {outputs / to}: {error}") from error


def _name_it(came: Path, out: int, last: str, home: int, sha256: str) -> bool:
    """The final name for what came back, unless it is taken -> is there anything that came back?"""
    try:
        file = open_plain(came.name, out)
    except FileNotFoundError:
        return False
    with file:
        if _sha256(file) != sha256:
            raise FermigridError(f"{came} is not what the job wrote: its sha256 differs from the report's")
        with suppress(FileExistsError):
            if os.fstat(file.fileno()).st_nlink > 1 and not _is_there(last, home):
                _copy(file, last, home)  # it has another name somewhere, by which it could be changed
                return True
            try:
                os.link(came.name, last, src_dir_fd=out, dst_dir_fd=home, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP):
                    raise
                _copy(file, last, home)  # a team mate's file, or a file system without links
    return True


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _copy(file: BufferedReader, last: str, home: int) -> None:
    part = f".{last}.{os.getpid()}.part"
    with suppress(FileNotFoundError):
        os.unlink(part, dir_fd=home)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(part, flags, 0o666, dir_fd=home), "wb") as to:
            file.seek(0)
            shutil.copyfileobj(file, to)
            to.flush()
            os.fsync(to.fileno())
        try:
            os.link(part, last, src_dir_fd=home, dst_dir_fd=home)
        except FileExistsError:
            raise
        except OSError:  # no links here; that the name is free was seen before
            os.rename(part, last, src_dir_fd=home, dst_dir_fd=home)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part, dir_fd=home)


def _open_like(folder: int, file: int) -> None:
    """Give a file to those that its folder is for: the batch system makes files that all may read."""
    home = os.fstat(folder).st_mode
    asked = os.fstat(file).st_mode | (0o660 if home & stat.S_IWGRP else 0o600)
    with suppress(PermissionError):  # a team mate's
        os.fchmod(file, asked & home & 0o777)


def _sha256(file: BufferedReader) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
