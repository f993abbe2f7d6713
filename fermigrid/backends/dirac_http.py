"""DiracX by its HTTP API: the transport `diracx`.

How a request is bounded and what its answer means: `dirac_client.py`. What is asked here: jobs by group or id; to take
documents in, to change states, to bring sandboxes both ways.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fermigrid.backends.dirac_client import Session, ask, open_session, words_of
from fermigrid.backends.dirac_flights import Flights, Sender
from fermigrid.backends.dirac_login import Login, check_login, find_login
from fermigrid.backends.dirac_sandbox import MOST_BYTES, SLOWEST, unpack
from fermigrid.backends.dirac_states import ServerJob, Stage
from fermigrid.backends.dirac_transport import Denied, Fetched, Missing, Sent, Unreachable
from fermigrid.jdl import JdlDocument

T = TypeVar("T")
_PAGE = 10_000  # jobs of one answer, the most that the server gives
_AT_ONCE = 200  # jobs of one request that changes their state: the server's work grows with the square
_LOOKED_UP = 1000  # jobs of one request that asks when they last changed
_FETCHES = 8  # sandboxes under way at once
_FIELDS = ["JobID", "JobName", "Status", "MinorStatus", "ApplicationStatus", "Site", "LastUpdateTime"]
_FIELDS += ["StartExecTime", "RescheduleCounter", "JobGroup"]
# How much later than its last change a new state of a job is said to be (s), tried in turn: a server notes that time a
# little before the state's own, and perhaps in whole seconds; that of a running job is of a node's clock.
_TICK_S = 0.001
_CONFIRM_LAGS, _KILL_LAGS = (_TICK_S, 0.3, 3.0), (_TICK_S, 1.0, 3600.0)


@dataclass(frozen=True)
class _Change:
    """A new state, which jobs are put into it, and for which it comes too late."""

    state: Mapping[str, str]
    is_for: Callable[[ServerJob], bool]
    too_late: Callable[[ServerJob], bool] = lambda _: False


_CONFIRMED = _Change(
    {"Status": "Received", "MinorStatus": "Job accepted", "Source": "fermigrid"},
    lambda job: job.stage is Stage.UNCONFIRMED,
    lambda job: job.stage.final and not job.confirmed,  # DIRAC gave it up
)
_KILLED = _Change({"Status": "Killed", "Source": "fermigrid"}, lambda job: not job.stage.final)


class Http:
    """The transport `diracx`."""

    confirms = True
    groups_at_once = 100

    def __init__(self, options: Mapping[str, object]) -> None:
        self._url = str(options.get("url") or "")
        self._vo, self._group = str(options.get("vo") or ""), str(options.get("group") or "")
        self._named = str(options["credentials"]) if options.get("credentials") else None
        self._limit = float(str(options.get("timeout_s", 60)))
        self._chunk = int(str(options.get("chunk", 20)))
        self._flights = int(str(options.get("flights", 4)))

    @property
    def where(self) -> str:
        return urlsplit(self._url).netloc

    def check(self, jobs: int) -> None:
        login = self._login(-(-jobs // self._chunk))
        with self._session(login) as session:
            session.run(ask(session, session.client.auth.userinfo))

    def _login(self, documents: int = 0) -> Login:
        login = find_login(self._named, os.environ)
        check_login(login, self._vo, self._group, documents, datetime.now(UTC))
        return login

    def _session(self, login: Login | None = None) -> AbstractContextManager[Session]:
        return open_session(self._url, login or self._login(), self._limit)

    def select(self, group: str, names: Mapping[int, str]) -> list[ServerJob]:
        del names  # the answer has them
        return self._search({"parameter": "JobGroup", "operator": "eq", "value": group})

    def select_all(self, groups: Sequence[str]) -> Mapping[str, list[ServerJob]]:
        found: dict[str, list[ServerJob]] = {group: [] for group in groups}
        for job in self._search({"parameter": "JobGroup", "operator": "in", "values": list(groups)}):
            found[job.group].append(job)
        return found

    def look(self, job: int) -> list[ServerJob]:
        """One job, by its id; none where the server does not know it."""
        return self._search({"parameter": "JobID", "operator": "eq", "value": str(job)})

    def _search(self, wanted: Mapping[str, Any]) -> list[ServerJob]:
        with self._session() as session:
            return session.run(_search(session, wanted))

    def send(self, documents: Iterable[JdlDocument]) -> Iterator[Sent]:
        with self._session() as session:
            sender = Sender(session, Flights(self._flights))
            answers = sender.all(iter(documents))
            try:
                while (sent := session.run(anext(answers, None))) is not None:
                    yield sent
            finally:
                session.run(answers.aclose())

    def confirm(self, ids: Sequence[int], made: Mapping[int, datetime]) -> None:
        with self._session() as session:
            left = session.run(_change_after(session, {job: made[job] for job in ids if job in made}, _CONFIRMED))
            left += [job for job in ids if job not in made]
            left, gone = session.run(_change_known(session, left, _CONFIRMED, _CONFIRM_LAGS))
        if some := left or gone:
            what = "are as they were after their confirmation" if left else "are not there any more, or given up"
            raise Unreachable(f"{len(some)} jobs, such as {some[0]}, {what}")

    def kill(self, ids: Sequence[int]) -> None:
        if ids:
            with self._session() as session:
                left, _ = session.run(_change_known(session, ids, _KILLED, _KILL_LAGS))
            if left:
                raise Unreachable(f"{len(left)} jobs, such as {left[0]}, are as they were after they were killed")

    def fetch(self, ids: Sequence[int], folder: Callable[[int], Path]) -> Fetched:
        with self._session() as session:
            return session.run(_fetch_all(session, ids, folder))


async def _search(session: Session, wanted: Mapping[str, Any]) -> list[ServerJob]:
    """Jobs, by id. Each page begins behind the last job of the one before: of a page after the last one, which there is
    where the last one is full, a server says that it is an error."""
    found, search = list[ServerJob](), session.client.jobs.search
    asked: dict[str, Any] = {"parameters": _FIELDS, "per_page": _PAGE}
    asked["sort"] = [{"parameter": "JobID", "direction": "asc"}]
    while True:
        asked["search"] = [wanted, {"parameter": "JobID", "operator": "gt", "value": str(found[-1].id if found else 0)}]
        rows = await ask(session, partial(search, **asked))
        found += map(_job, rows)
        if len(rows) < _PAGE:
            return found


async def _change_known(
    session: Session, ids: Sequence[int], to: _Change, lags: Sequence[float]
) -> tuple[list[int], list[int]]:
    """Change jobs, those of them that it is for; returns those that are left as they were, and those that nobody knows
    or for which it comes too late."""
    left, gone = list(ids), set[int]()
    for lag in lags:
        last = dict[int, datetime]()
        for part in _batched(left, _LOOKED_UP):
            jobs = await _search(session, {"parameter": "JobID", "operator": "in", "values": list(part)})
            gone |= {*part} - {job.id for job in jobs if not to.too_late(job)}
            late = timedelta(seconds=lag - _TICK_S)
            last |= {job.id: (job.updated or datetime.now(UTC)) + late for job in jobs if to.is_for(job)}
        left = await _change_after(session, last, to)
        if not left:
            break
    return left, sorted(gone)


async def _change_after(session: Session, last: Mapping[int, datetime], to: _Change) -> list[int]:
    """Change jobs, as of just after these times; returns those that are left as they were.

    A server passes over a state whose time is before that of the last one, and tells so only by leaving it out of its
    answer. Clocks differ, so the times are the server's own. A request that comes late, when the job has gone on, is
    passed over, too: a running job is not begun again by it.
    """
    left = list[int]()
    for some in _batched(list(last), _AT_ONCE):
        times = {job: (last[job] + timedelta(seconds=_TICK_S)).isoformat() for job in some}
        body = json.dumps({str(job): {time: to.state} for job, time in times.items()}).encode()
        answer = await ask(session, partial(_patch, session, body))
        done = {int(job) for job, told in answer.success.items() if told.status}
        left += [job for job in some if job not in done]
    return left


async def _patch(session: Session, body: bytes) -> Any:
    return await session.client.jobs.set_job_statuses(io.BytesIO(body))


def _batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _job(row: Mapping[str, Any]) -> ServerJob:
    return ServerJob(
        id=int(row["JobID"]),
        name=str(row.get("JobName") or ""),
        status=str(row.get("Status") or ""),
        minor=str(row.get("MinorStatus") or ""),
        application=str(row.get("ApplicationStatus") or ""),
        site=str(row.get("Site") or ""),
        updated=_time(row.get("LastUpdateTime")),
        started=_time(row.get("StartExecTime")),
        reschedules=int(row.get("RescheduleCounter") or 0),
        group=str(row.get("JobGroup") or ""),
    )


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


async def _fetch_all(session: Session, ids: Sequence[int], folder: Callable[[int], Path]) -> Fetched:
    """Some at once. When as many as that get no answer, one after the other, the rest is left for another time."""
    gate, there, empty, lost = asyncio.Semaphore(_FETCHES), set[int](), set[int](), set[int]()
    failed, unanswered = list[str](), 0

    async def one(job: int) -> None:
        nonlocal unanswered
        async with gate:
            if unanswered >= _FETCHES:
                return
            try:
                (there if await _fetch(session, job, folder(job)) else empty).add(job)
                unanswered = 0
            except (Missing, ValueError) as error:
                lost.add(job)
                failed.append(f"the output sandbox of job {job}: {words_of(error)}")
            except (Unreachable, Denied, OSError) as error:
                unanswered += isinstance(error, Unreachable)
                failed.append(f"the output sandbox of job {job}: {words_of(error)}")

    await asyncio.gather(*map(one, ids))
    return Fetched(frozenset(there), frozenset(empty), frozenset(lost), tuple(failed))


async def _fetch(session: Session, job: int, folder: Path) -> bool:
    """Bring a job's output sandbox into an empty folder -> had it one?"""
    jobs = session.client.jobs
    names = await ask(session, lambda: jobs.get_job_sandbox(job, "output"))
    if not names or not names[0]:
        return False
    place = await ask(session, lambda: jobs.get_sandbox_file(pfn=str(names[0])))
    with tempfile.TemporaryFile() as archive:

        async def get() -> None:
            import httpx2

            archive.seek(0)
            archive.truncate()
            async with httpx2.AsyncClient(timeout=session.limit) as store, store.stream("GET", place.url) as answer:
                if answer.status_code >= 300:
                    error = Missing if answer.status_code in (404, 410) else Unreachable
                    raise error(f"the sandbox store says {answer.status_code}")
                async for part in answer.aiter_bytes():
                    if archive.tell() + len(part) > 2 * MOST_BYTES:
                        raise ValueError("it is larger than any that DIRAC takes")
                    archive.write(part)

        await ask(session, get, 2 * MOST_BYTES / SLOWEST)
        archive.seek(0)
        unpack(archive, folder)
    return True
