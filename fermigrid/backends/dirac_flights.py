"""Documents on their way to a DiracX server: several at once, as many as help, each sandbox handed in once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fermigrid.backends.dirac_client import Session, ask
from fermigrid.backends.dirac_sandbox import SLOWEST, pack
from fermigrid.backends.dirac_transport import Denied, Sent, Unreachable
from fermigrid.errors import RunFolderError, SubmissionRefused
from fermigrid.jdl import JdlDocument, with_sandbox


@dataclass
class Flights:
    """How many requests are under way at once: as many as help. It is tried out, as the work goes on.

    After each `window` answers the pace is compared with the best so far: clearly better, one step up; not, back.
    """

    most: int
    now: int = 1
    window: int = 12
    _times: list[float] = field(default_factory=list)
    _paces: dict[int, float] = field(default_factory=dict)

    def answered(self, time: float) -> None:
        """An answer came at this time (s)."""
        self._times.append(time)
        if len(self._times) <= self.window or self.now in self._paces:
            return
        self._paces[self.now] = self.window / max(self._times[-1] - self._times[0], 1e-9)
        self._times = []
        if self._is_best_by_far() and self.now * 2 <= self.most:
            self.now *= 2
        else:
            self.now = max(self._paces, key=lambda count: self._paces[count])

    def _is_best_by_far(self) -> bool:
        others = [pace for count, pace in self._paces.items() if count != self.now]
        return self._paces[self.now] > 1.15 * max(others, default=0.0)


class Sender:
    """Documents on their way."""

    def __init__(self, session: Session, flights: Flights) -> None:
        self._session, self._flights = session, flights
        self._sandboxes: dict[tuple[Path, ...], asyncio.Task[str]] = {}

    async def all(self, documents: Iterator[JdlDocument]) -> AsyncGenerator[Sent, None]:
        under_way = set[asyncio.Task[Sent]]()
        going_on, clock = True, asyncio.get_running_loop().time
        try:
            while True:
                while going_on and len(under_way) < self._flights.now:
                    document = next(documents, None)
                    if document is None:
                        going_on = False
                    else:
                        under_way.add(asyncio.create_task(self._send(document)))
                if not under_way:
                    return
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for sent in [task.result() for task in done]:
                    self._flights.answered(clock())
                    going_on = going_on and not (sent.doubt or sent.refused)
                    yield sent
        finally:
            await _end([*under_way, *self._sandboxes.values()])

    async def _send(self, document: JdlDocument) -> Sent:
        try:
            entries = [await self._sandbox(files) for files in (document.shared, document.own) if files]
        except Denied as error:
            return _denied(document, error)
        except Unreachable as error:
            return Sent(document, doubt=f"its sandbox could not be handed in: {error}")
        except SubmissionRefused as error:
            return Sent(document, refused=f"{error}. {error.hint}")
        text, client = with_sandbox(document, entries), self._session.client
        try:
            jobs = await ask(self._session, lambda: client.jobs.submit_jdl_jobs([text]))
        except Denied as error:
            return _denied(document, error)
        except Unreachable as error:
            return Sent(document, doubt=str(error))
        ids = tuple(int(job.job_id) for job in jobs)
        if len(ids) != document.jobs:
            return Sent(document, doubt=f"the server made {len(ids)} jobs of {document.jobs}")
        return Sent(document, ids, max(_aware(job.time_stamp) for job in jobs))

    async def _sandbox(self, files: tuple[Path, ...]) -> str:
        """The name of the sandbox with these files, handed in once; of shards only the last few are remembered."""
        if files not in self._sandboxes:
            for old in list(self._sandboxes)[1:-8]:
                if self._sandboxes[old].done():
                    del self._sandboxes[old]
            self._sandboxes[files] = asyncio.create_task(_upload(self._session, files))
        return await asyncio.shield(self._sandboxes[files])


def _denied(document: JdlDocument, error: Denied) -> Sent:
    if error.credentials:
        return Sent(document, doubt=str(error), login=True)
    return Sent(document, refused=str(error))


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _upload(session: Session, files: Sequence[Path]) -> str:
    """Hand a sandbox in, unless the server has it; returns its name."""
    import httpx2
    from diracx.client.models import SandboxInfo

    try:
        data, digest = pack(files)
    except OSError as error:
        raise RunFolderError(f"{error.filename or files[0]} cannot be packed: {error.strerror}") from error
    info = SandboxInfo(checksum_algorithm="sha256", checksum=digest, size=len(data), format="tar.zst")
    begun = await ask(session, lambda: session.client.jobs.initiate_sandbox_upload(info))
    if (url := begun.url) is not None:

        async def put() -> None:
            async with httpx2.AsyncClient(timeout=session.limit) as store:
                answer = await store.post(url, data=begun.fields, files={"file": ("file", data)})
                if answer.status_code >= 300:
                    raise Unreachable(f"the sandbox store says {answer.status_code}")

        await ask(session, put, len(data) / SLOWEST)
    return str(begun.pfn)


def _aware(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)
