"""DIRAC as a batch system.

A batch is a group of DIRAC jobs (`JobGroup`: the batch id; `JobName`: the job's name), handed in by documents of some
jobs each and then confirmed (`dirac_landing`). What is known of it is in a file of its work folder (`dirac_book`),
which can be made anew from the server at any time. DIRAC is asked over HTTP (`dirac_http`) or by its own commands
(`dirac_commands`). See docs/how-to/dirac.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fermigrid.backends import Allowed, Cursor, Handle, Indices, JobSeen, Observation, RenderedBatch
from fermigrid.backends.dirac_book import Book, locked, make_book, note_killed, open_book, that_count
from fermigrid.backends.dirac_commands import Commands
from fermigrid.backends.dirac_follow import Asked, ask_server, how_it_stands, make_anew, server_of
from fermigrid.backends.dirac_http import Http
from fermigrid.backends.dirac_landing import Landing, by_name, refuse_twins, spoken
from fermigrid.backends.dirac_states import MEANINGS, ServerJob, Stage, choose
from fermigrid.backends.dirac_transport import Transport
from fermigrid.errors import BackendUnavailable, FermigridError, NotFound, RunFolderError, SubmissionRefused
from fermigrid.jdl import names_of

_READ_LIMIT = 4 << 20  # bytes of events in one call of `observe`

# --- out ---------------------------------------------------------------------------------------------------


def submit(batch: RenderedBatch) -> Handle:
    """Hand the batch in, or what is missing of it, and confirm it.

    Raises SubmissionRefused (then nothing of it is left there), SecretRefused and BackendUnavailable when nothing was
    sent, SubmissionDoubt when it did not land whole: then nothing of it is lost or double, and `submit` again goes on.
    """
    way = _way(batch.options)
    with locked(batch, _limit(batch.options)):
        spoken(batch, lambda: way.check(batch.jobs), "not sent")
        landing = Landing(batch, way)
        ids = landing.land()
        make_book(batch, way.where, ids)
    return Handle(batch, way.where, min(ids, default=0))


def find(batch: RenderedBatch) -> Handle | None:
    """Whether all of the batch is there and confirmed; what is not confirmed is never started.

    None also for one that landed in part: `submit` completes it, `take_back` takes it out. Raises SubmissionDoubt when
    several jobs of one name run.
    """
    way = _way(batch.options)
    found = by_name(that_count(batch, spoken(batch, lambda: way.select(batch.batch_id, {}))))
    refuse_twins(batch, found)
    names = names_of(batch)
    chosen = [choose(found[name]) for name in names if name in found]
    if len(chosen) < len(names) or not all(job.confirmed for job in chosen):
        return None
    return Handle(batch, way.where, min((job.id for job in chosen), default=0))


def take_back(batch: RenderedBatch) -> None:
    """Kill what landed of a batch that did not land whole."""
    _kill_all(batch, note=True)


def _kill_all(batch: RenderedBatch, *, note: bool) -> None:
    way = _way(batch.options)
    alive = [job.id for job in spoken(batch, lambda: way.select(batch.batch_id, {})) if not job.stage.final]
    if note:
        note_killed(batch, alive)
    spoken(batch, lambda: way.kill(alive))


# --- back --------------------------------------------------------------------------------------------------


def observe(handles: Sequence[Handle], cursor: Cursor) -> Observation:
    """What happened since `cursor`: what is written down already, else what the server tells now.

    A server that does not answer is a problem to report, no error; it is asked for no other batch then.
    """
    offsets, seen, problems, left = dict(cursor.offsets), list[JobSeen](), list[str](), _READ_LIMIT
    silent, asked = set[object](), Asked([handle.batch for handle in handles])
    for handle in handles:
        if left <= 0:
            break
        try:
            with locked(handle.batch, _limit(handle.batch.options)):
                book = _up_to_date(handle.batch, offsets, silent, problems, asked)
                if book is None:
                    continue
                before = offsets.get(book.key, 0)
                new, offsets[book.key] = book.read(handle.batch, before, left)
        except BackendUnavailable as error:  # another fermigrid is at work on the batch
            problems.append(_words(error))
            continue
        seen += new
        left -= offsets[book.key] - before if new else 0
    return Observation(tuple(seen), Cursor(offsets), tuple(problems))


def _up_to_date(
    batch: RenderedBatch, offsets: Mapping[str, int], silent: set[object], problems: list[str], asked: Asked
) -> Book | None:
    """The batch's file, with what the server tells when all that it had was read; None: there is none, and nobody who
    could tell what was in it."""
    book, way = open_book(batch), _way(batch.options)
    if (book is not None and offsets.get(book.key, 0) < book.size) or server_of(batch) in silent:
        return book
    try:
        if book is None:
            return make_anew(batch, way)
        problems += ask_server(batch, way, book, asked)
    except BackendUnavailable as error:
        silent.add(server_of(batch))
        problems.append(_words(error))
    except RunFolderError as error:
        problems.append(_words(error))
    return book


def _words(error: FermigridError) -> str:
    return f"{error} {error.hint}".strip()


def resolve(handles: Sequence[Handle]) -> Observation:
    """How every job stands at the server now."""
    seen, problems, silent = list[JobSeen](), list[str](), set[object]()
    asked = Asked([handle.batch for handle in handles])
    for handle in handles:
        batch, way = handle.batch, _way(handle.batch.options)
        if server_of(batch) in silent:
            continue
        try:
            with locked(batch, _limit(batch.options)):
                seen += how_it_stands(batch, way, open_book(batch) or make_anew(batch, way), asked)
        except BackendUnavailable as error:
            silent.add(server_of(batch))
            problems.append(_words(error))
        except RunFolderError as error:
            problems.append(_words(error))
    return Observation(tuple(seen), Cursor(), tuple(problems))


def explain(handle: Handle, index: int) -> tuple[str, ...]:
    """Why the job waits, or what it does, as DIRAC knows it now."""
    batch = handle.batch
    if not 0 <= index < batch.jobs:
        raise NotFound(f"{batch.name} has jobs 0 to {batch.jobs - 1}, not {index}")
    way = _way(batch.options)
    book = open_book(batch) or make_anew(batch, way)
    found = spoken(batch, lambda: way.look(book.ids[index]))
    if not found:
        return (f"job {book.ids[index]} is not known at {way.where} any more",)
    return tuple(_sentences(found[0], way.where, batch.options))


def _sentences(job: ServerJob, where: str, options: Mapping[str, object]) -> Iterator[str]:
    since = f" since {job.updated:%Y-%m-%d %H:%M:%S} UTC" if job.updated else ""
    yield f"job {job.id} at {where}: {job.words}{since}"
    yield MEANINGS.get(job.status, "a state that this fermigrid does not know: nothing is concluded from it")
    if job.site and job.site not in ("ANY", "Multiple"):
        yield f"its site: {job.site}"
    if job.reschedules:
        yield f"DIRAC has started it again {job.reschedules} times"
    if job.stage is Stage.WAITING and (sites := options.get("sites")):
        names = ", ".join(map(str, sites)) if isinstance(sites, list | tuple) else str(sites)
        yield f"it may run only at {names} (dirac.sites)"


def explain_removal(reason: str, code: str) -> tuple[str, ...]:
    """What DIRAC says of a job that was killed."""
    del code
    if "Deleted" in reason:
        return ("somebody deleted it at DIRAC: dirac-wms-job-logging-info tells who and when",)
    return ("somebody, or DIRAC itself, killed it: dirac-wms-job-logging-info tells who and when",)


# --- commands ----------------------------------------------------------------------------------------------


def remove(handles: Sequence[Handle], indices: Indices = None) -> None:
    """Kill jobs, running ones too; of a whole batch also the copies that a lost answer left. Again is harmless."""
    for handle in handles:
        batch = handle.batch
        way = _way(batch.options)
        if indices is None:
            _kill_all(batch, note=False)
            continue
        book = open_book(batch) or make_anew(batch, way)
        known = dict(zip(book.ids, names_of(batch), strict=True))
        wanted = {book.ids[index] for index in indices if 0 <= index < batch.jobs}
        jobs = spoken(batch, lambda: way.select(batch.batch_id, known))  # noqa: B023  # it is called at once
        spoken(batch, lambda: way.kill([job.id for job in jobs if job.id in wanted and not job.stage.final]))  # noqa: B023


def hold(handles: Sequence[Handle], indices: Indices = None) -> None:
    """DIRAC holds no jobs. Raises SubmissionRefused."""
    del indices
    _refuse(
        handles, "DIRAC cannot hold a job", "To keep jobs from running: fermigrid remove, and fermigrid retry later."
    )


def release(handles: Sequence[Handle], indices: Indices = None) -> None:
    """DIRAC holds no jobs, so none can be released. Raises SubmissionRefused."""
    del indices
    _refuse(handles, "DIRAC holds no jobs, so there is none to release", "To run failed jobs again: fermigrid retry.")


def pause(handles: Sequence[Handle]) -> None:
    """DIRAC cannot keep waiting jobs from starting. Raises SubmissionRefused."""
    hint = "Those that wait there may still start. To prevent that: fermigrid remove; they can be done again later."
    _refuse(handles, "DIRAC cannot keep waiting jobs from starting", hint)


def resume(handles: Sequence[Handle]) -> None:
    """Nothing was kept from starting."""
    del handles


def adjust(wanted: Sequence[tuple[Handle, Allowed]], /) -> None:
    """DIRAC takes a batch whole, and nothing of it can be changed then. Raises SubmissionRefused."""
    hint = "What is sent from now on has the new ones. Jobs that wait: fermigrid remove, and fermigrid retry later."
    _refuse([handle for handle, _ in wanted], "DIRAC cannot change limits, priority or bans of jobs it has", hint)


def used(handle: Handle, indices: Sequence[int], /) -> Mapping[int, float]:
    """Nothing: DIRAC tells no CPU time of jobs that run. A watchdog of its own, beside each, ends what uses none."""
    del handle, indices
    return {}


def _refuse(handles: Sequence[Handle], what: str, hint: str) -> None:
    for handle in handles:
        raise SubmissionRefused(f"{handle.batch.name}: {what}", hint)


def silence(handle: Handle, /) -> str:
    """Whether DIRAC answers, and to whoever is logged in."""
    try:
        spoken(handle.batch, lambda: _way(handle.batch.options).check(0))
    except FermigridError as error:
        return str(error)
    return ""


# --- the two ways ------------------------------------------------------------------------------------------


def _way(options: Mapping[str, object]) -> Transport:
    return Commands(options) if options.get("transport") == "commands" else Http(options)


def _limit(options: Mapping[str, object]) -> float:
    return float(str(options.get("timeout_s", 60)))
