"""What happened to a batch's jobs since somebody last looked: from the server into its file, and what ended jobs left
into its folders."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fermigrid.backends import JobSeen, RenderedBatch
from fermigrid.backends.dirac_book import Book, Line, book_size, make_book, that_count
from fermigrid.backends.dirac_landing import by_name, kill_words, spoken
from fermigrid.backends.dirac_sandbox import plain_files
from fermigrid.backends.dirac_states import ServerJob, Stage, changes, choose
from fermigrid.backends.dirac_transport import Transport
from fermigrid.errors import RunFolderError
from fermigrid.jdl import items_of, names_of
from fermigrid.plainfile import real_folder
from fermigrid.report import NoReport, parse_report
from fermigrid.states import Seen

FETCHES = 500  # sandboxes that one look brings
_JOBS_AT_ONCE = 10_000  # of one answer, at most
_LATE_SANDBOX_S = 600.0  # a job that is done and has no sandbox yet is asked for it for so long
_TAIL = 1 << 20  # bytes of a log in which its report is looked for
_OUT, _ERR = "std.out", "std.err"


def make_anew(batch: RenderedBatch, way: Transport) -> Book:
    """The batch's file, from what the server knows. Raises BackendUnavailable."""
    found = by_name(that_count(batch, spoken(batch, lambda: way.select(batch.batch_id, {}))))
    return make_book(batch, way.where, [choose(found[name]).id if name in found else 0 for name in names_of(batch)])


@dataclass(frozen=True)
class _Item:
    """A job by its line of items.txt: its name, and the shard in whose work folder its log belongs."""

    name: str
    shard: str


_FORGOTTEN = "DIRAC does not know it any more"


def _items(batch: RenderedBatch) -> list[_Item]:
    items = [_Item(name, shard) for name, shard, _ in items_of(batch.plan_dir)]
    if len(items) != batch.jobs:
        raise RunFolderError(
            f"the plan {batch.plan_dir} cannot be read: items.txt has {len(items)} of {batch.jobs} jobs"
        )
    return items


class Asked:
    """What the server tells of the jobs of many batches, some batches with one question: the one that is wanted, and
    those after it. An answer counts as long as nobody has written into the batch's file since it was asked for."""

    def __init__(self, batches: Sequence[RenderedBatch]) -> None:
        self._batches = list(batches)
        self._answers: dict[str, tuple[int, list[ServerJob]]] = {}  # batch -> size of its file then, its jobs

    def jobs(self, batch: RenderedBatch, way: Transport, known: Mapping[int, str]) -> list[ServerJob]:
        """Its jobs; `known`: names by id. The caller has the batch for itself. Raises BackendUnavailable."""
        if way.groups_at_once == 1:
            return spoken(batch, lambda: way.select(batch.batch_id, known))
        size, jobs = self._answers.pop(batch.batch_id, (-1, []))
        if size == book_size(batch):
            return jobs
        sizes = {each.batch_id: book_size(each) for each in self._some(batch, way.groups_at_once)}
        answers = spoken(batch, lambda: way.select_all(list(sizes)))
        self._answers = {name: (size, answers[name]) for name, size in sizes.items()}
        return self._answers.pop(batch.batch_id)[1]

    def _some(self, first: RenderedBatch, most: int) -> Iterator[RenderedBatch]:
        """The batch, and of those after it some of the same server: as many as one answer has room for."""
        yield first
        place = next(i for i, each in enumerate(self._batches) if each.batch_id == first.batch_id)
        same = [each for each in self._batches[place + 1 :] if server_of(each) == server_of(first)]
        left = _JOBS_AT_ONCE - first.jobs
        for batch in same[: most - 1]:
            left -= batch.jobs
            if left < 0:
                return
            yield batch


def server_of(batch: RenderedBatch) -> tuple[object, ...]:
    """Who is asked, and as whom."""
    return tuple(batch.options.get(name) for name in ("transport", "url", "vo", "group", "credentials"))


