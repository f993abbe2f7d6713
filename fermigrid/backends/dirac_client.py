"""A client of DiracX, and how it is asked: one request, its time limit, and what an answer or none means.

Every request has its time limit. None is repeated by the client itself: it would send jobs twice. What an answer does
not say for certain is in doubt, and `dirac_landing.py` settles it. `diracx` is an extra: it is imported here and in
`dirac_flights.py` only, and only when it is needed.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fermigrid.backends.dirac_login import Login, as_file
from fermigrid.backends.dirac_transport import Denied, Missing, Unreachable
from fermigrid.errors import BackendUnavailable

if TYPE_CHECKING:
    from diracx.client.aio import AsyncDiracClient

T = TypeVar("T")
SUPPORTED = "0.7.0"
_MOST_PATIENCE_S = 600.0  # for a server that asks to wait
_REFUSALS = (400, 413, 422)  # of what was asked for; other answers are of something in between, or for a while
_NO_SUCH_THING = (404, 410)


def check_client() -> None:
    """That the one supported client of DiracX is here. Raises BackendUnavailable."""
    try:
        found = metadata.version("diracx-client")
    except metadata.PackageNotFoundError:
        text = "transport: diracx needs DiracX's Python client, which is not installed"
        raise BackendUnavailable(text, "pip install 'fermigrid[dirac]' (it is under the GPL, and optional)") from None
    if found != SUPPORTED:
        text = f"this fermigrid speaks with DiracX {SUPPORTED}; the client that is installed is of {found}"
        raise BackendUnavailable(text, f"pip install 'diracx-client=={SUPPORTED}' 'diracx-core=={SUPPORTED}'")


@dataclass
class Session:
    """A client that is open, on an event loop of its own; `limit`: what a request may take (s); `credentials`: the file
    that the client reads."""

    runner: asyncio.Runner
    client: AsyncDiracClient
    limit: float
    credentials: Path

    def run(self, work: Awaitable[T]) -> T:
        """What comes of it."""

        async def waited() -> T:
            return await work

        return self.runner.run(waited())


@contextmanager
def open_session(url: str, login: Login, limit: float) -> Iterator[Session]:
    """A session with the server at `url`. Raises BackendUnavailable (no client, or another), Unreachable."""
    check_client()
    with as_file(login) as credentials, asyncio.Runner() as runner:
        session = Session(runner, _made(url, credentials, limit), limit, credentials)
        session.run(session.client.__aenter__())
        try:
            yield session
        finally:
            session.run(session.client.__aexit__(None, None, None))


def _made(url: str, credentials: Path, limit: float) -> AsyncDiracClient:
    """A client. It asks the server where its services are as soon as it is made, with no limit that holds; so another
    thread makes it, and is left behind when it takes too long."""
    made: list[AsyncDiracClient] = []
    failed: list[Exception] = []

    def make() -> None:
        try:
            from diracx.client.aio import AsyncDiracClient
            from diracx.core.preferences import DiracxPreferences

            preferences = DiracxPreferences.model_validate({"url": url, "credentials_path": credentials})
            options: dict[str, Any] = {"retry_total": 0, "connection_timeout": limit, "read_timeout": limit}
            made.append(AsyncDiracClient(diracx_preferences=preferences, **options))
        except Exception as error:  # noqa: BLE001  # of any kind: it is told where it was asked for
            failed.append(error)

    thread = threading.Thread(target=make, name="diracx", daemon=True)
    thread.start()
    thread.join(limit)
    if made:
        return made[0]
    if failed:
        raise Unreachable(f"{urlsplit(url).netloc} does not answer as a DiracX server: {words_of(failed[0])}")
    raise Unreachable(f"{urlsplit(url).netloc} does not answer within {limit:g} s")


def words_of(error: BaseException) -> str:
    """What went wrong, in one line. Addresses with keys in them (those of the sandbox store) are not in it."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text and "Signature=" not in text else type(error).__name__


async def ask(session: Session, make: Callable[[], Awaitable[T]], more: float = 0.0) -> T:
    """The answer to one request, within the limit and `more` seconds. Raises Denied, Unreachable."""
    waited = 0.0
    for usual in itertools.chain((1.0, 2.0, 4.0, 8.0, 16.0), itertools.repeat(30.0)):
        try:
            await _wait_for_credentials(session)
            return await _ask_once(make, session.limit + more)
        except _Busy as busy:
            wait = busy.seconds if busy.seconds is not None else usual
            waited += wait
            if waited > _MOST_PATIENCE_S:
                raise Unreachable(f"the server asks to wait for {wait:g} s more (429)") from None
            await asyncio.sleep(wait)
    raise AssertionError


async def _wait_for_credentials(session: Session) -> None:
    """Wait while another program has the file of the credentials for itself. DiracX's client would, too, and nothing
    could end that."""
    with suppress(FileNotFoundError), session.credentials.open("rb") as file:
        clock = asyncio.get_running_loop().time
        end = clock() + session.limit
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if clock() > end:
                    text = f"another program has locked {session.credentials} for {session.limit:g} s"
                    raise Unreachable(text) from None
                await asyncio.sleep(0.05)
            else:
                return


class _Busy(Exception):
    """The server did not do what it was asked, and wants to be asked later; `seconds`: when it says when."""

    def __init__(self, seconds: float | None) -> None:
        super().__init__("429")
        self.seconds = seconds


async def _ask_once(make: Callable[[], Awaitable[T]], limit: float) -> T:
    import httpx2
    import jwt
    from aiohttp import ClientError
    from azure.core.exceptions import AzureError, HttpResponseError

    try:
        async with asyncio.timeout(limit):
            return await make()
    except TimeoutError:
        raise Unreachable(f"no answer within {limit:g} s") from None
    except HttpResponseError as error:
        raise _refusal(error) from None
    except (AzureError, ClientError, httpx2.HTTPError, jwt.PyJWTError, OSError, ValueError, KeyError) as error:
        raise Unreachable(words_of(error)) from None
    except RuntimeError as error:  # the client's word for tokens that the server does not renew
        raise Denied(words_of(error), credentials=True) from None


def _refusal(error: Any) -> Exception:
    """What an answer that is no good one means."""
    status, said = error.status_code or 0, _detail(error)
    if status == 429:
        return _Busy(_retry_after(error))
    if status in (401, 403):
        return Denied(f"{said} ({status})", credentials=True)
    if status in _REFUSALS:
        return Denied(f"{said} ({status})")
    return (Missing if status in _NO_SUCH_THING else Unreachable)(f"{said} ({status})")


def _detail(error: Any) -> str:
    try:
        told = json.loads(error.response.text())["detail"]
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        told = error.reason or type(error).__name__
    return " ".join(str(told).split())[:300]


def _retry_after(error: Any) -> float | None:
    text = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.1) if math.isfinite(seconds) else None