def ask_server(batch: RenderedBatch, way: Transport, book: Book, asked: Asked) -> list[str]:
    """Write down what the server tells that is new; what a person should know. Raises BackendUnavailable.

    The sandboxes of jobs that ended are brought first, some hundred a call: a job has ended when its log is here.
    """
    items = _items(batch)
    known = {job: item.name for job, item in zip(book.ids, items, strict=True)}
    jobs = asked.jobs(batch, way, known)
    problems = _strange(batch, jobs, book)
    by_id = {job.id: job for job in jobs}
    now = {index: by_id[job] for index, job in enumerate(book.ids) if job in by_id}
    waiting = [job.id for job in now.values() if job.stage is Stage.UNCONFIRMED]
    if waiting and way.confirms:
        spoken(batch, lambda: way.confirm(waiting, {}))  # a submission that was cut short after it was decided
    ended = [i for i, job in now.items() if job.stage is Stage.ENDED and book.of(i).stage is not Stage.ENDED]
    if ended:
        with _brought(batch, way, items, {index: now[index] for index in ended[:FETCHES]}) as (home, fetching):
            problems += fetching
            late = set(ended) - home
            book.add(_lines(batch, book, {index: job for index, job in now.items() if index not in late}, items))
    else:
        book.add(_lines(batch, book, now, items))
    book.add(_lost(batch, book, [index for index, job in enumerate(book.ids) if job not in by_id]))
    return problems


_STANDS = {
    Stage.WAITING: Seen.SUBMITTED,
    Stage.RUNNING: Seen.STARTED,
    Stage.ENDED: Seen.ENDED,
    Stage.KILLED: Seen.REMOVED,
}


def how_it_stands(batch: RenderedBatch, way: Transport, book: Book, asked: Asked) -> Iterator[JobSeen]:
    """Every job as the server has it now, whatever is written of it. Of one whose log has not come yet nothing is said:
    `ask_server` brings it. Raises BackendUnavailable."""
    items, now = _items(batch), datetime.now(UTC)
    known = {job: item.name for job, item in zip(book.ids, items, strict=True)}
    by_id = {job.id: job for job in asked.jobs(batch, way, known)}
    for index, number in enumerate(book.ids):
        job, written = by_id.get(number), book.of(index)
        if job is None:
            if not written.stage.final:
                yield JobSeen(batch.batch_id, index, Seen.LOST, now, reason=_FORGOTTEN)
        elif job.stage in _STANDS and (job.stage is not Stage.ENDED or written.stage is Stage.ENDED):
            yield _seen(batch, index, _STANDS[job.stage], job, items[index], job.words)


def _strange(batch: RenderedBatch, jobs: Sequence[ServerJob], book: Book) -> list[str]:
    """What a person should know of the server's jobs: states that are not known, jobs that are there twice."""
    problems = []
    if unknown := sorted({job.status for job in jobs if job.stage is Stage.UNKNOWN}):
        count = sum(job.stage is Stage.UNKNOWN for job in jobs)
        problems.append(f"{batch.name}: DIRAC says of {count} jobs {', '.join(unknown)}, which fermigrid does not know")
    ours = set(book.ids)
    others = [job.id for job in jobs if job.id not in ours and job.confirmed and not job.stage.final]
    if others:
        words = f"{len(others)} jobs that fermigrid did not confirm run, or may: {kill_words(others[:20])}"
        problems.append(f"{batch.name}: {words}")
    return problems


def _lines(batch: RenderedBatch, book: Book, now: Mapping[int, ServerJob], items: Sequence[_Item]) -> Iterator[Line]:
    """What happened to jobs since it was last written down."""
    for index, job in now.items():
        for change, known in changes(book.of(index), job):
            yield Line(_seen(batch, index, change.seen, job, items[index], change.reason), known)


def _seen(batch: RenderedBatch, index: int, seen: Seen, job: ServerJob, item: _Item, reason: str) -> JobSeen:
    host = job.site if seen is Seen.STARTED else ""
    code = _exit_code(batch, item, job) if seen is Seen.ENDED else None
    return JobSeen(batch.batch_id, index, seen, _when(seen, job), host, code, reason=reason)


def _when(seen: Seen, job: ServerJob) -> datetime:
    told = job.started if seen is Seen.STARTED else job.updated
    return told or job.updated or datetime.now(UTC)


def _lost(batch: RenderedBatch, book: Book, indices: Sequence[int]) -> Iterator[Line]:
    """Jobs that the server has no more, and of which no end was seen: nobody knows, which is no failure."""
    for index in indices:
        known = book.of(index)
        if known.stage is not Stage.UNKNOWN and not known.stage.final:
            lost = JobSeen(batch.batch_id, index, Seen.LOST, datetime.now(UTC), reason=_FORGOTTEN)
            yield Line(lost, replace(known, stage=Stage.UNKNOWN))


@contextmanager
def _brought(
    batch: RenderedBatch, way: Transport, items: Sequence[_Item], jobs: Mapping[int, ServerJob]
) -> Iterator[tuple[set[int], list[str]]]:
    """Bring home what these jobs left: (indices of those that need not be asked again, what went wrong)."""
    indices = {job.id: index for index, job in jobs.items()}
    with tempfile.TemporaryDirectory(prefix=".dirac.", dir=batch.work_dir) as made:

        def folder(job: int) -> Path:
            path = Path(made) / str(job)
            path.mkdir(exist_ok=True)
            return path

        fetched = spoken(batch, lambda: way.fetch(sorted(indices), folder))
        problems = [f"{batch.name}: {words}" for words in fetched.failed[:5]]
        never = fetched.empty | fetched.lost
        home = {indices[job] for job in never if _waited_long(batch, way, jobs[indices[job]])}
        for job in fetched.there:
            index = indices[job]
            try:
                _put_away(folder(job), batch.work_dir, items[index])
                home.add(index)
            except OSError as error:
                problems.append(
                    f"{batch.name}: what {items[index].name} left cannot be put into {batch.work_dir}: {error}"
                )
        yield home, problems


def _waited_long(batch: RenderedBatch, way: Transport, job: ServerJob) -> bool:
    """Is there no use in asking for the sandbox once more? Of a job that failed there may be none."""
    if job.status != "Done":
        return True
    if job.updated is None:  # DIRAC's command for many jobs does not tell
        job = next(iter(spoken(batch, lambda: way.look(job.id))), job)
    return job.updated is None or (datetime.now(UTC) - job.updated).total_seconds() > _LATE_SANDBOX_S


def _put_away(came: Path, work: Path, item: _Item) -> None:
    """Files of an output sandbox to where a job's log and outputs belong. Raises OSError."""
    files = {entry.name: Path(entry.path) for entry in plain_files(came)}
    with real_folder(work, (item.shard, "out")) as out:
        for other in (other for other in files if other not in (_OUT, _ERR)):
            os.rename(files[other], other, dst_dir_fd=out)
    said = [files[stream] for stream in (_ERR, _OUT) if stream in files]
    log = came / "log"
    with log.open("wb") as whole:
        for stream in said:
            with stream.open("rb") as part:
                shutil.copyfileobj(part, whole)
    with real_folder(work, (item.shard,)) as home:
        os.rename(log, f"{item.name}.log", dst_dir_fd=home)


def _exit_code(batch: RenderedBatch, item: _Item, job: ServerJob) -> int:
    """What the worker ended with, by its report; where there is none, what stands for it by DIRAC's words."""
    path = batch.work_dir / item.shard / f"{item.name}.log"
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _TAIL))
            return parse_report(log.read(), item.name, batch.batch_id).exit
    except (OSError, NoReport):
        return job.end_code
